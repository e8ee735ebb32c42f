"""Claims of the HTTP client: little on top of bare aiohttp; the whole of a small server, without losing a request."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import aiohttp

from benchmarks.measure import Row, median, spread
from workers import retry
from workers.session import HttpClient, Limits, Request, Response
from workers.wire import DNS_CACHE_S, KEEP_ALIVE_S, POOL_SIZE

# Twenty callers keep the client's core busy; more would measure the event loop's queue.
CALLERS, REQUESTS, THROUGHPUT_TARGET = 20, 2_000, 0.9
SLOTS, SERVICE_S, QUEUE, JOBS = 16, 0.02, 48, 3_000
IDEAL = SLOTS / SERVICE_S
ADAPTIVE_TARGET = 0.9

# Answers at once and parses nothing, so that the client is what is measured; a page of a provider's size.
FAST_SERVER = """
import asyncio, sys
BODY = b"x" * 2_000
ANSWER = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: 2000\\r\\n\\r\\n" + BODY
class Server(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(ANSWER * data.count(b"\\r\\n\\r\\n"))
async def main():
    server = await asyncio.get_running_loop().create_server(Server, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
asyncio.run(main())
"""

SMALL_SERVER = """
import sys
from aiohttp import web
from tests.misbehaving import Capacity, serving
async def answer(request): return web.Response(body=b"{}")
app = web.Application()
app.router.add_get("/", answer)
Capacity(app, slots=int(sys.argv[1]), service_s=float(sys.argv[2]), queue=int(sys.argv[3]))
with serving(app) as base_url:
    print(base_url.rpartition(":")[2], flush=True)
    sys.stdin.read()
"""


@contextmanager
def server(code: str, *arguments: object) -> Iterator[str]:
    """The program as a process of its own, which ends when its standard input does; its URL."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{int(process.stdout.readline())}/"
        finally:
            process.stdin.close()
            process.wait(timeout=10)


def bare_session() -> aiohttp.ClientSession:
    """What one would write without the client, with the connector that it has."""
    connector = aiohttp.TCPConnector(limit=POOL_SIZE, ttl_dns_cache=DNS_CACHE_S, keepalive_timeout=KEEP_ALIVE_S)
    return aiohttp.ClientSession(connector=connector)


async def rate(call: Callable[[], Awaitable[bytes]]) -> float:
    """Requests a second by so many callers, each asking again when it has its answer."""

    async def caller() -> None:
        for _ in range(REQUESTS // CALLERS):
            assert len(await call()) == 2_000

    began = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return REQUESTS / (time.perf_counter() - began)


def measure_throughput(*, repeats: int = 9) -> Row:
    """Requests a second of `HttpClient.get`, its cache out of the way, against aiohttp's; turn and turn about."""

    async def run(url: str) -> tuple[list[float], list[float]]:
        client = HttpClient()
        async with bare_session() as session:

            async def plain() -> bytes:
                async with session.get(url) as response:
                    return await response.read()

            async def ours() -> bytes:
                return (await client.get(url, cache_ttl_s=0, private=True)).body

            for call in (plain, ours):
                await rate(call)
            pairs = [(await rate(plain), await rate(ours)) for _ in range(repeats)]
            await client.close()
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs]

    with server(FAST_SERVER) as url:
        bare, own = asyncio.run(run(url))
    ratios = [mine / theirs for mine, theirs in zip(own, bare, strict=True)]
    return Row(
        claim=f"requests a second through the client against bare aiohttp, {CALLERS} callers, 2 kB answers",
        figure=f"{spread(ratios)} x",
        target=f"{THROUGHPUT_TARGET} x",
        reached=median(ratios) >= THROUGHPUT_TARGET,
        made_of=f"{spread(own)} a second against {spread(bare)}",
    )


async def adaptive(url: str) -> tuple[float, int, int]:
    """Requests a second, requests lost, retries."""
    client = HttpClient()
    began = time.perf_counter()
    answers = await client.get_many([Request(url, cache_ttl_s=0, private=True)] * JOBS)
    took_s = time.perf_counter() - began
    await client.close()
    good = sum(isinstance(answer, Response) for answer in answers)
    return good / took_s, JOBS - good, client.stats()["http_retries"]


async def fixed(url: str) -> tuple[float, int]:
    """What is usually written, 100 at once and three retries with full jitter; requests a second, requests lost."""
    places, waiting = asyncio.Semaphore(POOL_SIZE), iter(range(JOBS))
    good = 0

    async def ask(session: aiohttp.ClientSession) -> bool:
        for number in range(4):
            async with places, session.get(url) as response:
                await response.read()
                if response.status == 200:
                    return True
            if number < 3:
                await asyncio.sleep(retry.backoff_s(number, Limits().backoff_s))
        return False

    async def work(session: aiohttp.ClientSession) -> None:
        nonlocal good
        for _ in waiting:
            won = await ask(session)
            good += won

    began = time.perf_counter()
    async with bare_session() as session:
        await asyncio.gather(*(work(session) for _ in range(POOL_SIZE)))
    return good / (time.perf_counter() - began), JOBS - good


def measure_adaptive(*, repeats: int = 3) -> Row:
    """A server of 16 slots x 20 ms that answers 503 beyond 48 that wait; each run is a new client's, start included."""
    ours, plain = [], []
    for _ in range(repeats):
        with server(SMALL_SERVER, SLOTS, SERVICE_S, QUEUE) as url:
            ours.append(asyncio.run(adaptive(url)))
        with server(SMALL_SERVER, SLOTS, SERVICE_S, QUEUE) as url:
            plain.append(asyncio.run(fixed(url)))
    shares = [run[0] / IDEAL for run in ours]
    lost = sum(run[1] for run in ours)
    return Row(
        claim=(
            f"{JOBS:,} requests to a server of {SLOTS} slots x {SERVICE_S * 1000:g} ms that answers 503 beyond "
            f"{QUEUE} waiting: share of the ideal {IDEAL:g} a second"
        ),
        figure=f"{spread(shares)}, {lost} lost",
        target=f"{ADAPTIVE_TARGET}, none lost",
        reached=median(shares) >= ADAPTIVE_TARGET and not lost,
        made_of=(
            f"{spread([run[0] for run in ours])} a second, {spread([float(run[2]) for run in ours])} retries; "
            f"100 at once and three retries: {spread([run[0] for run in plain])} a second, "
            f"{spread([float(run[1]) for run in plain])} lost"
        ),
    )


if __name__ == "__main__":
    for row in (measure_throughput(), measure_adaptive()):
        print(row)
