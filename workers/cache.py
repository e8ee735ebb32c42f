"""The cache of market data: this process's memory, then the server's, then the provider, which is asked once."""

from __future__ import annotations

import asyncio
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import redis.asyncio

from runner.errors import BadAnswer, RunnerError, SourceUnavailable
from workers.flight import Claim, Flight
from workers.local_cache import LIMIT_BYTES, LocalCache
from workers.server import Server, ServerAway, ended
from workers.shelf import Head, Shelf

V = TypeVar("V")
A = TypeVar("A")
B = TypeVar("B")
Tier = Literal["l1", "l2", "load"]

logger = logging.getLogger(__name__)

KEY = "runner:cache:"
# Entries written together do not expire together.
JITTER = 0.1
# XFetch: 1 is the best choice for load times that hardly vary (Vattani, Chierichetti, Lowenstein 2015).
BETA = 1.0
# Earlier than this many load times before the end, a refresh is drawn once in nine million questions: not even drawn.
EARLIEST_LOADS = 16.0
# A loader that takes longer gives its turn to another. Rate limits make providers' histories slow.
LONGEST_LOAD_S = 900.0
# From here on a value is packed and unpacked in a thread: about 5 ms of work, against 0.1 ms for the thread.
ASIDE_BYTES = 2**20
# What an entry takes beside its value: key, header, dictionaries.
ENTRY_BYTES = 1024


class Closed(RunnerError):
    """The process is about to end: nobody's answer, and no fault of the provider."""


@dataclass(frozen=True, slots=True)
class Loaded(Generic[V]):
    """What a provider said.

    Attributes:
        value: None is an answer too, a negative entry; ``note`` says why.
        ttl_s: seconds that it is fresh, give or take a tenth.
        grace_s: seconds after that in which it may stand in for a provider that does not answer.
        etag, last_modified: validators for asking again.
        note: short text.
        unchanged: the entry that was passed in is still right: it stays, for ttl_s from now on.
    """

    value: V | None
    ttl_s: float
    grace_s: float = 0.0
    etag: str = ""
    last_modified: str = ""
    note: str = ""
    unchanged: bool = False


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """An answer. Values are shared by all who ask: never change one.

    Attributes:
        value: None of a negative entry.
        note: of a negative entry, why.
        fetched_at_s: when the provider sent or confirmed it, seconds since 1970.
        fresh_until_s: until when it is not asked for again.
        etag, last_modified: its validators.
        stale: it is past that time, and here because the provider does not answer.
        tier: where it came from this time.
    """

    value: V | None
    note: str
    fetched_at_s: float
    fresh_until_s: float
    etag: str
    last_modified: str
    stale: bool
    tier: Tier


# Asks the provider; is given the entry that there is, stale or soon to be.
Load: TypeAlias = Callable[[Entry[V] | None], Awaitable[Loaded[V]]]


@dataclass(slots=True)
class _Kept(Generic[V]):
    """An entry with its header; from `due_from_s` on, a question may start an early refresh, or find it stale."""

    entry: Entry[V]
    head: Head
    due_from_s: float


