from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import misbehaving
from tests.faults.helpers import (
    Link,
    check_whole,
    client_of,
    counter,
    crew,
    ended,
    owners,
    serving,
    side_by_side,
    sweep_of,
)
from tests.support import wait_until
from workers.standin import make_app

# The promise for a half-open link.
CONSUMING_AGAIN_S = 30.0


def in_hand(folder: Path) -> None:
    """A chunk runs, another slot is free: what the main process of Celery 5.7.0 died of."""
    with serving(folder) as server, crew(server.url, folder, 2) as [worker], client_of(server.url) as (client, ledger):
        sweep = sweep_of(client, 1, 3.0)
        wait_until(lambda: owners(ledger, sweep.id) != {}, "the run is in a child")
        server.kill()
        time.sleep(1.0)  # the fault itself: it is away for so long
        server.start()
        check_whole(sweep, ledger, 1)
        check_whole(sweep_of(client, 20, 0.01), ledger, 20)
        assert worker.process.poll() is None
        assert [row["pid"] for row in ledger.workers()] == [worker.process.pid]


def fetch_in_hand(folder: Path) -> None:
    """The same in the pool of threads."""
    app = make_app()
    trouble = misbehaving.Trouble(app)
    asked = threading.Event()

    async def late(request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(3)
        handler: Any = request.match_info.handler
        response: web.StreamResponse = await handler(request)
        return response

    with (
        misbehaving.serving(app) as provider,
        serving(folder) as server,
        crew(server.url, folder, 2, queue="fetch") as [worker],
        client_of(server.url) as (client, _),
        ThreadPoolExecutor() as user,
    ):
        trouble.plan["/binance/api/v3/klines"] = [late]
        options: dict[str, Any] = {"source": "binance", "base_url": f"{provider}/binance"}
        options |= {"start": "2018-01-01", "end": "2019-01-01"}
        waiting = user.submit(client.fetch, "SP500", **options)
        assert asked.wait(30)
        server.kill()
        time.sleep(1.0)
        server.start()
        assert len(waiting.result(60)) == 251
        assert len(client.fetch("ABC", **options)) == 365
        assert worker.process.poll() is None


def killed(folder: Path, kills: int, seed: int) -> None:
    """The server dies again and again in the middle of a sweep, and comes back with its file."""
    chance, runs = random.Random(seed), 40 * kills  # noqa: S311 -- no secret depends on it
    with serving(folder) as server, crew(server.url, folder, 2) as [worker], client_of(server.url) as (client, ledger):
        sweep = sweep_of(client, runs, 0.1)
        for _ in range(kills):
            before = sweep.progress().done
            wait_until(lambda before=before: sweep.progress().done > before, "it goes on", timeout_s=60)  # type: ignore[misc]  # mypy cannot infer a default
            time.sleep(chance.random())
            server.kill()
            time.sleep(chance.random())
            server.start()
        check_whole(sweep, ledger, runs)
        assert worker.process.poll() is None


def paused(folder: Path, pause_s: float) -> None:
    """The server answers nothing for longer than a heartbeat may be missing."""
    with (
        serving(folder) as server,
        crew(server.url, folder, 1, 1) as workers,
        client_of(server.url) as (client, ledger),
    ):
        sweep = sweep_of(client, 60, 0.1)
        wait_until(lambda: sweep.progress().done > 0, "some runs are done")
        with server.paused():
            time.sleep(pause_s)
        check_whole(sweep, ledger, 60)
        assert counter(ledger, "tasks_lost") == 0
        assert [worker.process.poll() for worker in workers] == [None, None]


def half_open(folder: Path) -> None:
    """The worker's connections go on to exist, and carry nothing."""
    with (
        serving(folder) as server,
        Link(server.url) as link,
        crew(link.url, folder, 1) as [worker],
        client_of(server.url) as (client, ledger),
    ):
        check_whole(sweep_of(client, 4, 0.01), ledger, 4)
        assert link.swallow() > 2
        check_whole(sweep_of(client, 4, 0.01), ledger, 4, timeout_s=CONSUMING_AGAIN_S)
        assert worker.process.poll() is None


def full(folder: Path) -> None:
    """First there is a cache to give way, then nothing."""
    with serving(folder) as server, crew(server.url, folder, 2) as [worker], client_of(server.url) as (client, ledger):
        redis = ledger.server
        used = int(redis.info("memory")["used_memory"])
        redis.config_set("maxmemory", used + 16_000_000)
        for n in range(40):
            redis.set(f"cache:{n}", bytes(1_000_000), ex=600)
        check_whole(sweep_of(client, 20, 0.01), ledger, 20)
        assert 0 < sum(redis.exists(f"cache:{n}") for n in range(40)) < 40

        sweep = sweep_of(client, 60, 0.1)
        wait_until(lambda: sweep.progress().done > 0, "some runs are done")
        redis.config_set("maxmemory", 100_000)
        wait_until(lambda: "cannot be written to" in worker.log.read_text(), "the worker says why it waits")
        done = sweep.progress().done
        time.sleep(6.0)  # the fault itself: longer than a heartbeat may be missing
        assert sweep.progress().done == done
        assert not ended(sweep)
        redis.config_set("maxmemory", used + 64_000_000)
        check_whole(sweep, ledger, 60)
        assert worker.process.poll() is None
        assert counter(ledger, "tasks_lost") == 0


SCENARIOS: dict[str, Callable[[Path], None]] = {
    "test_after_a_pause_of_the_server_everything_goes_on_and_nobody_is_thought_dead": partial(paused, pause_s=12.0),
    "test_a_worker_behind_a_half_open_link_consumes_again": half_open,
    "test_when_memory_is_full_the_cache_gives_way_and_then_writes_wait": full,
    "test_a_worker_with_a_chunk_in_hand_and_a_free_slot_outlives_its_server": in_hand,
    "test_a_server_killed_in_mid_sweep_loses_and_repeats_no_run": partial(killed, kills=2, seed=1),
    "test_a_fetch_worker_with_a_symbol_in_hand_outlives_its_server": fetch_in_hand,
}


@pytest.fixture(scope="module", autouse=True)
def begun(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    with side_by_side(request, tmp_path_factory, SCENARIOS) as futures:
        yield futures


@pytest.fixture
def scenario(request: pytest.FixtureRequest, begun: dict[str, Future[None]]) -> Future[None]:
    return begun[request.node.name]


def test_after_a_pause_of_the_server_everything_goes_on_and_nobody_is_thought_dead(scenario: Future[None]) -> None:
    scenario.result()


def test_a_worker_behind_a_half_open_link_consumes_again(scenario: Future[None]) -> None:
    scenario.result()


def test_when_memory_is_full_the_cache_gives_way_and_then_writes_wait(scenario: Future[None]) -> None:
    scenario.result()


def test_a_worker_with_a_chunk_in_hand_and_a_free_slot_outlives_its_server(scenario: Future[None]) -> None:
    scenario.result()


def test_a_server_killed_in_mid_sweep_loses_and_repeats_no_run(scenario: Future[None]) -> None:
    scenario.result()


def test_a_fetch_worker_with_a_symbol_in_hand_outlives_its_server(scenario: Future[None]) -> None:
    scenario.result()


@pytest.mark.chaos
def test_a_pause_of_half_a_minute_is_no_different(tmp_path: Path) -> None:
    paused(tmp_path, 30.0)


@pytest.mark.chaos
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [2])
def test_ten_kills_are_no_different(tmp_path: Path, seed: int) -> None:
    killed(tmp_path, 10, seed)
