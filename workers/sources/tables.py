"""The bytes of a price file, CSV or Parquet, gzipped or not, as columns: what `url` and `file` share."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from packaging.version import Version

from runner import frames
from runner.columns import OHLCV, normal_name
from runner.errors import BadAnswer, BarsError, SettingsError
from workers.sources.days import trading_dates
from workers.sources.parse import DAY_NS, Floats, Times, interval_ns, quoted

MIB = 2**20
# 30 years of one-minute bars of a share are 200 MiB of CSV; what is larger belongs in several files.
MOST_BYTES = 256 * MIB
INTERVALS = ("1m", "5m", "15m", "30m", "1h", "2h", "4h", "1d", "1w", "1M")
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
COUNTED_IN = ("s", "ms", "us", "ns")
FACTORS = ("split", "dividend")
# Before 3.1 the default parser was off by a last bit now and then; since then it is exact, and asking for it warns.
EXACT: dict[str, Any] = {"float_precision": "round_trip"} if Version(pd.__version__) < Version("3.1") else {}


def columns_of(body: bytes, interval: str, options: Mapping[str, Any], label: str) -> tuple[Times, dict[str, Floats]]:
    """Times and columns of a table of one symbol's prices, rows as they stand.

    Columns open, high, low, close and optionally volume, split and dividend, in lower or title case; any others are
    left out. Times are a column date, datetime, time or timestamp or the file's index, naive ones in UTC. Bars of a day
    or more get midnight UTC of the date as written.

    Args:
        body: the file.
        interval: length of its bars.
        options: ``time_unit`` says what times written as numbers count since 1970: s, ms, us or ns.
        label: begins the messages.

    Raises:
        BadAnswer: another kind of file, larger than 256 MiB decompressed, or not such a table.
        SettingsError: an unknown time_unit.
    """
    frame = _timed(_frame(_unpacked(body, label), label), interval, options)
    try:
        parts = [
            frames.arrays(part[[name for name in (*OHLCV, *FACTORS) if name in part.columns]])
            for part in frames.split(frame).values()
        ]
    except BarsError as error:
        raise BadAnswer(f"{label}: {error}") from None
    if len(parts) > 1:
        raise BadAnswer(f"{label}: it holds {len(parts)} symbols, expected one: make a file of each.")
    [found] = parts
    columns = {name: found[name] for name in OHLCV if found[name] is not None} | found["extra"]
    time = np.asarray(found["time"], dtype=np.int64)
    if interval_ns(interval) >= DAY_NS:
        time = time - time % DAY_NS
    return time, _without_gaps(columns, label)


def _without_gaps(columns: dict[str, Floats], label: str) -> dict[str, Floats]:
    """An empty cell of split or dividend says that there was none."""
    for name, none in (("split", 1.0), ("dividend", 0.0)):
        if name in columns:
            columns[name] = np.where(np.isnan(columns[name]), none, columns[name])
    if "split" in columns and not np.all(columns["split"] > 0):
        raise BadAnswer(
            f"{label}: column 'split' has values of 0 or less: expected the factor by which shares grew, 1 for none."
        )
    return columns


def _unpacked(body: bytes, label: str) -> bytes:
    if not body.startswith(GZIP):
        return body
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as packed:
            plain = packed.read(MOST_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise BadAnswer(f"{label}: the gzip file is damaged ({error}).") from None
    if len(plain) > MOST_BYTES:
        raise _too_large(label)
    return plain


def _frame(body: bytes, label: str) -> pd.DataFrame:
    if len(body) > MOST_BYTES:
        raise _too_large(label)
    try:
        if body.startswith(PARQUET):
            return _parquet(body, label)
        if body[:100].lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b"<", b"{", b"[")) or b"\0" in body[:1000]:
            raise BadAnswer(f"{label}: expected CSV or Parquet, got {quoted(body)}.")
        frame: pd.DataFrame = pd.read_csv(io.BytesIO(body), **EXACT)
    except (ValueError, pa.ArrowException, OSError) as error:  # pandas' own errors are ValueErrors
        raise BadAnswer(f"{label}: cannot be read as a table: {error}") from None
    return frame


def _parquet(body: bytes, label: str) -> pd.DataFrame:
    # A column of one repeated value takes a few bytes for a million rows.
    shape = pq.read_metadata(io.BytesIO(body))
    if shape.num_rows * shape.num_columns * 8 > MOST_BYTES:
        raise _too_large(label)
    return frames.read_parquet(body)


def _timed(frame: pd.DataFrame, interval: str, options: Mapping[str, Any]) -> pd.DataFrame:
    """Times as numbers converted, and dates of daily bars as they are written, in whatever zone."""
    unit = options.get("time_unit")
    if unit is not None and unit not in COUNTED_IN:
        raise SettingsError(f"option time_unit={unit!r}: expected {', '.join(map(repr, COUNTED_IN))}.")
    frame = frame.copy(deep=False)
    daily = interval_ns(interval) >= DAY_NS
    if daily and isinstance(frame.index, pd.DatetimeIndex) and frame.index.tz is not None:
        frame.index = pd.DatetimeIndex(trading_dates(frame.index).view("datetime64[ns]"), name=frame.index.name)
    for label in [label for label in frame.columns if normal_name(str(label)) in frames.TIME_NAMES]:
        column = frame[label]
        if unit is not None and pd.api.types.is_numeric_dtype(column.dtype):
            frame[label] = pd.to_datetime(column, unit=unit, utc=True)
        elif daily and isinstance(column.dtype, pd.DatetimeTZDtype):
            frame[label] = column.dt.tz_localize(None)
        elif daily and pd.api.types.is_string_dtype(column.dtype):
            frame[label] = column.str.slice(0, len("2020-01-31"))
    return frame


def _too_large(label: str) -> BadAnswer:
    return BadAnswer(f"{label}: more than {MOST_BYTES // MIB} MiB. Split it into files of fewer years.")
