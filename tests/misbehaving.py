"""Servers that fail on demand: an `aiohttp.web` application on loopback, and a layer of faults to put on any of them.

app = web.Application()
app.router.add_get("/klines", answer)
trouble = Trouble(app)
trouble.plan["/klines"] = [status(503), None, truncated()]  # 1st request, 2nd as it should be, 3rd; then all well
with serving(app) as base_url: ...
assert trouble.calls["/klines"] == 3
"""

from __future__ import annotations

import asyncio
import gzip
import heapq
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

Fault = Callable[[web.Request], Awaitable[web.StreamResponse]]


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """Run the application in a thread of its own; yields its base URL, such as http://127.0.0.1:40001."""
    started: list[tuple[str, asyncio.AbstractEventLoop, asyncio.Event]] = []
    failed: list[BaseException] = []
    ready = threading.Event()

    async def serve() -> None:
        # Handlers end with their client, and the server without waiting for them.
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            stop = asyncio.Event()
            started.append((f"http://127.0.0.1:{runner.addresses[0][1]}", asyncio.get_running_loop(), stop))
            ready.set()
            await stop.wait()
        finally:
            await runner.cleanup()

    def work() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failed.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="test server", daemon=True)
    thread.start()
    ready.wait(10)
    if not started:
        raise RuntimeError("the test server did not start") from (failed[0] if failed else None)
    base_url, loop, stop = started[0]
    try:
        yield base_url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        if thread.is_alive() or failed:
            raise RuntimeError("the test server did not stop in order") from (failed[0] if failed else None)


class Trouble:
    """Counts the requests of each path and answers them with the path's planned faults, one a request, then properly.

    Attributes:
        plan: faults still to come, by path ("*" for every path without a list of its own); None is a proper answer.
        calls: requests so far, by path.
        seen: their headers and query strings, by path, oldest first.
    """

    def __init__(self, app: web.Application) -> None:
        self.plan: dict[str, list[Fault | None]] = {}
        self.calls: Counter[str] = Counter()
        self.seen: dict[str, list[web.Request]] = {}
        app.middlewares.append(self._layer())

    def _layer(self) -> Middleware:
        @web.middleware
        async def layer(request: web.Request, handler: Handler) -> web.StreamResponse:
            self.calls[request.path] += 1
            self.seen.setdefault(request.path, []).append(request)
            planned = self.plan.get(request.path) or self.plan.get("*")
            fault = planned.pop(0) if planned else None
            return await (fault(request) if fault else handler(request))

        return layer


async def as_usual(request: web.Request) -> web.StreamResponse:
    """What the provider would have answered without a fault."""
    handler: Handler = request.match_info.handler
    return await handler(request)


def status(code: int, body: bytes = b"", **headers: str) -> Fault:
    """That status at once. Header names are written with underscores: Retry_After="1"."""

    async def fault(request: web.Request) -> web.StreamResponse:
        return web.Response(status=code, body=body, headers={name.replace("_", "-"): v for name, v in headers.items()})

    return fault


def retry_after(seconds: float, code: int = 429) -> Fault:
    """429 (or another status) with Retry-After in seconds."""
    return status(code, Retry_After=f"{seconds:g}")


def retry_at(seconds: float, code: int = 429) -> Fault:
    """429 (or another status) with Retry-After as the HTTP-date that lies so many seconds ahead."""

    async def fault(request: web.Request) -> web.StreamResponse:
        when = datetime.now(UTC) + timedelta(seconds=seconds)
        return web.Response(status=code, headers={"Retry-After": format_datetime(when, usegmt=True)})

    return fault


def banned(seconds: float = 120) -> Fault:
    """Binance's 418."""
    return retry_after(seconds, 418)


def slow_headers(seconds: float, then: Fault | None = None) -> Fault:
    """Nothing for so long, then the other fault or an empty 200."""

    async def fault(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await then(request) if then else web.Response()

    return fault


def slow_body(seconds: float, body: bytes = b"0123456789") -> Fault:
    """Headers and half of the body at once, the rest after so long."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        await asyncio.sleep(seconds)
        await response.write(body[len(body) // 2 :])
        return response

    return fault


def truncated(body: bytes = b"0123456789", promised: int = 1000) -> Fault:
    """Fewer bytes than Content-Length promises, then the connection closes."""

    async def fault(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Length": str(promised)})
        await response.prepare(request)
        await response.write(body)
        _transport(request).close()
        return response

    return fault


def dropped() -> Fault:
    """The connection closes before a byte of the answer."""

    async def fault(request: web.Request) -> web.StreamResponse:
        _transport(request).abort()
        return web.Response()

    return fault


def large_error(size_bytes: int = 3_000_000, code: int = 503) -> Fault:
    """An error page of megabytes."""
    return status(code, b"x" * size_bytes)


def html(code: int = 200) -> Fault:
    """A web page where data was expected, as from a proxy or a login wall."""
    return status(code, b"<!doctype html><title>Just a moment...</title>", Content_Type="text/html; charset=utf-8")


def wrong_json(body: bytes = b'{"unexpected": [1, 2') -> Fault:
    """200, said to be JSON."""
    return status(200, body, Content_Type="application/json")


def gzip_bomb(size_bytes: int = 100_000_000) -> Fault:
    """A thousand times more bytes than go over the wire."""
    packed = gzip.compress(bytes(size_bytes), 9)
    return status(200, packed, Content_Encoding="gzip", Content_Type="application/json")


def redirect(to: str, code: int = 302) -> Fault:
    """To any URL: redirect("http://10.0.0.1/") leads to a private address."""
    return status(code, Location=to)


def _transport(request: web.Request) -> asyncio.Transport:
    assert request.transport is not None
    assert isinstance(request.transport, asyncio.Transport)
    return request.transport


class Capacity:
    """A server of so many slots, each taken for ``service_s`` by a request; 503 when more than ``queue`` others wait.

    When each request will be done is computed on its arrival from the slots' own times, so a late timer delays one
    answer and not the server's rate, which is slots / service_s exactly.
    """

    def __init__(self, app: web.Application, *, slots: int, service_s: float, queue: int) -> None:
        self.refused = 0
        self.answered = 0
        self._free_at = [0.0] * slots
        self._starts: list[float] = []  # of those that wait
        self._service_s, self._queue = service_s, queue
        app.middlewares.append(self._layer())

    def _layer(self) -> Middleware:
        @web.middleware
        async def layer(request: web.Request, handler: Handler) -> web.StreamResponse:
            now = asyncio.get_running_loop().time()
            while self._starts and self._starts[0] <= now:
                heapq.heappop(self._starts)
            start = max(now, self._free_at[0])
            if start > now and len(self._starts) >= self._queue:
                self.refused += 1
                return web.Response(status=503)
            if start > now:
                heapq.heappush(self._starts, start)
            heapq.heapreplace(self._free_at, start + self._service_s)
            await asyncio.sleep(start + self._service_s - now)
            self.answered += 1
            return await handler(request)

        return layer
