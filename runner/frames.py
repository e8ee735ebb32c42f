"""DataFrames in and out: any OHLCV frame a researcher is likely to hold becomes plain columns."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.columns import OHLCV, PRICES, Floats, Times, normal_name, shown_time
from runner.errors import BarsError

if TYPE_CHECKING:
    import pandas as pd

INDEX = "(index)"
TIME_NAMES = (INDEX, "date", "datetime", "time", "timestamp")
SYMBOL_NAMES = ("symbol", "ticker")


def split(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """One frame for each symbol ("" when the frame names none), columns renamed to ours, indexed by time in UTC.

    Raises:
        BarsError: not a DataFrame, empty, columns missing or named twice, no times, or times that cannot be read.
    """
    import pandas as pd

    if not isinstance(df, pd.DataFrame):
        raise BarsError(f"expected a pandas DataFrame of prices, not {type(df).__name__}.")
    if df.empty:
        raise BarsError(
            "the frame is empty: expected at least one row of prices. Check the symbol and the dates asked for."
        )
    if df.columns.nlevels > 1:
        return _split_wide(df)
    flat = _renamed(_with_index_as_columns(df))
    column = _only_one(flat, SYMBOL_NAMES)
    if column is None:
        return {"": _by_time(flat)}
    if flat[column].isna().any():
        raise BarsError(
            f"column {column!r} has no symbol in row {int(flat[column].isna().argmax())}: fill it, or drop such rows."
        )
    parts = flat.groupby(column, sort=False)
    return {str(symbol): _by_time(part.drop(columns=column)) for symbol, part in parts}


def arrays(part: pd.DataFrame) -> dict[str, Any]:
    """The arguments of Bars from one frame that `split` returned."""
    named = {str(name): _numbers(part[name], part.index) for name in part.columns}
    fields: dict[str, Any] = {name: named.pop(name, None) for name in OHLCV}
    return {"time": _stamps(part.index), **fields, "extra": named}


def build(time: Times, named: Mapping[str, Floats]) -> pd.DataFrame:
    """A frame of copies of the columns, indexed by time in UTC."""
    import pandas as pd

    index = pd.DatetimeIndex(time.view("datetime64[ns]"), name="time").tz_localize("UTC")
    return pd.DataFrame({name: column.copy() for name, column in named.items()}, index=index)


def read_parquet(payload: bytes) -> pd.DataFrame:
    """The frame in a Parquet file's bytes."""
    import pandas as pd

    return pd.read_parquet(io.BytesIO(payload))


