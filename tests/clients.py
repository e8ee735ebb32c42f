"""A server that answers whatever it is asked for, unless it is planned to fail, and a client of it for one test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import redis.asyncio
from aiohttp import web
from aiohttp.typedefs import Handler

from tests.misbehaving import Fault, Trouble, serving
from workers.session import HttpClient, Limits, Response

T = TypeVar("T")
QUICK = Limits(backoff_s=0.005)


class Server:
    def __init__(self) -> None:
        self.app = web.Application(middlewares=[self.note_port])
        self.trouble = Trouble(self.app)
        self.base = ""
        self.ports: list[int] = []  # of the client's end, one a request
        self.app.router.add_get("/{path:.*}", self.answer)

    @web.middleware
    async def note_port(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        assert request.transport is not None
        self.ports.append(request.transport.get_extra_info("peername")[1])
        return await handler(request)

    async def answer(self, request: web.Request) -> web.Response:
        return web.json_response({"path": request.path, "query": dict(request.query)})

    def plan(self, *faults: Fault | None, path: str = "/x") -> None:
        self.trouble.plan[path] = list(faults)

    @property
    def calls(self) -> int:
        return self.trouble.calls["/x"]


@contextmanager
def running() -> Iterator[Server]:
    server = Server()
    with serving(server.app) as server.base:
        yield server


@asynccontextmanager
async def open_client(limits: Limits = QUICK, url: str = "") -> AsyncIterator[HttpClient]:
    shared = redis.asyncio.Redis.from_url(url) if url else None
    client = HttpClient(server=shared, limits=limits)
    try:
        yield client
    finally:
        await client.close()


def with_client(use: Callable[[HttpClient], Awaitable[T]], limits: Limits = QUICK, url: str = "") -> T:
    async def main() -> T:
        async with open_client(limits, url) as client:
            return await use(client)

    return asyncio.run(main())


def fetch(server: Server, client: HttpClient, **options: Any) -> Awaitable[Response]:
    return client.get(f"{server.base}/x", **{"private": True, "cache_ttl_s": 0, "deadline_s": 20.0, **options})


async def called(server: Server, times: int) -> None:
    async with asyncio.timeout(20):
        while server.calls < times:  # noqa: ASYNC110 - the server's events belong to its own thread
            await asyncio.sleep(0.005)


async def fetch_coroutine(server: Server, client: HttpClient, **options: Any) -> Response:
    return await fetch(server, client, **options)
