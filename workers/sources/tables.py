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
import pyarrow.compute as pc
import pyarrow.parquet as pq
from packaging.version import Version

from runner import frames
from runner.adjust import FACTORS
from runner.columns import OHLCV, PRICES, normal_name
from runner.errors import BadAnswer, BarsError, SettingsError
from workers.sources.days import trading_dates
from workers.sources.parse import DAY_NS, Floats, Times, interval_ns, quoted

MIB = 2**20
# 30 years of one-minute bars of a share are 200 MiB of CSV; what is larger belongs in several files.
MOST_BYTES = 256 * MIB
INTERVALS = ("1m", "5m", "15m", "30m", "1h", "2h", "4h", "1d", "1w", "1M")
GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
COUNTED_IN = ("s", "ms", "us", "ns")
NEEDED = (*OHLCV, *FACTORS, *frames.TIME_NAMES, *frames.SYMBOL_NAMES)
CELL_BYTES = 8
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
    except (LookupError, TypeError, AttributeError, RecursionError) as error:  # of what pandas writes beside the data
        raise BadAnswer(f"{label}: cannot be read as a table: {error!r}") from None
    return frame


def _parquet(body: bytes, label: str) -> pd.DataFrame:
    """The needed columns. A few bytes of Parquet can say a million times the same long text: sizes are known first."""
    plain = pq.ParquetFile(io.BytesIO(body))
    fields = _needed(plain.schema_arrow, label)
    # As a dictionary, repeated text is in memory once; how long it would be apart can then be counted.
    texts = [field.name for field in fields if _is_text(field.type)]
    if _stored_bytes(plain.metadata, {field.name for field in fields}) > MOST_BYTES:
        raise _too_large(label)
    table = pq.ParquetFile(io.BytesIO(body), read_dictionary=texts).read([field.name for field in fields])
    if sum(_text_bytes(table[name]) for name in texts) > MOST_BYTES:
        raise _too_large(label)
    for name in texts:
        table = table.set_column(table.schema.get_field_index(name), name, table[name].cast(pa.string()))
    frame: pd.DataFrame = table.to_pandas(date_as_object=False)
    return frame


def _needed(schema: pa.Schema, label: str) -> list[pa.Field]:
    """Fields to read: those with our names and the index; without prices by name, all numbers, so as to name them."""
    if len(set(schema.names)) < len(schema.names):
        raise BadAnswer(f"{label}: two columns have the same name: rename or drop one of them.")
    by_name = {normal_name(name) for name in schema.names}.issuperset(PRICES)
    index = (schema.pandas_metadata or {"index_columns": ()})["index_columns"]
    fields: list[pa.Field] = []
    for field in schema:
        meant = normal_name(field.name) in NEEDED or field.name in index
        if (_is_number(field.type) and (meant or not by_name)) or (_is_text(field.type) and meant):
            fields.append(field)
        elif meant:
            raise BadAnswer(f"{label}: column {field.name!r} is of type {field.type}: expected numbers, times or text.")
    return fields


def _is_number(kind: pa.DataType) -> bool:
    of = pa.types
    return any(is_one(kind) for is_one in (of.is_integer, of.is_floating, of.is_boolean, of.is_timestamp, of.is_date))


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(is_one(kind) for is_one in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def _stored_bytes(metadata: pq.FileMetaData, names: set[str]) -> int:
    """Of these columns, uncompressed: as they stand in the file, or as numbers when that is more."""
    total = 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for chunk in map(group.column, range(group.num_columns)):
            if chunk.path_in_schema in names:
                cells = max(chunk.num_values, group.num_rows)
                total += max(chunk.total_uncompressed_size, cells * CELL_BYTES)
    return total


def _text_bytes(column: pa.ChunkedArray) -> int:
    """At most so many when each cell holds its own text."""
    longest = [pc.max(pc.binary_length(chunk.dictionary)).as_py() or 0 for chunk in column.chunks]
    return len(column) * max(longest, default=0)


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
