"""What one event loop has open: its connections to providers and to the server that workers share."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp
import aiohttp.connector
import redis
import redis.asyncio
from aiohttp.tracing import Trace
from cachetools import LRUCache
from yarl import URL

from runner.errors import BadAnswer, SourceRefused
from workers import addresses, retry
from workers.addresses import shown
from workers.aimd import Limiter
from workers.responses import Request, Response

# Connections of a process, and so its requests at once; answers of the name server; idle connections.
POOL_SIZE, DNS_CACHE_S, KEEP_ALIVE_S = 100, 300, 60.0
# Hosts whose state is kept, at about 1 kB each: all providers many times over, and 10 MB at most.
HOSTS = 10_000
# For a new connection, one address; everything else is up to `Call`.
CONNECT = aiohttp.ClientTimeout(total=None, sock_connect=5.0)
# A dead connection that was kept alive says nothing at all (ccxt #27468): so long without a byte, and another is tried.
STALL_S = 30.0
# How late the end of a call's time may be noticed: looking at a hundred calls twenty times a second costs nothing.
TICK_S = 0.05
# From then on, CPython itself closes TLS connections whose peer does not (python/cpython#118960).
CLEANUP_CLOSED = sys.version_info < (3, 12, 8) or sys.version_info[:3] == (3, 13, 0)
# Reading a small error body keeps its connection; a larger one, or one that dawdles, costs more than a new connection.
DRAIN_BYTES, DRAIN_S = 64 * 1024, 1.0
# A Redis call takes a fraction of a millisecond. When one fails, local rules hold for a while, so that a server that
# swallows packets does not cost every request half a second.
SHARED_TIMEOUT_S, SHARED_PAUSE_S, SHARED_CONNECTIONS = 0.5, 5.0, 8


@dataclass(slots=True)
class Counts:
    """What happened on one loop; see `HttpClient.stats`."""

    http_requests: int = 0
    http_requests_ok: int = 0
    http_attempts: int = 0
    http_attempts_ok: int = 0
    http_retries: int = 0
    http_retries_refused: int = 0
    http_throttled: int = 0
    http_breaker_opened: int = 0
    http_breaker_refused: int = 0
    http_shared_errors: int = 0
    http_cache_hits: int = 0
    http_cache_misses: int = 0
    http_revalidated: int = 0


class Call:
    """One ``get`` on its way, and the watch over it.

    As a context manager it raises TimeoutError inside its block when nothing came for ``STALL_S``, or at the deadline.
    `asyncio.timeout` would do the same with a timer a call, for a sixth of what a whole request on loopback costs.

    Attributes:
        request, url: what is asked for, where; the URL has the request's parameters in its query.
        conditions: If-None-Match and If-Modified-Since.
        deadline: of the loop's clock.
        until: when the block ends.
        sent: requests so far, redirects included.
        answered: those of them that the host answered in order.
        last: what happened to the last attempt.
    """

    __slots__ = (
        "_cancelling",
        "_expired",
        "_task",
        "_wire",
        "answered",
        "conditions",
        "deadline",
        "last",
        "request",
        "sent",
        "until",
        "url",
    )

    def __init__(self, request: Request, url: URL, conditions: Mapping[str, str], wire: Wire) -> None:
        self.request, self.url, self.conditions, self._wire = request, url, conditions, wire
        self.deadline = self.until = wire.clock() + request.deadline_s
        self.sent = self.answered = 0
        self.last = "no attempt was made"

    def left_s(self) -> float:
        """Seconds until the deadline."""
        return self.deadline - self._wire.clock()

    def moves(self) -> None:
        """Something came: the next has ``STALL_S`` from now, within the deadline."""
        self.until = min(self.deadline, self._wire.clock() + STALL_S)

    def __enter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for mypy: only coroutines get here
        self._task, self._cancelling, self._expired = task, task.cancelling(), False
        self.moves()
        self._wire.watched.add(self)
        if not self._wire.ticking:
            self._wire.watch()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self._wire.watched.discard(self)
        # A cancellation from outside, at the same time, goes first: see asyncio.Timeout.
        if self._expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """The time is over."""
        self._expired = True
        self._task.cancel()


class Wire:
    """Made inside the loop that it belongs to; opens its connections when they are first needed.

    Attributes:
        counts: what happened on this loop.
        limiters: by host and port.
        watched: calls that wait for something.
    """

    def __init__(self, server: redis.asyncio.Redis | None, *, agent: str, at_once: int) -> None:
        self.loop, self.pid = asyncio.get_running_loop(), os.getpid()
        self.clock = self.loop.time
        self.counts = Counts()
        self.limiters: LRUCache[str, Limiter] = LRUCache(HOSTS)
        self.watched: set[Call] = set()
        self.ticking = False
        self._agent, self._at_once = agent, at_once
        self._sessions: dict[bool, aiohttp.ClientSession] = {}
        self._server = _copy(server) if server is not None else None
        self._pause_until = 0.0

    async def exchange(self, call: Call) -> Response:
        """One GET, its redirects followed, its body read and its connection given back.

        The body is left empty where the status says that the attempt failed.

        Raises:
            aiohttp.ClientError, OSError (TimeoutError is one): no whole answer came.
            SourceRefused: it leads where no request may go.
            BadAnswer: more than ``max_bytes``.
        """
        url, own = call.url, call.request.headers
        for _ in range(1 + addresses.MAX_REDIRECTS):
            private = call.request.private and addresses.same_place(url, call.url)
            if not private:
                addresses.check_literal(url)
            session = self._sessions.get(private) or self._new_session(private=private)
            headers = {**(own or {}), **call.conditions} if own or call.conditions else None
            call.sent += 1
            with call:
                response = await session.get(url, headers=headers, allow_redirects=False)
                try:
                    failed = retry.failed(response.status)
                    target = response.headers.get("Location") if response.status in addresses.REDIRECTS else None
                    body = await (_drain(response) if failed or target else _read(response, call))
                finally:
                    if not response.closed:  # else all was read, and the connection is back in the pool
                        response.close()
            call.answered += not failed
            if failed or not target:
                return Response(
                    shown(url), response.status, response.headers, body, from_cache=False, attempts=call.sent
                )
            before, url = url, addresses.next_hop(url, target)
            if not addresses.same_origin(before, url):
                own = None
        raise SourceRefused(f"{shown(call.url)}: more than {addresses.MAX_REDIRECTS} redirects.")

    def watch(self) -> None:
        """See to it that calls end when their time is over, give or take a tick."""
        self.ticking = True
        self.loop.call_later(TICK_S, self._tick)

    def _tick(self) -> None:
        now = self.clock()
        for call in self.watched:
            if now >= call.until:
                call.expire()
        self.ticking = bool(self.watched)
        if self.ticking:
            self.loop.call_later(TICK_S, self._tick)

    async def ask(self, script: str, key: str, arguments: list[str | int]) -> list[int] | None:
        """Run a Lua script on the shared server; None when there is none or it does not answer."""
        if self._server is None or time.monotonic() < self._pause_until:
            return None
        try:
            async with asyncio.timeout(SHARED_TIMEOUT_S):
                answer: list[int] = await self._server.register_script(script)(keys=[key], args=arguments)
                return answer
        except (redis.RedisError, OSError):  # TimeoutError is an OSError
            self.counts.http_shared_errors += 1
            self._pause_until = time.monotonic() + SHARED_PAUSE_S
            return None

    async def close(self) -> None:
        """Close everything."""
        for session in self._sessions.values():
            await session.close()
        if self._server is not None:
            await self._server.aclose()

    def _new_session(self, *, private: bool) -> aiohttp.ClientSession:
        """Two, so that an address which was right for a host that the caller named is never reused for any other."""
        session = self._sessions[private] = aiohttp.ClientSession(
            connector=_Connector(
                self.counts,
                limit=self._at_once,
                ttl_dns_cache=DNS_CACHE_S,
                keepalive_timeout=KEEP_ALIVE_S,
                enable_cleanup_closed=CLEANUP_CLOSED,
                resolver=addresses.Resolver() if private else addresses.PublicResolver(),
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._agent},
            timeout=CONNECT,
            trust_env=False,
        )
        return session


class _Connector(aiohttp.TCPConnector):
    """Counts attempts: aiohttp itself repeats a request whose kept connection turns out to be closed."""

    def __init__(self, counts: Counts, **options: Any) -> None:
        super().__init__(**options)
        self._counts = counts

    def connect(  # not a coroutine of its own: that would cost as much as everything else that is counted
        self, req: aiohttp.ClientRequest, traces: list[Trace], timeout: aiohttp.ClientTimeout
    ) -> Coroutine[Any, Any, aiohttp.connector.Connection]:
        """A connection for one more attempt."""
        self._counts.http_attempts += 1
        return super().connect(req, traces, timeout)


async def _read(response: aiohttp.ClientResponse, call: Call) -> bytes:
    """The body, decompressed; never more than ``max_bytes`` and one chunk of it in memory."""
    content, most = response.content, call.request.max_bytes
    part = await content.readany()
    if content.at_eof() and len(part) <= most:
        return part  # most answers come in one piece
    parts: list[bytes] = []
    size = 0
    while part:
        size += len(part)
        if size > most:
            raise BadAnswer(f"{shown(response.url)}: more than {most:,} bytes, which is all that was expected.")
        parts.append(part)
        call.moves()
        part = await content.readany()
    return b"".join(parts)


async def _drain(response: aiohttp.ClientResponse) -> bytes:
    """Read a small body that nobody needs, so that its connection is kept; nothing is left of it."""
    if (response.content_length or 0) > DRAIN_BYTES:
        return b""
    size = 0
    try:
        async with asyncio.timeout(DRAIN_S):
            while size <= DRAIN_BYTES and (part := await response.content.readany()):
                size += len(part)
    except (aiohttp.ClientError, OSError):
        pass  # the status has said what matters; the caller closes the connection
    return b""


def described(error: Exception) -> str:
    """What happened, without the URL and headers that aiohttp's messages may hold."""
    if isinstance(error, TimeoutError):
        return "time-out"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its name is not known to the DNS"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the answer broke off"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was dropped"
    return type(error).__name__


def _copy(server: redis.asyncio.Redis) -> redis.asyncio.Redis:
    """A client of the same server with connections of its own: they belong to the loop that opened them."""
    pool = server.connection_pool
    bound = ("maint_notifications", "orig_", "himport_registry")  # what redis-py ties to one pool
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith(bound)}
    own = redis.asyncio.BlockingConnectionPool(
        max_connections=SHARED_CONNECTIONS, timeout=None, connection_class=pool.connection_class, **options
    )
    return redis.asyncio.Redis.from_pool(own)
