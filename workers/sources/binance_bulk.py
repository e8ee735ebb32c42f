"""Binance's archive of spot klines: a zip a month, one a day while the month's is not out, each with its checksum.

Format: github.com/binance/binance-public-data, README.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import re
import zipfile
import zlib
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from pyarrow import csv

from runner.errors import BadAnswer, NoData, SymbolUnknown
from workers.session import HttpClient, Request, Response
from workers.sources import parse
from workers.sources.parse import DAY_NS, Floats, Times
from workers.sources.protocol import Ask, Kind, Table, Unchanged, Unit, Usual

BASE_URL = "https://data.binance.vision"
# A month's file is out on the first Monday of the next one. Until the month after is over, a missing one may be late,
# and the days are asked for; from then on the symbol was not listed in that month.
LATE_DAYS = 35

# A day of seconds is about 10 MB of text, a month of minutes 5 MB.
UNPACKED_BYTES = 64 * 2**20
ZIP_BYTES = 32 * 2**20
CHECKSUM_BYTES = 4096

SYMBOL = re.compile(r"\w[\w-]{0,39}")
CHECKSUM = re.compile(r"([0-9a-f]{64})\s+\*?(\S+)\s*")
COLUMNS = ("time", "open", "high", "low", "close", "volume", *(f"unused{i}" for i in range(6)))
KEPT = COLUMNS[:6]

# 3d, 1w and 1M have no daily files, so their running month could not be had.
INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d")
UNITS: dict[str, Unit] = {"s": "day", "m": "month", "h": "year", "d": "year"}


@dataclass(frozen=True, slots=True)
class File:
    """One file of the archive.

    Attributes:
        folder: "monthly" or "daily".
        period: "2024-05" or "2024-05-31".
        start_ns, end_ns: what it covers, end exclusive.
        digest: SHA-256 of the zip, in hex; "" while it is not known.
    """

    folder: str
    period: str
    start_ns: int
    end_ns: int
    digest: str = ""


class BinanceBulk(Usual):
    """Whole files, so far fewer requests than by REST; complete up to yesterday."""

    name = "binance_bulk"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = INTERVALS
    options: tuple[str, ...] = ()

    def unit(self, interval: str) -> Unit:
        """The calendar unit of one cached entry."""
        return UNITS[interval[-1]]

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """The span's bars; see `workers.sources.protocol.Source.load`. The checksums serve as the validator."""
        label = parse.where(self.name, ask)
        if not SYMBOL.fullmatch(ask.symbol):
            raise SymbolUnknown(f"{label}: no such symbol. Binance spells them without a separator, such as BTCUSDT.")
        files = await _published(ask, http, label)
        if not files:
            raise NoData(
                f"{label}: the archive has no file for this range. Is the symbol spelt as Binance does (BTCUSDT), was "
                "it listed then, and is the range older than a day?"
            )
        etag = hashlib.sha256("\n".join(f"{file.digest} {file.period}" for file in files).encode()).hexdigest()
        if etag == ask.etag:
            raise Unchanged
        zips = await parse.answers(http, [_request(ask, file, "", ZIP_BYTES) for file in files], label)
        parts = [
            await asyncio.to_thread(_read, packed, file, _name(ask, file), label)
            for packed, file in zip(zips, files, strict=True)
        ]
        time = np.concatenate([time for time, _ in parts])
        columns = {name: np.concatenate([columns[name] for _, columns in parts]) for name in KEPT[1:]}
        return parse.table(ask, time, columns, label, etag=etag)


async def _published(ask: Ask, http: HttpClient, label: str) -> list[File]:
    """The files that there are for the span, with their digests, oldest first."""
    end_ns = min(ask.end_ns, ask.now_ns)
    if ask.interval.endswith("s"):  # a day of it is as large as a month of minutes
        return await _with_digests(ask, _periods("D", ask.start_ns, end_ns, ask.now_ns), http, label)
    months = _periods("M", ask.start_ns, end_ns, ask.now_ns)
    found = await _with_digests(ask, months, http, label)
    covered_ns = max((file.end_ns for file in found), default=ask.start_ns)
    recent_ns = _ns(np.datetime64(ask.now_ns - LATE_DAYS * DAY_NS, "ns").astype("datetime64[M]"))
    days = _periods("D", max(covered_ns, ask.start_ns, recent_ns), end_ns, ask.now_ns)
    return found + await _with_digests(ask, days, http, label)


def _periods(unit: str, start_ns: int, end_ns: int, now_ns: int) -> list[File]:
    """The calendar's months (M) or days (D) that reach into the span and are over."""
    folder = "monthly" if unit == "M" else "daily"
    first = np.datetime64(start_ns, "ns").astype(f"datetime64[{unit}]")
    files = []
    while (begin := _ns(first)) < end_ns and (end := _ns(first + 1)) <= now_ns:
        files.append(File(folder, str(first), begin, end))
        first += 1
    return files


