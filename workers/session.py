"""The pooled HTTP client: one ``get`` that is patient, polite and bounded, for every source."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import aiohttp
import redis.asyncio
from cachetools import LRUCache

import runner
from runner.errors import FetchError, SourceRefused, SourceUnavailable
from workers import retry
from workers.addresses import shown
from workers.aimd import START, Limiter
from workers.breaker import Breaker
from workers.responses import MIB, Answers, Request, Response, no_address
from workers.throttle import Rate, Throttle
from workers.wire import HOSTS, POOL_SIZE, Call, Counts, Wire, described

__all__ = ["HttpClient", "Limits", "Rate", "Request", "Response"]

# Binance's shortest ban.
BAN_S = 120.0


@dataclass(frozen=True, slots=True)
class Limits:
    """What a client keeps to.

    Attributes:
        at_once: connections, over all hosts, and so the most requests that are under way.
        start_at_once: what a host gets before its answers tell how much it bears.
        retries: attempts after the first.
        backoff_s: the first retry waits at most this long, each further one at most twice as long.
        cache_ttl_s: seconds for which an answer is served again without asking.
        cache_bytes: memory for such answers.
    """

    at_once: int = POOL_SIZE
    start_at_once: float = START
    retries: int = 3
    backoff_s: float = retry.BASE_S
    cache_ttl_s: float = 300.0
    cache_bytes: int = 64 * MIB


class _Host:
    """What all loops of this process share about one host and port."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.breaker = Breaker(name)
        self.budget = retry.Budget()


class _Failed(Exception):
    """An attempt that may be made again; `Call.last` says why."""

    def __init__(self, retry_after_s: float = 0.0) -> None:
        self.retry_after_s = retry_after_s


