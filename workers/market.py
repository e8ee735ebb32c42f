"""From a request to prices: calendar spans → cache → source → Bars."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import socket
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from runner import codec, errors
from runner.adjust import adjusted
from runner.bars import Bars
from runner.columns import PRICES, shown_time
from runner.errors import BadAnswer, BarsError, FetchError, NoData, SourceUnavailable, SymbolUnknown
from runner.source import Source
from runner.store import SYMBOL_TIMEOUT_S
from workers.cache import Entry, Loaded, TieredCache
from workers.room import Room
from workers.session import HttpClient
from workers.sources import protocol, registry
from workers.sources.parse import interval_ns
from workers.sources.protocol import Ask, Table, Unchanged
from workers.spans import EARLIEST_NS, SECOND_NS, Span, spans

# Part of every key: another number when the meaning of what is stored changes, so that nothing old is read.
SCHEMA = 1
# A span that has ended does not change; a month bounds what a provider's late correction can cost.
CLOSED_TTL_S = 30 * 86_400.0
# Providers publish late and correct within days (Wikipedia the next day): until then a span counts as open.
SETTLED_AFTER_NS = 2 * 86_400 * SECOND_NS
# An open span is asked for again when its next bar has closed, but at least once an hour and at most twice a minute.
OPEN_TTL_LOW_S, OPEN_TTL_HIGH_S = 30.0, 3_600.0
# Questions to the cache under way at once in a process. At 32 the server's deadline of 2 s holds with pieces of a
# megabyte, and the pages of a slow provider (10 a second, 30 a piece) have their turn within a request's 300 s.
PIECES_AT_ONCE = 32
# Bars of one request: five years of minutes are 2.6 million. More than this is a slip, such as 1s since 2017.
MOST_BARS = 10_000_000
# Bars of all symbols under way in a process: raw, joined and packed they take about 150 bytes each, 450 MB in all.
BARS_AT_ONCE = 3_000_000
# What is expected of a source whose whole history comes at once: decades of days.
BARS_OF_ALL = 20_000
# How much longer a stale copy is kept for the time when the provider does not answer.
GRACE_S = 7 * 86_400.0
UNKNOWN_TTL_S = 3_600.0
EMPTY_TTL_S = 600.0
EMPTY_CLOSED_TTL_S = 86_400.0
FILLS = {"split": 1.0, "dividend": 0.0}


@dataclass(frozen=True, slots=True)
class Prices:
    """What a request came to.

    Attributes:
        kind: "bars", or "series" of one value a time.
        blob: as `Bars.from_bytes` or, of a series, `runner.codec.unpack` reads it.
        digest: names the content.
        n: bars or values.
        stale_since_s: when it was fetched, if it is from the cache because the provider did not answer; else None.
    """

    kind: Literal["bars", "series"]
    blob: bytes
    digest: str
    n: int
    stale_since_s: float | None


class Market:
    """One process's way to the providers. Belongs to one event loop."""

    def __init__(self, http: HttpClient, cache: TieredCache[Table]) -> None:
        self._http = http
        self._cache = cache
        self._pieces = asyncio.Semaphore(PIECES_AT_ONCE)
        self._room = Room(BARS_AT_ONCE)

    def room(self, wanted: Source) -> AbstractAsyncContextManager[None]:
        """Held by whoever has one symbol's entries or prices in memory."""
        start_ns, end_ns = _range(wanted)
        expected = BARS_OF_ALL if wanted.start_ns is None else (end_ns - start_ns) // interval_ns(wanted.interval)
        return self._room.taken(expected)

    async def entries(self, wanted: Source, symbol: str) -> list[Entry[Table]]:
        """The cached or freshly loaded spans of one symbol, oldest first; those without any row are left out.

        Raises:
            InputError: no such source, option or interval.
            FetchError: what the provider says, or that it says nothing, with provider, symbol and range.
        """
        source = registry.source(wanted.provider)
        registry.check(source, wanted.interval, wanted.options)
        try:
            async with asyncio.timeout(SYMBOL_TIMEOUT_S):
                return await self._all(source, wanted, symbol)
        except TimeoutError:
            raise SourceUnavailable(
                f"{_named(wanted, symbol)}: not there after {SYMBOL_TIMEOUT_S:g} s; ask for less at once, or again: "
                "what has come is in the cache."
            ) from None

    async def _all(self, source: protocol.Source, wanted: Source, symbol: str) -> list[Entry[Table]]:
        pieces = _pieces(source, wanted, symbol)
        if not pieces:
            raise NoData(f"{_named(wanted, symbol)}: this range has not begun yet.")
        # The newest alone first: of a symbol that does not exist the provider is asked once, not once a span.
        newest = await self._entry(source, wanted, symbol, pieces[-1])
        rest: list[Entry[Table]] = []
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._entry(source, wanted, symbol, piece)) for piece in pieces[:-1]]
            rest = [task.result() for task in tasks]
        except* FetchError as group_error:
            raise group_error.exceptions[0] from None
        return [entry for entry in (*rest, newest) if entry.value is not None]

    async def _entry(self, source: protocol.Source, wanted: Source, symbol: str, piece: Span) -> Entry[Table]:
        load = partial(self._load, source, wanted, symbol, piece)
        async with self._pieces:
            entry = await self._cache.get(_key(source, wanted, symbol, piece), load)
        if entry.value is None:
            said = json.loads(entry.note)
            if said["kind"] != NoData.__name__:
                raise getattr(errors, said["kind"])(said["message"])
        return entry

    async def _load(
        self, source: protocol.Source, wanted: Source, symbol: str, piece: Span, old: Entry[Table] | None
    ) -> Loaded[Table]:
        now_ns = time.time_ns() // SECOND_NS * SECOND_NS  # messages name the range
        ask = Ask(
            symbol=symbol,
            interval=wanted.interval,
            start_ns=piece.start_ns,
            end_ns=min(piece.end_ns, now_ns),
            now_ns=now_ns,
            options=wanted.options,
            etag=old.etag if old and old.value is not None else "",
            last_modified=old.last_modified if old and old.value is not None else "",
        )
        bar_ns = interval_ns(wanted.interval)
        own_ttl_s = getattr(source, "ttl_s", None)  # a user's source may lack it
        ttl_s = _ttl_s(piece, bar_ns, now_ns) if own_ttl_s is None else own_ttl_s
        try:
            table = await source.load(ask, self._http)
        except Unchanged:
            return Loaded(None, ttl_s=ttl_s, grace_s=GRACE_S, unchanged=True)
        except SymbolUnknown as error:
            return Loaded(None, ttl_s=UNKNOWN_TTL_S, note=_note(error))
        except NoData as error:
            empty_s = EMPTY_CLOSED_TTL_S if _settled(piece, bar_ns, now_ns) else min(EMPTY_TTL_S, ttl_s)
            return Loaded(None, ttl_s=empty_s, note=_note(error))
        checked(table, source.kind, ask, _named(wanted, symbol))
        return Loaded(table, ttl_s=ttl_s, grace_s=GRACE_S, etag=table.etag, last_modified=table.last_modified)