def _ns(date: np.datetime64) -> int:
    return int(date.astype("datetime64[ns]").astype(np.int64))


async def _with_digests(ask: Ask, files: list[File], http: HttpClient, label: str) -> list[File]:
    """Those of the files that exist, with what their .CHECKSUM says."""
    asked = [_request(ask, file, ".CHECKSUM", CHECKSUM_BYTES) for file in files]
    told = await parse.answers(http, asked, label)
    return [
        replace(file, digest=_digest(answer, _name(ask, file), label))
        for file, answer in zip(files, told, strict=True)
        if answer.status != 404  # "not there", with a page of XML
    ]


def _digest(answer: Response, name: str, label: str) -> str:
    if answer.status != 200:
        raise parse.status_error(answer, label)
    match = CHECKSUM.fullmatch(answer.body.decode("utf-8", "replace"))
    if not match or match[2] != f"{name}.zip":
        raise BadAnswer(f"{label}: expected the SHA-256 of {name}.zip, got {parse.quoted(answer.body)}.")
    return match[1]


def _name(ask: Ask, file: File) -> str:
    return f"{ask.symbol}-{ask.interval}-{file.period}"


def _request(ask: Ask, file: File, suffix: str, max_bytes: int) -> Request:
    base, private = parse.base_url(ask, BASE_URL)
    return Request(
        f"{base}/data/spot/{file.folder}/klines/{ask.symbol}/{ask.interval}/{_name(ask, file)}.zip{suffix}",
        deadline_s=parse.DEADLINE_S,
        max_bytes=max_bytes,
        cache_ttl_s=0,  # files are re-issued, and the checksum and its zip have to be of the same day
        private=private,
    )


def _read(answer: Response, file: File, name: str, label: str) -> tuple[Times, dict[str, Floats]]:
    """The rows of one zip, its checksum verified."""
    if answer.status != 200:
        raise parse.status_error(answer, label)
    found = hashlib.sha256(answer.body).hexdigest()
    if found != file.digest:
        raise BadAnswer(f"{label}: {name}.zip has SHA-256 {found}, its checksum says {file.digest}. Ask again later.")
    time, columns = _columns(_unpacked(answer.body, f"{name}.csv", label), f"{label}: {name}.csv")
    parse.check_inside(time, file.start_ns, file.end_ns, label)
    return time, columns


def _unpacked(packed: bytes, member: str, label: str) -> bytes:
    """The zip's one member. It stays in memory, whatever path its name may hold."""
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            names = [(info.filename, info.file_size) for info in archive.infolist()]
            if [name for name, _ in names] != [member] or names[0][1] > UNPACKED_BYTES:
                raise BadAnswer(
                    f"{label}: the zip holds {parse.quoted(names)}, expected {member} alone, of at most "
                    f"{UNPACKED_BYTES:,} bytes."
                )
            with archive.open(member) as content:
                text = content.read(UNPACKED_BYTES + 1)  # the size it tells need not be true
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise BadAnswer(f"{label}: the zip of {member} cannot be unpacked: {error}.") from error
    if len(text) > UNPACKED_BYTES:
        raise BadAnswer(f"{label}: {member} is more than {UNPACKED_BYTES:,} bytes.")
    return text


def _columns(text: bytes, label: str) -> tuple[Times, dict[str, Floats]]:
    """Times and prices of a CSV of twelve columns, with or without a header row."""
    try:
        read = csv.read_csv(
            pa.py_buffer(text),
            read_options=csv.ReadOptions(
                column_names=COLUMNS, skip_rows=0 if text[:1].isdigit() else 1, use_threads=False
            ),
            convert_options=csv.ConvertOptions(
                include_columns=KEPT,
                column_types={"time": pa.int64(), **dict.fromkeys(KEPT[1:], pa.float64())},
                null_values=[""],
            ),
        )
    except pa.ArrowInvalid as error:
        raise BadAnswer(f"{label}: expected twelve columns of numbers: {parse.quoted(error)}.") from None
    columns = {}
    for name in KEPT:
        nulls = read[name].null_count
        values = read[name].to_numpy()
        # A number missing is null and NaN here; "nan" and "inf" as text are none of Binance's.
        if (name == "time" and nulls) or int((~np.isfinite(values)).sum()) != nulls:
            raise BadAnswer(f"{label}: column {name} holds something that is no finite number.")
        columns[name] = values
    return parse.to_ns(columns.pop("time")), columns
