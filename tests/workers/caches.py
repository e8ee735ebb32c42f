"""Caches as if in processes of their own, and a provider that counts its calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import redis.asyncio

from workers.cache import Entry, Loaded, TieredCache

Cache = TieredCache[bytes]
PREFIX = "runner:cache:t:"


def cache_on(client: redis.asyncio.Redis | None, **options: Any) -> Cache:
    return TieredCache(client, namespace="t", encode=bytes, decode=bytes, size=len, **options)


@asynccontextmanager
async def caches(url: str | None, n: int = 1) -> AsyncIterator[list[Cache]]:
    """As many as if they were in processes of their own; nothing of them is left when the block ends."""
    async with AsyncExitStack() as stack:
        made = []
        for _ in range(n):
            client = None if url is None else redis.asyncio.Redis.from_url(url)
            if client is not None:
                stack.push_async_callback(client.aclose)
            made.append(cache_on(client))
            stack.push_async_callback(made[-1].close)
        yield made
    assert asyncio.all_tasks() == {asyncio.current_task()}


class Provider:
    """Counts its calls; each takes as long as `gate` is closed, then says `says`, or raises it."""

    def __init__(self, says: Loaded[bytes] | Exception | None = None) -> None:
        self.says = says or Loaded(b"value", ttl_s=60.0)
        self.calls = 0
        self.shown: list[Entry[bytes] | None] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked = asyncio.Event()

    async def __call__(self, entry: Entry[bytes] | None) -> Loaded[bytes]:
        self.calls += 1
        self.shown.append(entry)
        self.asked.set()
        await self.gate.wait()
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await main()

    asyncio.run(limited())
