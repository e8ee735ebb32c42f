"""Claims (b) and (c): what a hit costs in memory and on the server, and that one cold key is loaded once by all."""

from __future__ import annotations

import asyncio
import multiprocessing
import secrets
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import redis
import redis.asyncio

from benchmarks.codec import synthetic
from benchmarks.measure import Row, median, spread
from runner import codec, valkey
from workers.cache import Entry, Loaded, TieredCache

DAY_NS = 86_400 * 10**9
GETS, TARGET_US = 20_000, 3.0
L2_TARGET = 1.3
PROCESSES, CALLERS, LOAD_S = 8, 20, 0.3
COUNTER = "upstream"

Columns = tuple[Any, dict[str, Any], dict[str, str]]


def measure() -> list[Row]:
    """All rows, on one server of their own."""
    with server() as url:
        month = synthetic(43_200, price=42_000.0)
        year = synthetic(365, price=42_000.0, a_minute=0.02, step_ns=DAY_NS)
        return [
            asyncio.run(memory_hit()),
            asyncio.run(server_hit(url, "a year of daily bars", codec.pack(*year, {}))),
            asyncio.run(server_hit(url, "a month of one-minute bars", codec.pack(*month, {}))),
            cold_key(url),
        ]


@contextmanager
def server() -> Iterator[str]:
    """An empty Valkey that ends with the block."""
    with tempfile.TemporaryDirectory() as home:
        port, password = valkey.free_port(), secrets.token_hex(16)
        config = Path(home) / "valkey.conf"
        config.write_text(valkey.configuration(port=port, password=password, folder=Path(home)))
        url = f"redis://:{password}@127.0.0.1:{port}/0"
        with subprocess.Popen([str(valkey.find_server()), str(config)], stdout=subprocess.DEVNULL) as process:
            try:
                deadline = time.monotonic() + 30
                while not valkey.answers(url, process.pid):
                    assert time.monotonic() < deadline, "Valkey did not start"
                    time.sleep(0.02)
                yield url
            finally:
                process.terminate()


async def memory_hit(*, repeats: int = 9) -> Row:
    """One await of ``cache.get`` after the other, in one coroutine."""
    cache = cache_on(None)
    await cache.get("k", _never)
    costs = []
    for _ in range(repeats):
        began = time.perf_counter()
        for _ in range(GETS):
            await cache.get("k", _never)
        costs.append((time.perf_counter() - began) / GETS * 1e6)
    return Row(
        claim="one value from the cache in memory",
        figure=f"{spread(costs)} us",
        target=f"{TARGET_US:g} us",
        reached=median(costs) <= TARGET_US,
        made_of=f"{GETS:,} awaits, {repeats} times",
    )


async def server_hit(url: str, what: str, blob: bytes, *, repeats: int = 300) -> Row:
    """In turn: a cache whose memory is empty, and GET and decode of the same bytes through the same client."""
    ours, bare = [], []
    async with redis.asyncio.Redis.from_url(url) as client:
        await client.set("bare", blob, px=600_000)

        async def load(_: Entry[Columns] | None) -> Loaded[Columns]:
            return Loaded(codec.unpack(blob), ttl_s=600.0)

        await cache_on(client).get(what, load)
        for _ in range(repeats):
            cache = cache_on(client)
            began = time.perf_counter()
            entry = await cache.get(what, _never)
            between = time.perf_counter()
            codec.unpack(await client.get("bare"))  # type: ignore[arg-type] # this client answers bytes
            bare.append((time.perf_counter() - between) * 1000)
            ours.append((between - began) * 1000)
            assert entry.tier == "l2"
    ratio = median(ours) / median(bare)
    return Row(
        claim=f"{what} from the server, against GET and decode",
        figure=f"{ratio:.2f} times",
        target=f"{L2_TARGET} times",
        reached=ratio <= L2_TARGET,
        made_of=f"{len(blob) / 1000:,.1f} kB; {spread(ours)} ms, bare {spread(bare)} ms, {repeats} of each",
    )


def cold_key(url: str, *, rounds: int = 5) -> Row:
    """Real processes that ask at the same moment; the provider counts its calls on the server."""
    spawn = multiprocessing.get_context("spawn")
    barrier, waits = spawn.Barrier(PROCESSES + 1), spawn.Queue()
    processes = [spawn.Process(target=_process, args=(url, rounds, barrier, waits)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    calls, slowest, commands = [], [], []
    try:
        with redis.Redis.from_url(url) as client:
            for n in range(rounds):
                barrier.wait(60)
                before = client.info("stats")["total_commands_processed"]
                slowest.append(max(waits.get(timeout=60) for _ in processes))
                commands.append(float(client.info("stats")["total_commands_processed"] - before))
                calls.append(int(client.get(f"{COUNTER}{n}") or 0))
            barrier.wait(60)
    finally:
        for process in processes:
            process.join(10)
            process.kill()
    return Row(
        claim=f"one cold key, {PROCESSES} processes with {CALLERS} callers each",
        figure=f"{max(calls)} upstream call{'s' if max(calls) != 1 else ''}",
        target="1",
        reached=set(calls) == {1},
        made_of=f"{rounds} rounds, load {LOAD_S} s; slowest {spread(slowest)} s; {spread(commands)} Redis commands",
    )


def cache_on(client: redis.asyncio.Redis | None) -> TieredCache[Columns]:
    """As the fetch workers have one."""
    return TieredCache(
        client, namespace="bench", encode=lambda columns: codec.pack(*columns), decode=codec.unpack, size=lambda _: 1
    )


async def _never(entry: Entry[Columns] | None) -> Loaded[Columns]:
    assert entry is None, "only the first question may come here"
    time_, named = synthetic(365, price=100.0)
    return Loaded((time_, named, {}), ttl_s=3600.0)


def _process(url: str, rounds: int, barrier: Barrier, waits: Queue[float]) -> None:
    asyncio.run(_ask(url, rounds, barrier, waits))


async def _ask(url: str, rounds: int, barrier: Barrier, waits: Queue[float]) -> None:
    async with redis.asyncio.Redis.from_url(url) as client:
        cache = cache_on(client)

        async def load(n: int, _: Entry[Columns] | None) -> Loaded[Columns]:
            await client.incr(f"{COUNTER}{n}")
            await asyncio.sleep(LOAD_S)
            return Loaded((*synthetic(365, price=100.0), {}), ttl_s=600.0)

        for n in range(rounds):
            barrier.wait(60)
            began = time.monotonic()
            await asyncio.gather(*[cache.get(f"cold{n}", partial(load, n)) for _ in range(CALLERS)])
            waits.put(time.monotonic() - began)
        barrier.wait(60)
        await cache.close()


if __name__ == "__main__":
    for row in measure():
        print(row)