class TieredCache(Generic[V]):
    """``get`` looks in memory (L1), on the server (L2), then loads: one load a key at a time, over all processes.

    Belongs to the event loop that first uses it. A server that is away makes it slower, never wrong: then each process
    loads for itself. The clocks of the hosts have to agree to within seconds.

    Args:
        server: answers bytes, and stays open as long as this; None for memory alone.
        namespace: separates caches on one server; name the version of the encoding in it.
        encode, decode: value to bytes and back; what decode does not understand, by whatever error, is a miss.
        size: a value's bytes in memory.
        l1_bytes: memory for values.
    """

    def __init__(
        self,
        server: redis.asyncio.Redis | None,
        *,
        namespace: str,
        encode: Callable[[V], bytes],
        decode: Callable[[bytes], V],
        size: Callable[[V], int],
        l1_bytes: int = LIMIT_BYTES,
    ) -> None:
        prefix = f"{KEY}{namespace}:"
        self._server = Server(server)
        self._shelf = Shelf(self._server, prefix)
        self._flight = Flight(self._server, prefix)
        self._encode, self._decode, self._size = encode, decode, size
        self._l1: LocalCache[_Kept[V]] = LocalCache(l1_bytes)
        self._loads: dict[str, asyncio.Task[_Kept[V]]] = {}
        self._l1_hits = self._l1_misses = 0
        self._counts: Counter[str] = Counter()

    async def get(self, key: str, load: Load[V]) -> Entry[V]:
        """The key's entry, fresh, or stale when the provider does not answer.

        A cancelled caller leaves the load to the others who wait for it, and to the cache.

        Args:
            key: what is asked for, without the namespace.
            load: asks the provider; gets the entry that there is, for its validators and its value.

        Raises:
            FetchError: what ``load`` raised, here or in the process that loaded; it is not kept. SourceUnavailable
                only when no entry within its grace can stand in.
        """
        kept = self._l1.get(key)
        if kept is None or (time.time() >= kept.due_from_s and not self._still_fresh(key, load, kept)):
            return await self._missed(key, load, kept)
        self._l1_hits += 1
        if kept.entry.value is None:
            self._counts["cache_negative_hits"] += 1
        return kept.entry

    async def close(self) -> None:
        """Cancel what is being loaded; the server's client stays open, it is its owner's."""
        while self._loads:
            await asyncio.gather(*[ended(flight) for flight in self._loads.values()])
        await self._flight.close()

    def stats(self) -> dict[str, int]:
        """Counters that only grow.

        ``cache_requests`` = l1_hits + l2_hits + shared_flights + those whose own question became a load.
        ``cache_loads`` are calls of ``load``, early refreshes included: 1 - loads / requests is the overall hit rate.
        """
        own = (
            "cache_l2_hits", "cache_loads", "cache_load_errors", "cache_negative_hits", "cache_stale_served",
            "cache_shared_flights", "cache_early_refreshes", "cache_fenced",
        )  # fmt: skip
        return {
            "cache_requests": self._l1_hits + self._l1_misses,
            "cache_l1_hits": self._l1_hits,
            **{name: self._counts[name] for name in own},
            "cache_l2_errors": self._server.errors,
            "cache_damaged": self._shelf.damaged + self._counts["undecoded"],
        }

    # One flight a key in this process

    async def _missed(self, key: str, load: Load[V], stale: _Kept[V] | None) -> Entry[V]:
        self._l1_misses += 1
        flight = self._loads.get(key)
        joined = flight is not None
        if flight is None:
            flight = self._start(key, self._found(key, load, stale))
        try:
            kept = await asyncio.shield(flight)
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if flight.cancelled() and me is not None and not me.cancelling():
                raise Closed(f"{key}: the cache was closed while this was being loaded.") from None
            raise
        entry = kept.entry
        self._counts["cache_shared_flights"] += joined
        self._counts["cache_l2_hits"] += entry.tier == "l2" and not entry.stale and not joined
        self._counts["cache_negative_hits"] += entry.value is None and entry.tier != "load"
        self._counts["cache_stale_served"] += entry.stale
        return entry

    def _start(self, key: str, coro: Coroutine[Any, Any, _Kept[V]]) -> asyncio.Task[_Kept[V]]:
        flight = self._loads[key] = asyncio.create_task(coro)
        flight.add_done_callback(partial(self._ended, key))
        return flight

    def _ended(self, key: str, flight: asyncio.Task[_Kept[V]]) -> None:
        if self._loads.get(key) is flight:
            del self._loads[key]
        if not flight.cancelled():
            flight.exception()  # perhaps nobody waits any more

    def _still_fresh(self, key: str, load: Load[V], kept: _Kept[V]) -> bool:
        """Whether it is; if so, the nearer its end, the likelier a refresh begins (XFetch), at most once an entry."""
        now, fresh_until_s = time.time(), kept.head.fresh_until_s
        if now >= fresh_until_s:
            return False
        drawn_s = -kept.head.load_s * BETA * math.log(1.0 - random.random())  # noqa: S311 - spreads load, guards nothing
        if now + drawn_s >= fresh_until_s and key not in self._loads:
            kept.due_from_s = fresh_until_s
            self._counts["cache_early_refreshes"] += 1
            self._start(key, self._refreshed(key, load, kept))
        return True

    async def _refreshed(self, key: str, load: Load[V], kept: _Kept[V]) -> _Kept[V]:
        try:
            return await self._settled(key, load, kept)
        except Exception as error:
            logger.warning("early refresh of %s: %r", key, error)  # whoever joined it raises it too
            raise

    # What a flight does

    async def _found(self, key: str, load: Load[V], stale: _Kept[V] | None) -> _Kept[V]:
        have = await self._read(key)
        if have is not None and not have.entry.stale:
            self._keep(key, have)
            return have
        known = [_kept(kept.head, kept.entry.value, kept.entry.tier) for kept in (have, stale) if kept is not None]
        return await self._settled(key, load, max(known, key=lambda kept: kept.head.fetched_at_s, default=None))

    async def _settled(self, key: str, load: Load[V], have: _Kept[V] | None) -> _Kept[V]:
        """A newer entry than the one we have, else that one while it is good enough for a provider that is away."""
        try:
            kept = await self._newest(key, load, have)
        except SourceUnavailable:
            if have is None or time.time() >= have.head.stale_until_s:
                raise
            return _kept(have.head, have.entry.value, have.entry.tier)
        self._keep(key, kept)
        return kept

    async def _newest(self, key: str, load: Load[V], have: _Kept[V] | None) -> _Kept[V]:
        try:
            turn = await self._flight.turn(key, partial(self._newer, key, have))
        except ServerAway:
            return await self._load(key, load, have, None)
        if not isinstance(turn, Claim):
            return turn
        async with turn:
            return await self._load(key, load, have, turn)

    async def _newer(self, key: str, have: _Kept[V] | None) -> _Kept[V] | None:
        found = await self._read(key)
        if found is None or found.entry.stale:
            return None
        return None if have is not None and found.head.fetched_at_s <= have.head.fetched_at_s else found

    async def _read(self, key: str) -> _Kept[V] | None:
        """The server's entry, None when there is none that can be read and may still be used."""
        found = await self._shelf.read(key)
        if found is None or time.time() >= found[0].stale_until_s:
            return None
        head, blob = found
        try:
            value = None if head.negative else await _aside(self._decode, blob, len(blob))
        except Exception as error:  # noqa: BLE001 - decode meets bytes of another version: whatever it raises, a miss
            self._counts["undecoded"] += 1
            logger.warning("entry %s cannot be decoded: %r", key, error)
            return None
        return _kept(head, value, "l2")

    async def _load(
        self,
        key: str,
        load: Load[V],
        have: _Kept[V] | None,
        claim: Claim | None,
    ) -> _Kept[V]:
        """Ask the provider; what it says is written to the server under a claim only."""
        self._counts["cache_loads"] += 1
        began = time.monotonic()
        try:
            async with asyncio.timeout(LONGEST_LOAD_S) as limit:
                loaded = await load(have.entry if have else None)
        except Exception as error:
            self._counts["cache_load_errors"] += 1
            if isinstance(error, TimeoutError) and limit.expired():
                raise SourceUnavailable(f"{key}: not loaded within {LONGEST_LOAD_S:g} s; try again.") from None
            raise
        head, value = self._headed(key, loaded, have, time.monotonic() - began)
        if claim is not None:
            blob = b"" if value is None else await _aside(self._encode, value, self._size(value))
            head, allowed = await self._shelf.write(key, head, blob, claim.write, have.head if have else None)
            self._counts["cache_fenced"] += not allowed
        return _kept(head, value, "load")

    @staticmethod
    def _headed(key: str, loaded: Loaded[V], have: _Kept[V] | None, load_s: float) -> tuple[Head, V | None]:
        """The header, counted from now, and the value."""
        value, etag, last_modified, note = loaded.value, loaded.etag, loaded.last_modified, loaded.note
        if loaded.unchanged:
            if have is None:
                raise BadAnswer(f"{key}: the provider said that nothing has changed, but was not told since when.")
            value, old = have.entry.value, have.head
            etag, last_modified, note = etag or old.etag, last_modified or old.last_modified, note or old.note
        now = time.time()
        fresh_until_s = now + loaded.ttl_s * random.uniform(1 - JITTER, 1 + JITTER)  # noqa: S311 - as above
        stale_until_s = fresh_until_s + loaded.grace_s
        return Head(now, fresh_until_s, stale_until_s, load_s, etag, last_modified, note, negative=value is None), value

    def _keep(self, key: str, kept: _Kept[V]) -> None:
        lives_s = kept.head.stale_until_s - time.time()  # a stale one stands in when the server is away too
        size_bytes = ENTRY_BYTES + (0 if kept.entry.value is None else self._size(kept.entry.value))
        if lives_s > 0:
            self._l1.put(key, _kept(kept.head, kept.entry.value, "l1"), size_bytes, lives_s)


async def _aside(convert: Callable[[A], B], what: A, size_bytes: int) -> B:
    """In a thread when it is large: packing a month of minutes takes 3 ms, in which the loop can wait."""
    return convert(what) if size_bytes < ASIDE_BYTES else await asyncio.to_thread(convert, what)


def _kept(head: Head, value: V | None, tier: Tier) -> _Kept[V]:
    stale = tier != "load" and time.time() >= head.fresh_until_s
    entry = Entry(
        value, head.note, head.fetched_at_s, head.fresh_until_s, head.etag, head.last_modified, stale=stale, tier=tier
    )
    return _Kept(entry, head, head.fresh_until_s - EARLIEST_LOADS * head.load_s)