def _split_wide(df: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Columns of two levels, price and ticker in either order, as `yf.download` returns them."""
    df = _indexed_by_time(df)
    symbol_level = _symbol_level(df.columns)
    symbols = df.columns.get_level_values(symbol_level).unique()
    return {str(symbol): _part(df, symbol, symbol_level, alone=len(symbols) == 1) for symbol in symbols}


def _indexed_by_time(df: pd.DataFrame) -> pd.DataFrame:
    """The inverse of reset_index(), which makes the times a column ("Date", "")."""
    import pandas as pd

    labels = [label for label in df.columns if pd.api.types.is_datetime64_any_dtype(df[label])]
    return df.set_index(labels[0]) if len(labels) == 1 else df


def _symbol_level(columns: pd.Index[Any]) -> int:
    named = [{normal_name(str(label)) for label in columns.get_level_values(level)} for level in range(columns.nlevels)]
    with_prices = [level for level, names in enumerate(named) if names.issuperset(PRICES)]
    if len(named) != 2 or not with_prices:
        raise BarsError(
            f"columns have {len(named)} levels: expected two, one of them holding {', '.join(PRICES)} "
            "and the other the symbols. Pass one level of plain columns, or a 'symbol' column."
        )
    return 1 - with_prices[0]


def _part(df: pd.DataFrame, symbol: Any, level: int, *, alone: bool) -> pd.DataFrame:
    import pandas as pd

    try:
        part = _renamed(_with_index_as_columns(pd.DataFrame(df.xs(symbol, axis=1, level=level))))
        if not alone:  # the index is the union of all symbols' times
            part = part.dropna(how="all", subset=list(PRICES))
        return _by_time(part)
    except BarsError as error:
        raise BarsError(f"symbol {symbol!r}: {error}") from error


def _with_index_as_columns(df: pd.DataFrame) -> pd.DataFrame:
    """The frame with what its index says about time and symbol moved into columns; the rest of the index is dropped."""
    import pandas as pd

    index = df.index
    if isinstance(index, pd.PeriodIndex):
        index = index.to_timestamp()
    levels = [index.get_level_values(level) for level in range(index.nlevels)]
    is_time = [isinstance(level, pd.DatetimeIndex) for level in levels]
    moved: dict[str, Any] = {}
    for level, timed in zip(levels, is_time, strict=True):
        name = normal_name(str(level.name))
        if timed:
            moved[INDEX] = level
        elif name in TIME_NAMES + SYMBOL_NAMES:
            moved[name] = level
        elif any(is_time):  # pd.concat({symbol: df}) leaves the symbols' level without a name
            moved["symbol"] = level
        elif len(levels) == 1 and not pd.api.types.is_numeric_dtype(level.dtype):
            moved[INDEX] = level
    if not moved:
        return df
    plain = pd.DataFrame({name: np.asarray(level) if name == "symbol" else level for name, level in moved.items()})
    return pd.concat([plain, df.reset_index(drop=True)], axis=1)


def _renamed(df: pd.DataFrame) -> pd.DataFrame:
    names = [normal_name(str(label)) for label in df.columns]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        labels = [label for label, name in zip(df.columns, names, strict=True) if name == twice]
        raise BarsError(f"columns {labels} are both {twice!r}: rename or drop one of them.")
    renamed = df.copy(deep=False)
    renamed.columns = names
    missing = [name for name in PRICES if name not in names]
    if missing:
        raise BarsError(_missing(missing, dict(zip(names, df.columns, strict=True))))
    return renamed


def _missing(missing: list[str], labels: Mapping[str, Any]) -> str:
    spare = sorted(set(labels) - set(OHLCV))
    pairs = {labels[close[0]]: name for name in missing if (close := get_close_matches(name, spare, n=1))}
    hint = f" Did you mean df.rename(columns={pairs})?" if pairs else ""
    return f"columns are missing: {', '.join(missing)}. The frame has {', '.join(map(repr, labels.values()))}.{hint}"


def _only_one(df: pd.DataFrame, names: Iterable[str]) -> str | None:
    found = [name for name in names if name in df.columns]
    if len(found) > 1:
        raise BarsError(
            f"the frame has {' and '.join(map(repr, found))}: keep the one that is meant and drop the other."
        )
    return found[0] if found else None


def _by_time(df: pd.DataFrame) -> pd.DataFrame:
    column = _only_one(df, TIME_NAMES)
    if column is None:
        raise BarsError(
            f"the frame has no times: expected a DatetimeIndex or a column {', '.join(TIME_NAMES[1:])}. "
            "Its index is of type " + str(df.index.dtype) + "."
        )
    timed = df.drop(columns=column)
    timed.index = _utc(df[column])
    return timed


def _utc(times: pd.Series[Any]) -> pd.DatetimeIndex:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(times.dtype):
        raise BarsError(
            f"column {times.name!r} holds times as numbers ({times.iloc[0]}): say what they count, as in "
            f"pd.to_datetime(df[{times.name!r}], unit='ms')."
        )
    try:
        index = pd.DatetimeIndex(pd.to_datetime(times, utc=True, format="ISO8601")).as_unit("ns")
    except (ValueError, TypeError) as error:  # pandas' own errors for dates out of bounds are ValueErrors too
        raise BarsError(
            f"column {times.name!r} cannot be read as times ({str(error).partition('. ')[0]}): "
            "convert it with pd.to_datetime(..., format=...)."
        ) from error
    if index.hasnans:
        row = int(np.flatnonzero(index.isna())[0])
        raise BarsError(f"column {times.name!r} has no time in row {row}: drop such rows with df.dropna().")
    return index


def _stamps(index: pd.Index[Any]) -> Times:
    return np.asarray(index.asi8) if hasattr(index, "asi8") else np.asarray(index)


def _numbers(column: pd.Series[Any], index: pd.Index[Any]) -> Floats:
    import pandas as pd

    if pd.api.types.is_numeric_dtype(column.dtype) and not pd.api.types.is_complex_dtype(column.dtype):
        return column.to_numpy(dtype=np.float64, na_value=np.nan)
    text = pd.to_numeric(column.astype("object"), errors="coerce").isna() & column.notna()
    row = int(text.argmax())  # 0 when every value would convert
    raise BarsError(
        f"column {column.name!r} is of type {column.dtype}, not numeric ({column.iloc[row]!r} at "
        f"{shown_time(_stamps(index)[row])}): "
        "convert it with pd.to_numeric(..., errors='coerce'), or drop it."
    )