class HttpClient:
    """Keep-alive connections, retries, limits and a cache of answers, one for all loops and threads of a process.

    Nothing is opened before the first request. Connections belong to the event loop that makes the request (close the
    client before a loop ends), everything else is shared. Synchronous code calls
    ``loop_thread().run(client.get(...))``.

    Args:
        server: shares breakers and rate limits with all workers; without it, or while it is down, they hold in this
            process. Only its address and options are used: each loop has connections of its own.
        contact: a mail address or URL, sent to providers as part of the User-Agent.
        limits: see `Limits`.
    """

    def __init__(
        self,
        *,
        server: redis.asyncio.Redis | None = None,
        contact: str = "",
        limits: Limits = Limits(),
    ) -> None:
        self._server = server
        self._limits = limits
        self._agent = f"backtest-runner/{runner.__version__}" + (f" (+{contact})" if contact else "")
        self._lock = threading.Lock()
        self._wires: dict[asyncio.AbstractEventLoop, Wire] = {}
        self._hosts: LRUCache[str, _Host] = LRUCache(HOSTS)
        self._throttle = Throttle()
        self._answers = Answers(limits.cache_bytes)
        self._past = Counter(asdict(Counts()))  # of loops that are closed

    def get(
        self,
        url: str,
        *,
        params: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        deadline_s: float = 60.0,
        rate: Rate | None = None,
        weight: int = 1,
        max_bytes: int = 64 * MIB,
        cache_ttl_s: float | None = None,
        etag: str | None = None,
        last_modified: str | None = None,
        private: bool = False,
    ) -> Coroutine[Any, Any, Response]:
        """The final answer to a GET: any status that a retry would not change, 2xx, 304 and 4xx.

        Args:
            url: http or https.
            params: added to its query.
            headers: sent along, but not to another host that a redirect leads to.
            deadline_s: seconds for everything: waiting for a turn, attempts, back-off, body.
            rate: the allowance that each attempt uses up, by ``weight``.
            weight: what an attempt costs of it.
            max_bytes: of the body, decompressed.
            cache_ttl_s: seconds for which a 200 may be served again; None is the client's, 0 neither looks nor keeps.
            etag: validator of the caller's own copy, which a 304 says is still right; the client's cache stays out.
            last_modified: likewise.
            private: the caller means this very host, be it a private address.

        Raises:
            SourceUnavailable: no good answer in time: 429, 5xx, time-outs, broken connections, an open breaker.
            SourceRefused: a ban (418), or an address that must not be asked.
            BadAnswer: a body of more than ``max_bytes``.
        """
        return self._get(
            Request(
                url, params, headers, deadline_s, rate, weight, max_bytes, cache_ttl_s, etag, last_modified, private
            )
        )

    async def get_many(self, requests: Sequence[Request]) -> list[Response | FetchError]:
        """The answers in the order of the requests; a request that failed is its error.

        At most ``limits.at_once`` are begun at once, and a request's deadline counts from when it is begun.
        """
        results: dict[int, Response | FetchError] = {}
        waiting = iter(enumerate(requests))

        async def work() -> None:
            for index, request in waiting:
                try:
                    results[index] = await self._get(request)
                except FetchError as error:
                    results[index] = error

        async with asyncio.TaskGroup() as group:
            for _ in range(min(self._limits.at_once, len(requests))):
                group.create_task(work())
        return [results[index] for index in range(len(requests))]

    async def close(self) -> None:
        """Close all connections, also those of other loops that still run. A later request opens new ones."""
        with self._lock:
            wires = [wire for wire in self._wires.values() if wire.pid == os.getpid()]
            self._forget(wires)
        for wire in wires:
            if wire.loop is asyncio.get_running_loop():
                await wire.close()
            elif wire.loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wire.close(), wire.loop))

    def stats(self) -> dict[str, int]:
        """Counters that only grow.

        ``http_requests`` and ``http_requests_ok`` are the calls that needed the network, and those that got a final
        answer; ``http_attempts`` and ``http_attempts_ok`` what went over the wire, hops of redirects included.
        ``http_cache_hits`` are calls that needed no network, ``http_revalidated`` those that a 304 answered.
        """
        with self._lock:
            counts = Counter(self._past)
            for wire in self._wires.values():
                counts.update(asdict(wire.counts))
        return dict(counts)

    def _get(self, request: Request) -> Coroutine[Any, Any, Response]:
        ttl_s = self._limits.cache_ttl_s if request.cache_ttl_s is None else request.cache_ttl_s
        if ttl_s <= 0 or request.etag or request.last_modified:
            return self._fetch(request, request.etag, request.last_modified)
        return self._cached(request, ttl_s)

    async def _cached(self, request: Request, ttl_s: float) -> Response:
        counts, key = self._wire().counts, self._answers.key(request)
        kept = self._answers.find(key)
        if kept and self._answers.fresh(kept):
            counts.http_cache_hits += 1
            return kept.response
        counts.http_cache_misses += 1
        told = kept.response.headers if kept else {}
        response = await self._fetch(request, told.get("ETag"), told.get("Last-Modified"))
        if kept and response.status == 304:
            counts.http_revalidated += 1
            self._answers.keep(key, kept.response, ttl_s, response.headers)
            return replace(kept.response, attempts=response.attempts)
        self._answers.keep(key, replace(response, from_cache=True, attempts=0), ttl_s, response.headers)
        return response

    async def _fetch(self, request: Request, etag: str | None, last_modified: str | None) -> Response:
        """The answer over the network; it owns the loop over the attempts."""
        url, wire, conditions = request.target(), self._wire(), {}
        if etag:
            conditions["If-None-Match"] = etag
        if last_modified:
            conditions["If-Modified-Since"] = last_modified
        host = self._host(url.host_port_subcomponent or "")
        call = Call(request, url, conditions, wire)
        host.budget.request()
        wire.counts.http_requests += 1
        retries = 0
        while True:
            try:
                response = await self._attempt(call, wire, host)
            except _Failed as failed:
                # Back-off on top of what the server asks for: those who were told the same do not come back together.
                wait_s = failed.retry_after_s + retry.backoff_s(retries, self._limits.backoff_s)
                self._may_go_on(call, wire, host, retries, wait_s)
            else:
                wire.counts.http_requests_ok += 1
                return response
            retries += 1
            wire.counts.http_retries += 1
            await asyncio.sleep(wait_s)

    def _may_go_on(self, call: Call, wire: Wire, host: _Host, retries: int, wait_s: float) -> None:
        """SourceUnavailable unless a further attempt is allowed and would come in time."""
        left_s = call.left_s()
        if left_s <= 0.0:
            why = f"the deadline of {call.request.deadline_s:g} s is over"
        elif retries >= self._limits.retries:
            why = f"after {retries + 1} attempts"
        elif wait_s >= left_s:
            why = f"the next attempt would come in {wait_s:.1f} s, the deadline in {left_s:.1f} s"
        elif not host.budget.retry():
            wire.counts.http_retries_refused += 1
            why = "and this host needed too many retries in the last minute to make another"
        else:
            return
        raise SourceUnavailable(f"{shown(call.url)}: {call.last}; {why}.") from None

    async def _attempt(self, call: Call, wire: Wire, host: _Host) -> Response:
        """One attempt, when the rate limit and the host's limiter give it its turn."""
        rate = call.request.rate
        if rate and await self._throttle.wait(rate, call.request.weight, call.left_s(), wire.ask) > 0.0:
            wire.counts.http_throttled += 1
        limiter, breaker = wire.limiters.get(host.name) or self._new_limiter(wire, host.name), host.breaker
        if not limiter.try_acquire():
            await _turn(call, limiter)
        began, answered, probe = limiter.clock(), call.answered, False
        alive = dropped = None
        try:
            if not breaker.settled:
                probe = await self._entered(wire, breaker)
            response = await wire.exchange(call)
            alive, dropped = response.status < 500, response.status in (429, 503)
        except (aiohttp.ClientError, OSError) as error:  # TimeoutError is an OSError
            alive, dropped, call.last = False, isinstance(error, TimeoutError) or None, described(error)
            if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
                raise no_address(call.request.url) from None
            if isinstance(error, aiohttp.ClientConnectorCertificateError):
                raise SourceRefused(f"{shown(call.url)}: its TLS certificate is not valid.") from None
            raise _Failed from None
        finally:
            limiter.release(began, dropped=dropped)
            wire.counts.http_attempts_ok += call.answered - answered
            if probe or (alive is not None and breaker.count(good=alive)):
                wire.counts.http_breaker_opened += await breaker.act(wire.ask, good=alive, probe=probe)
        if rate or retry.failed(response.status):
            await self._judge(call, wire, host, response)
        return response

    async def _entered(self, wire: Wire, breaker: Breaker) -> bool:
        try:
            return await breaker.enter(wire.ask)
        except SourceUnavailable:
            wire.counts.http_breaker_refused += 1
            raise

    async def _judge(self, call: Call, wire: Wire, host: _Host, response: Response) -> None:
        """Learn from the answer, and raise if it is not final."""
        status, asked_s = response.status, retry.retry_after_s(response.headers.get("Retry-After"), time.time())
        if call.request.rate:
            await self._throttle.learn(call.request.rate, status, response.headers, asked_s, wire.ask)
        if status == retry.BANNED:
            ban_s = BAN_S if asked_s is None else asked_s
            await host.breaker.open(ban_s, wire.ask)
            wire.counts.http_breaker_opened += 1
            raise SourceRefused(f"{shown(call.url)}: HTTP 418, banned: {host.name} is not asked for {ban_s:,.0f} s.")
        call.last = f"HTTP {status}"
        if status in retry.RETRIED:
            raise _Failed(asked_s or 0.0)
        if retry.failed(status):
            raise SourceUnavailable(f"{shown(call.url)}: HTTP {status}.")

    def _wire(self) -> Wire:
        loop = asyncio.get_running_loop()  # in a forked child it is never one of its parent's
        wire = self._wires.get(loop)
        if wire is None:
            with self._lock:
                self._forget([old for old in self._wires.values() if old.loop.is_closed()])
                wire = self._wires[loop] = Wire(self._server, agent=self._agent, at_once=self._limits.at_once)
        return wire

    def _forget(self, wires: list[Wire]) -> None:
        for wire in wires:
            self._past.update(asdict(wire.counts))
            del self._wires[wire.loop]

    def _host(self, name: str) -> _Host:
        with self._lock:  # also to look: that makes it the one that was used last
            host = self._hosts.get(name)
            if host is None:
                host = self._hosts[name] = _Host(name)
            return host

    def _new_limiter(self, wire: Wire, name: str) -> Limiter:
        return wire.limiters.setdefault(name, Limiter(self._limits.start_at_once, self._limits.at_once))


async def _turn(call: Call, places: Limiter) -> None:
    """Wait for a place until the deadline."""
    try:
        async with asyncio.timeout(call.left_s()):
            await places.acquire()
    except TimeoutError:
        raise SourceUnavailable(
            f"{shown(call.url)}: {places.under_way} others are under way, and none ended within the deadline of "
            f"{call.request.deadline_s:g} s: ask for less at once, or give it longer."
        ) from None