def prices(wanted: Source, symbol: str, entries: Sequence[Entry[Table]]) -> Prices:
    """The spans as one: cut to the range, adjusted, checked.

    Raises:
        NoData: nothing lies in the range.
        BadAnswer: what the provider sent is no prices.
    """
    start_ns, end_ns = _range(wanted)
    tables = [entry.value for entry in entries if entry.value is not None]
    stamps = np.concatenate([table.time for table in tables]) if tables else np.empty(0, np.int64)
    inside = (stamps >= start_ns) & (stamps < end_ns)
    if not inside.any():
        raise NoData(f"{_named(wanted, symbol)}: the provider has nothing in this range; choose another.")
    columns = {name: column[inside] for name, column in _joined(tables).items()}
    stamps = stamps[inside]
    stale = [entry.fetched_at_s for entry in entries if entry.stale]
    since = min(stale) if stale else None
    if "value" in columns:
        blob = codec.pack(stamps, columns, {"symbol": symbol})
        return Prices("series", blob, hashlib.sha256(blob).hexdigest(), len(stamps), since)
    try:
        columns = adjusted(stamps, columns, wanted.adjust)
        named: dict[str, Any] = {name: columns.pop(name, None) for name in ("open", "high", "low", "close", "volume")}
        bars = Bars(time=stamps, **named, extra=columns, symbol=symbol)
    except BarsError as error:
        raise BadAnswer(f"{_named(wanted, symbol)}: what came cannot be backtested: {error}") from error
    return Prices("bars", bars.to_bytes(), bars.digest, len(bars), since)


