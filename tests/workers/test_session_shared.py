"""The pooled HTTP client: many callers, loops, threads and clients at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redis.asyncio

from runner.errors import FetchError, SourceRefused, SourceUnavailable
from tests.clients import QUICK, Server, called, fetch, fetch_coroutine, open_client, running, with_client
from tests.misbehaving import Capacity, banned, retry_after, serving, slow_body, slow_headers, status
from tests.support import running_valkey, wait_until
from workers.loop import LoopThread
from workers.session import HttpClient, Limits, Rate, Request, Response


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as server:
        yield server


def test_it_is_built_without_a_loop_and_used_from_two(server: Server) -> None:
    client = HttpClient(limits=QUICK)

    async def use() -> int:
        answer = await fetch(server, client)
        await client.close()
        return answer.status

    assert [asyncio.run(use()), asyncio.run(use())] == [200, 200]
    assert client.stats()["http_requests"] == 2


def test_two_loops_at_once_share_cache_and_counters_and_one_close_closes_both(server: Server) -> None:
    client, one, other = HttpClient(limits=QUICK), LoopThread(), LoopThread()
    try:
        for thread in (one, other):
            assert thread.run(fetch_coroutine(server, client, cache_ttl_s=300), 20).status == 200
            assert thread.run(fetch_coroutine(server, client), 20).status == 200
        assert client.stats()["http_cache_hits"] == 1
        assert client.stats()["http_requests"] == 3
        one.run(client.close(), 20)
        assert client.stats()["http_requests"] == 3
    finally:
        one.close()
        other.close()


def test_synchronous_code_in_many_threads_uses_one_loop(server: Server) -> None:
    client, thread = HttpClient(limits=QUICK), LoopThread()
    statuses: list[int] = []

    def work() -> None:
        statuses.append(thread.run(client.get(f"{server.base}/x", private=True, cache_ttl_s=0), 20).status)

    threads = [threading.Thread(target=work) for _ in range(16)]
    try:
        for worker in threads:
            worker.start()
        for worker in threads:
            worker.join(20)
        thread.run(client.close(), 20)
    finally:
        thread.close()
    assert statuses == [200] * 16


def test_a_batch_comes_back_in_order_with_its_failures_in_place(server: Server) -> None:
    server.plan(*[status(503)] * 4, path="/bad")
    urls = [f"{server.base}/{name}" for name in ("a", "bad", "b", "a")]

    async def use(client: HttpClient) -> list[Response | FetchError]:
        assert await client.get_many([]) == []
        return await client.get_many([Request(url, private=True) for url in urls])

    results = with_client(use)
    assert [result.url if isinstance(result, Response) else type(result) for result in results] == [
        urls[0],
        SourceUnavailable,
        urls[2],
        urls[3],
    ]


def batch(server: Server, times: int, limits: Limits) -> tuple[int, dict[str, int]]:
    """How many of so many requests were answered, and the counters."""

    async def use(client: HttpClient) -> tuple[int, dict[str, int]]:
        results = await client.get_many([Request(f"{server.base}/x", private=True, cache_ttl_s=0)] * times)
        return sum(isinstance(result, Response) for result in results), client.stats()

    with serving(server.app) as server.base:
        return with_client(use, limits)


def test_never_more_at_once_than_the_limit() -> None:
    server = Server()
    capacity = Capacity(server.app, slots=5, service_s=0.01, queue=0)
    assert batch(server, 100, Limits(at_once=5, start_at_once=5))[0] == 100
    assert capacity.refused == 0


def test_a_server_with_few_slots_loses_no_request() -> None:
    server = Server()
    capacity = Capacity(server.app, slots=4, service_s=0.005, queue=12)
    good, stats = batch(server, 600, Limits(backoff_s=0.05))
    assert good == capacity.answered == 600
    assert capacity.refused == stats["http_retries"] > 0  # it did look for the limit


def test_a_cancelled_request_gives_its_place_and_connection_back(server: Server) -> None:
    server.plan(slow_headers(30), slow_body(30), retry_after(15))

    async def use(client: HttpClient) -> Response:
        for number in range(3):
            task = asyncio.create_task(fetch_coroutine(server, client))
            await called(server, number + 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        return await fetch(server, client, deadline_s=20.0)

    assert with_client(use, Limits(at_once=1, start_at_once=1, backoff_s=0.005)).status == 200


def test_who_waits_for_a_place_waits_no_longer_than_its_deadline(server: Server) -> None:
    server.plan(slow_headers(30))

    async def use(client: HttpClient) -> None:
        first = asyncio.create_task(fetch_coroutine(server, client))
        await called(server, 1)
        with pytest.raises(SourceUnavailable, match="1 others are under way"):
            await fetch(server, client, deadline_s=0.1)
        first.cancel()
        await asyncio.wait([first])

    with_client(use, Limits(at_once=1, start_at_once=1))


# --- breaker, rate, budget, the server


def fail_twenty(server: Server, client: HttpClient) -> Awaitable[list[Any]]:
    server.plan(*[status(500)] * 20)
    return asyncio.gather(*(fetch(server, client) for _ in range(20)), return_exceptions=True)


ONE_TRY = Limits(retries=0)


def test_a_host_that_fails_is_left_alone_by_every_client(server: Server, url: str) -> None:
    async def main() -> None:
        async with open_client(ONE_TRY, url) as one, open_client(ONE_TRY, url) as other:
            await fail_twenty(server, one)
            assert server.calls == 20
            for client in (one, other):
                with pytest.raises(SourceUnavailable, match=r"127\.0\.0\.1:\d+ is not asked for another 1\d\.\d s"):
                    await fetch(server, client)
                assert client.stats()["http_breaker_refused"] == 1
            assert one.stats()["http_breaker_opened"] == 1

    asyncio.run(main())
    assert server.calls == 20
    with redis.Redis.from_url(url) as shared:
        keys = shared.keys("*")
        assert keys
        assert all(key.startswith(b"runner:http:") and shared.pttl(key) > 0 for key in keys)


def test_a_ban_is_never_retried_and_stops_every_client_for_as_long_as_it_says(server: Server, url: str) -> None:
    server.plan(banned(100))

    async def main() -> None:
        async with open_client(QUICK, url) as one, open_client(QUICK, url) as other:
            with pytest.raises(SourceRefused, match=r"HTTP 418, banned: .* is not asked for 100 s"):
                await fetch(server, one)
            for client in (one, other):
                with pytest.raises(SourceUnavailable, match=r"another (99|100)\.\d s"):
                    await fetch(server, client)

    asyncio.run(main())
    assert server.calls == 1


RATE = Rate("test", weight_per_period=1000, period_s=1.0, burst=10)


def test_a_429_to_one_client_blocks_the_other(server: Server, url: str) -> None:
    server.plan(retry_after(30))

    async def main() -> None:
        async with open_client(QUICK, url) as one, open_client(QUICK, url) as other:
            with pytest.raises(SourceUnavailable, match="HTTP 429"):
                await fetch(server, one, rate=RATE, deadline_s=5.0)
            with pytest.raises(SourceUnavailable, match=r"the rate limit of test leaves room in (29|30)\.\d s"):
                await fetch(server, other, rate=RATE, deadline_s=5.0)

    asyncio.run(main())
    assert server.calls == 1


@pytest.mark.parametrize("shared", [False, True])
def test_two_clients_keep_one_rate_together_if_a_server_tells_them(server: Server, url: str, *, shared: bool) -> None:
    slow = Rate("slow", weight_per_period=10, period_s=60.0, burst=10)

    async def main() -> int:
        async with open_client(QUICK, url * shared) as one, open_client(QUICK, url * shared) as other:
            results = await asyncio.gather(
                *(fetch(server, client, rate=slow, weight=2, deadline_s=1.0) for client in (one, other) * 8),
                return_exceptions=True,
            )
        return sum(isinstance(result, Response) for result in results)

    assert asyncio.run(main()) == server.calls == (5 if shared else 10)


def test_without_its_server_it_works_by_local_rules(server: Server, tmp_path: Path) -> None:
    async def main(url: str) -> None:
        async with open_client(ONE_TRY, url) as client:
            assert (await fetch(server, client, rate=RATE)).status == 200
            assert client.stats()["http_shared_errors"] == 1
            await fail_twenty(server, client)
            with pytest.raises(SourceUnavailable, match="is not asked"):
                await fetch(server, client)

    with running_valkey(tmp_path) as url:
        pass  # and gone
    asyncio.run(main(url))


def test_a_server_that_dies_meanwhile_fails_no_request(server: Server, tmp_path: Path) -> None:
    async def main() -> None:
        with running_valkey(tmp_path) as url:
            client = HttpClient(server=redis.asyncio.Redis.from_url(url), limits=QUICK)
            assert (await fetch(server, client, rate=RATE)).status == 200
            assert client.stats()["http_shared_errors"] == 0
        for _ in range(5):
            assert (await fetch(server, client, rate=RATE)).status == 200
        assert client.stats()["http_shared_errors"] >= 1
        await client.close()

    asyncio.run(main())


def test_retries_stay_within_their_budget(server: Server) -> None:
    server.plan(*[None] * 40, *[status(500)] * 1000)

    async def use(client: HttpClient) -> dict[str, int]:
        request = Request(f"{server.base}/x", private=True, cache_ttl_s=0)
        assert all(isinstance(answer, Response) for answer in await client.get_many([request] * 40))
        errors = await client.get_many([request] * 20)
        assert all("needed too many retries" in str(error) for error in errors)
        return client.stats()

    # Of sixty requests, forty of them good so that the breaker keeps out of it, ten may be made again: the floor.
    stats = with_client(use, Limits(retries=100, backoff_s=0.005))
    assert (stats["http_retries"], stats["http_retries_refused"], stats["http_breaker_refused"]) == (10, 20, 0)
    assert server.calls == stats["http_attempts"] == 40 + 20 + 10


def test_the_hosts_used_last_are_remembered_and_no_more_than_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.session.HOSTS", 2)
    monkeypatch.setattr("workers.wire.HOSTS", 2)
    first, other, third = Server(), Server(), Server()

    async def use(client: HttpClient) -> None:
        await asyncio.gather(*(fetch(first, client) for _ in range(20)), return_exceptions=True)
        for server in (other, third):
            with pytest.raises(SourceUnavailable, match="is not asked"):  # its open breaker is remembered
                await fetch(first, client)
            assert (await fetch(server, client)).status == 200
        kept = {server.base.removeprefix("http://") for server in (first, third)}
        assert set(client._hosts) == set(client._wire().limiters) == kept

    with serving(first.app) as first.base, serving(other.app) as other.base, serving(third.app) as third.base:
        first.plan(*[status(500)] * 20)
        with_client(use, ONE_TRY)
    assert first.calls == 20


def test_counters_only_grow_and_are_whole_numbers(server: Server) -> None:
    async def use(client: HttpClient) -> dict[str, int]:
        return client.stats()

    stats = with_client(use)
    assert set(stats.values()) == {0}
    assert all(name.startswith("http_") and type(value) is int for name, value in stats.items())


def test_the_process_ends_its_connections(server: Server) -> None:
    async def use(client: HttpClient) -> None:
        await fetch(server, client)

    with_client(use)
    transport = server.trouble.seen["/x"][0].transport
    wait_until(lambda: transport is None or transport.is_closing(), "the connection is closed")
