"""Columns of prices: what is accepted as one, and what is refused with which words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.errors import BarsError

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

PRICES = ("open", "high", "low", "close")
OHLCV = (*PRICES, "volume")
# Adjusted prices leave the low..high range by float32 rounding (6e-8 of the price); a tick is never as small as this.
RANGE_TOLERANCE = 1e-6
DAY_NS = 86_400_000_000_000


@dataclass(frozen=True, slots=True)
class Checked:
    """Columns that can be backtested: own copies, contiguous, read-only, extras sorted by name."""

    time: Times
    prices: dict[str, Floats]
    volume: Floats | None
    extra: dict[str, Floats]


def checked(time: Any, prices: Mapping[str, Any], volume: Any, extra: Mapping[str, Any]) -> Checked:
    """Copies of the columns, or a BarsError that names the first bad one, its first bad bar's time, and the cure."""
    stamps = _times(time)
    columns = {name: _floats(name, values, len(stamps)) for name, values in prices.items()}
    for name, column in columns.items():
        _refuse(
            ~np.isfinite(column),
            stamps,
            column,
            f"column {name!r} is not a finite number",
            "drop such rows, as df.dropna() does",
        )
        _refuse(column <= 0, stamps, column, f"column {name!r} is not above 0", "drop such rows")
    _check_range(stamps, columns)
    volumes = None if volume is None else _floats("volume", volume, len(stamps))
    if volumes is not None:
        cure = "fill it, or leave the column out, volume is optional"
        _refuse(~np.isfinite(volumes), stamps, volumes, "column 'volume' is not a finite number", cure)
        _refuse(volumes < 0, stamps, volumes, "column 'volume' is below 0", cure)
    return Checked(stamps, columns, volumes, _extras(extra, len(stamps)))


def normal_name(name: str) -> str:
    """A column's name in lower case, with underscores: "Adj Close" is adj_close."""
    return "_".join(name.lower().split())


def shown_time(stamp: np.int64 | int) -> str:
    """A time for people: the date alone at midnight UTC."""
    moment = np.datetime64(int(stamp), "ns")
    if stamp % DAY_NS == 0:
        return str(moment.astype("datetime64[D]"))
    return str(moment).rstrip("0") if stamp % 10**9 else str(moment.astype("datetime64[s]"))


def _times(time: Any) -> Times:
    stamps = np.array(time, order="C")
    if stamps.ndim != 1 or stamps.dtype != np.int64:
        raise BarsError(
            f"time is {stamps.dtype} of shape {stamps.shape}: expected int64[n], nanoseconds since 1970 UTC. "
            "Bars.from_frame(df) converts any DatetimeIndex."
        )
    if not len(stamps):
        raise BarsError(
            "there are no bars: expected at least one row of prices. Check the filter or the dates asked for."
        )
    steps = np.diff(stamps)
    if (steps < 0).any():
        first = int(np.flatnonzero(steps < 0)[0]) + 1
        before = shown_time(stamps[first - 1])
        raise BarsError(
            f"times are not in order: {shown_time(stamps[first])} comes after {before}. Sort with df.sort_index()."
        )
    if (steps == 0).any():
        first = int(np.flatnonzero(steps == 0)[0])
        raise BarsError(
            f"time {shown_time(stamps[first])} occurs twice ({int((steps == 0).sum())} duplicates): keep one row "
            "of each with df[~df.index.duplicated(keep='last')]."
        )
    stamps.flags.writeable = False
    return stamps


def _floats(name: str, values: Any, length: int) -> Floats:
    if values is None:
        raise BarsError(f"column {name!r} is missing: expected {', '.join(PRICES)} and optionally volume.")
    given = np.asarray(values)
    if given.dtype.kind not in "fiub":
        raise BarsError(
            f"column {name!r} is of type {given.dtype}, not numeric: convert it with pd.to_numeric, or drop it."
        )
    if given.shape != (length,):
        raise BarsError(f"column {name!r} has shape {given.shape}: expected one value for each of the {length} times.")
    column = np.array(given, dtype=np.float64, order="C")
    column[np.isnan(column)] = np.nan  # NaNs differ in their bits: equal content has one digest
    column.flags.writeable = False
    return column


def _check_range(stamps: Times, prices: Mapping[str, Floats]) -> None:
    high, low = prices["high"], prices["low"]
    cure = "are the two columns swapped? If not, drop such rows"
    _refuse(high < low, stamps, high, "column 'high' is below 'low'", cure)
    cure = "drop such rows, or set high to the max(axis=1) and low to the min(axis=1) of open, high, low and close"
    for name in ("open", "close"):
        column = prices[name]
        outside = (column - high > high * RANGE_TOLERANCE) | (low - column > low * RANGE_TOLERANCE)
        _refuse(outside, stamps, column, f"column {name!r} is outside low..high", cure)


def _refuse(bad: Flags, stamps: Times, column: Floats, what: str, cure: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        count = int(bad.sum())
        more = f", the first of {count} such bars" if count > 1 else ""
        raise BarsError(f"{what} at {shown_time(stamps[first])} ({float(column[first])!r}{more}): {cure}.")


def _extras(extra: Mapping[str, Any], length: int) -> dict[str, Floats]:
    named: dict[str, Floats] = {}
    for given, values in extra.items():
        name = normal_name(str(given))
        if name in named or name in OHLCV or name == "time":
            raise BarsError(f"two columns are called {name!r}: rename or drop one of them.")
        named[name] = _floats(name, values, length)
    return dict(sorted(named.items()))