def checked(table: Table, kind: protocol.Kind, ask: Ask, named: str) -> None:
    """BadAnswer when a source, perhaps a user's own, breaks its word: nothing wrong is ever cached."""
    time, columns = table.time, table.columns
    needed = PRICES if kind == "bars" else ("value",)
    wrong = [f"no column {name!r}" for name in needed if name not in columns]
    for name, column in columns.items():
        if column.shape != time.shape or column.dtype != np.float64:
            wrong.append(f"column {name!r} is {column.dtype}{list(column.shape)}")
        elif not np.isfinite(column).all():
            wrong.append(f"column {name!r} holds what is no finite number")
    if time.dtype != np.int64 or (np.diff(time) <= 0).any():
        wrong.append("time is no int64, or not in order")
    elif len(time) and not ask.start_ns <= time[0] <= time[-1] < ask.end_ns:
        wrong.append("there are rows outside the span that was asked for")
    if kind == "bars" and not wrong and (columns["high"] < columns["low"]).any():
        wrong.append("a high is below its low")
    if wrong:
        raise BadAnswer(f"{named}: the source did not keep its word ({'; '.join(wrong)}): it was not kept.")


def encode(table: Table) -> bytes:
    """A table as the cache stores it; its validators stand in the cache's own header."""
    return codec.pack(table.time, dict(table.columns), {})


def decode(blob: bytes) -> Table:
    """The inverse of `encode`; the columns are read-only."""
    stamps, named, _ = codec.unpack(blob)
    return Table(stamps, named)


def size_bytes(table: Table) -> int:
    """What a table takes in memory."""
    return int(table.time.nbytes + sum(column.nbytes for column in table.columns.values()))


def _pieces(source: protocol.Source, wanted: Source, symbol: str) -> list[Span]:
    unit = source.unit(wanted.interval)
    if wanted.start_ns is None and unit != "all":
        raise errors.SettingsError(
            f"{_named(wanted, symbol)}: {wanted.provider} has no end of history: say start=, such as '2018-01-01'."
        )
    start_ns, end_ns = _range(wanted)
    if unit != "all" and (bars := (end_ns - start_ns) // interval_ns(wanted.interval)) > MOST_BARS:
        raise errors.SettingsError(
            f"{_named(wanted, symbol)}: up to {bars:,} bars, at most {MOST_BARS:,} are fetched at once: "
            "take a longer interval or a shorter range."
        )
    return list(spans(unit, start_ns, end_ns))


def _range(wanted: Source) -> tuple[int, int]:
    """What can be there: an end in the future is now."""
    now_ns = time.time_ns()
    start_ns = EARLIEST_NS if wanted.start_ns is None else wanted.start_ns
    return start_ns, now_ns if wanted.end_ns is None else min(wanted.end_ns, now_ns)


def _joined(tables: Sequence[Table]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for table in tables for name in table.columns)
    return {
        name: np.concatenate(
            [table.columns.get(name, np.full(len(table.time), FILLS.get(name, np.nan))) for table in tables]
        )
        for name in names
    }


def _settled(piece: Span, bar_ns: int, now_ns: int) -> bool:
    """Whether nothing more will come: its last bar has closed, and providers have had time to publish and correct."""
    return piece.end_ns + max(SETTLED_AFTER_NS, bar_ns) <= now_ns


def _ttl_s(piece: Span, bar_ns: int, now_ns: int) -> float:
    if _settled(piece, bar_ns, now_ns):
        return CLOSED_TTL_S
    until_next_close_s = (bar_ns - now_ns % bar_ns) / SECOND_NS
    return min(max(until_next_close_s, OPEN_TTL_LOW_S), OPEN_TTL_HIGH_S)


def _key(source: protocol.Source, wanted: Source, symbol: str, piece: Span) -> str:
    """Readable in front, exact behind: everything that changes the content is in the digest."""
    host = socket.gethostname() if getattr(source, "local", False) else ""
    exact = json.dumps(
        [wanted.provider, symbol, wanted.interval, dict(wanted.options), piece.name, host], sort_keys=True
    )
    shown = re.sub(r"[^A-Za-z0-9._-]+", "_", _shown(symbol))[:40]
    digest = hashlib.sha256(exact.encode()).hexdigest()[:16]
    return f"{wanted.provider}:{shown}:{wanted.interval}:{piece.name}:{digest}"


def _note(error: FetchError) -> str:
    return json.dumps({"kind": type(error).__name__, "message": str(error)})


def _named(wanted: Source, symbol: str) -> str:
    start = "" if wanted.start_ns is None else shown_time(wanted.start_ns)
    end = "now" if wanted.end_ns is None else shown_time(wanted.end_ns)
    return f"{wanted.provider}: {_shown(symbol)} {wanted.interval} {start}..{end}"


def _shown(symbol: str) -> str:
    """Of an address without its query, which may hold a key."""
    return symbol.partition("?")[0]
