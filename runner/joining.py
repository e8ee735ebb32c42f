"""Alternative data beside bars: which value of a series was known before each bar's close.

A series carries each value at the time that it is *about*. What a strategy may use is decided by when it became
*available*, which is that time plus the lag: a close of the VIX dated 2 January at 00:00 is known a day later, a
statistic of January in the middle of February.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.columns import OHLCV, Floats, Times, normal_name, shown_time
from runner.errors import BarsError, InputError

if TYPE_CHECKING:
    from datetime import timedelta

    import pandas as pd

    Span = str | timedelta | np.timedelta64  # a pandas Timedelta is a timedelta

LAST_NS = np.iinfo(np.int64).max  # in the year 2262
NO_INTERVAL_NS = 1


def joined(
    time: Times,
    series: pd.Series[Any] | pd.DataFrame,
    *,
    lag: Span,
    name: str | None = None,
    max_age: Span | None = None,
    taken: Collection[str] = (),
) -> dict[str, Floats]:
    """Columns of one value per bar, by name; arguments and errors are those of `runner.Bars.join`.

    Args:
        time: int64[n], the bars' times.
        series: one column, or a frame of several.
        lag: from the time of a value to the moment it is known.
        name: of the only column.
        max_age: longest time from then to a bar's close.
        taken: names of the bars' own extra columns.
    """
    lag_ns = _span_ns("lag", lag)
    max_age_ns = None if max_age is None else _span_ns("max_age", max_age)
    if max_age_ns == 0:
        raise InputError(f"max_age={max_age!r}: every value would be too old. None lets the latest one stand for ever.")
    named = _by_name(series, name, {*taken, *OHLCV, "time"})
    stamps = _stamps(series.index)
    closing = closes(time)
    return {
        label: aligned(closing, stamps, _numbers(label, column, stamps), lag_ns=lag_ns, max_age_ns=max_age_ns)
        for label, column in named.items()
    }


def closes(time: Times) -> Times:
    """When each bar closes, rather too early than too late. int64[n], nanoseconds since 1970 UTC.

    A bar lasts as long as most bars do (the commonest distance of two stamps, of several equally common ones the
    shortest), but never beyond the next bar's stamp: so Friday's bar does not last until Monday. The last bar, whose
    successor nobody knows yet, lasts as long as the shortest. A single bar counts as closing where it opens.
    """
    if len(time) == 1:
        return time + NO_INTERVAL_NS
    steps = np.diff(time)
    lengths, counts = np.unique(steps, return_counts=True)
    return np.asarray(time + np.minimum(np.append(steps, steps.min()), lengths[counts.argmax()]))


def aligned(closing: Times, stamps: Times, values: Floats, *, lag_ns: int, max_age_ns: int | None = None) -> Floats:
    """The latest value known before each close.

    Args:
        closing: int64[n], increasing, nanoseconds since 1970 UTC, as `stamps`.
        stamps: int64[m], strictly increasing.
        values: float64[m]; a NaN is no value, the one before it stands.
        lag_ns: a value is known from its stamp + lag_ns on; one that comes at the very moment of a close is too late.
        max_age_ns: a value known for longer than this at a close is none.

    Returns:
        float64[n], NaN where nothing is known.
    """
    usable = ~np.isnan(values) & (stamps <= LAST_NS - lag_ns)
    known_from = stamps[usable] + lag_ns
    count = np.searchsorted(known_from, closing, side="left")
    column = np.concatenate([[np.nan], values[usable]])[count]
    if max_age_ns is not None:
        # Unsigned, because three hundred years do not fit into an int64: a series may begin in 1700.
        age = (closing - np.concatenate([closing[:1], known_from])[count]).view(np.uint64)
        column[age > np.uint64(max_age_ns)] = np.nan
    return column


def _span_ns(argument: str, given: Any) -> int:
    import pandas as pd

    expected = f"{argument}={given!r}: expected a length of time, such as '1d', '36h', '0s' or a timedelta"
    text = given
    if isinstance(given, str):
        if not re.search(r"[A-Za-z:]", given):  # pandas reads '5' as five nanoseconds
            raise InputError(f"{expected}; a number needs its unit.")
        text = re.sub(r"(?<=\d)\s*([dw])(?![A-Za-z])", lambda unit: unit[1].upper(), given)  # pandas 3 deprecates 'd'
    elif not hasattr(given, "total_seconds") and not isinstance(given, np.timedelta64):
        raise InputError(f"{expected}.")
    try:
        span = pd.Timedelta(text)
    except ValueError as error:  # out of bounds is one too
        raise InputError(f"{expected} ({error}).") from error
    if pd.isna(span):
        raise InputError(f"{expected}.")
    if span < pd.Timedelta(0):
        raise InputError(f"{argument}={given!r} is negative: bars would use values before these were known.")
    return int(span.as_unit("ns").value)


def _by_name(series: Any, name: str | None, taken: Collection[str]) -> dict[str, pd.Series[Any]]:
    import pandas as pd

    if isinstance(series, pd.Series):
        columns, cure = [(series.name if name is None else name, series)], "name='...'"
    elif isinstance(series, pd.DataFrame):
        columns, cure = list(series.items()), "df.rename(columns={...})"
        if name is not None:
            raise InputError(f"name={name!r} is for a Series; a DataFrame's columns are named by {cure}.")
    else:
        raise BarsError(f"expected a pandas Series or DataFrame by time, not {type(series).__name__}.")
    if not columns or series.empty:
        raise BarsError("the series is empty: expected at least one value. Check the symbol and the dates asked for.")
    named: dict[str, pd.Series[Any]] = {}
    for found, column in columns:
        label = "" if found is None else normal_name(str(found))
        if not label:
            raise BarsError(f"the series has no name: give it one with {cure}.")
        if label in taken or label in named:
            raise BarsError(f"there is already a column {label!r}: choose another with {cure}.")
        named[label] = column
    return named


def _stamps(index: pd.Index[Any]) -> Times:
    import pandas as pd

    if not isinstance(index, pd.DatetimeIndex):
        raise BarsError(
            f"the series' index is of type {index.dtype}, not times: convert it with "
            "series.index = pd.to_datetime(series.index, utc=True), periods with series.to_timestamp()."
        )
    if index.hasnans:
        row = int(np.flatnonzero(index.isna())[0])
        raise BarsError(f"the series has no time in row {row}: drop such rows with series[series.index.notna()].")
    try:
        utc = (index.tz_localize("UTC") if index.tz is None else index.tz_convert("UTC")).as_unit("ns")
    except ValueError as error:
        raise BarsError(f"the series' times have to lie between 1678 and 2262 ({error}).") from error
    stamps: Times = np.array(utc.asi8)
    steps = np.diff(stamps)
    if (steps < 0).any():
        at = int(np.flatnonzero(steps < 0)[0])
        raise BarsError(
            f"the series is not in order: {shown_time(stamps[at + 1])} comes after {shown_time(stamps[at])}. "
            "Sort it with series.sort_index()."
        )
    if (steps == 0).any():
        at = int(np.flatnonzero(steps == 0)[0])
        raise BarsError(
            f"the series has time {shown_time(stamps[at])} twice ({int((steps == 0).sum())} duplicates): keep one "
            "row of each with series[~series.index.duplicated(keep='last')]."
        )
    return stamps


def _numbers(name: str, column: pd.Series[Any], stamps: Times) -> Floats:
    import pandas as pd

    if not pd.api.types.is_numeric_dtype(column.dtype) or pd.api.types.is_complex_dtype(column.dtype):
        unread = pd.to_numeric(column.astype("object"), errors="coerce").isna() & column.notna()
        at = int(unread.to_numpy().argmax())  # 0 when every value would convert
        raise BarsError(
            f"column {name!r} is of type {column.dtype}, not numeric ({column.iloc[at]!r} at "
            f"{shown_time(stamps[at])}): convert it with pd.to_numeric(series, errors='coerce')."
        )
    values: Floats = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isinf(values).any():
        at = int(np.isinf(values).argmax())
        raise BarsError(
            f"column {name!r} is infinite at {shown_time(stamps[at])}: drop such values with "
            "series.replace([np.inf, -np.inf], np.nan)."
        )
    return values
