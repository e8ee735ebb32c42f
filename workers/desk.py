"""The fetch worker's desk: one event loop, one HTTP client, one cache of market data for the whole process."""

from __future__ import annotations

import os
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import redis.asyncio

from runner import settings
from workers.cache import TieredCache
from workers.loop import loop_thread
from workers.market import PIECES_AT_ONCE, SCHEMA, Market, decode, encode, size_bytes
from workers.resources import Resources
from workers.session import HttpClient

T = TypeVar("T")

# Twice the pieces under way at once (`workers.market`): each asks, and may wait for another's word meanwhile. Beyond
# them a question waits for its turn; redis-py's own pool would call that an outage.
CONNECTIONS = 2 * PIECES_AT_ONCE


def connected(url: str) -> redis.asyncio.Redis:
    """A client with as many connections as a process needs, and no more."""
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=None, socket_connect_timeout=5, health_check_interval=15
    )
    return redis.asyncio.Redis.from_pool(pool)


class Desk:
    """Opened on first use, on the loop that uses it; closed with the process."""

    def __init__(self, held: Resources) -> None:
        self._held = held
        self._market: Market | None = None
        self._closers: list[Callable[[], Coroutine[Any, Any, None]]] = []

    def run(self, call: Callable[[Market], Coroutine[Any, Any, T]]) -> T:
        """Await ``call(market)`` on the process's event loop; from any thread but the loop's own."""
        return loop_thread().run(self._called(call))

    def close(self) -> None:
        """Close connections and the loop."""
        loop_thread().run(self._close(), timeout_s=5)
        loop_thread().close()

    async def _called(self, call: Callable[[Market], Coroutine[Any, Any, T]]) -> T:
        return await call(self._market or self._open())

    def _open(self) -> Market:
        # Between the question and the answer no other coroutine runs: there is one market.
        known = settings.load()
        url = known.cache_url.get_secret_value() if known.cache_url else self._held.url
        server = connected(url)
        http = HttpClient(server=server, contact=known.contact)
        cache = TieredCache(server, namespace=f"market{SCHEMA}", encode=encode, decode=decode, size=size_bytes)
        self._held.tally.watch(http.stats)
        self._held.tally.watch(cache.stats)
        self._closers = [cache.close, http.close, server.aclose]
        self._market = Market(http, cache)
        return self._market

    async def _close(self) -> None:
        for close in self._closers:
            await close()


_desks: dict[int, Desk] = {}


def desk(held: Resources) -> Desk:
    """This process's desk."""
    return _desks.setdefault(os.getpid(), Desk(held))  # making one opens nothing: two threads may, one is kept
