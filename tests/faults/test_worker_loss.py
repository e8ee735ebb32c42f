from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import pytest

import runner
from tests.faults.helpers import (
    SP500,
    check_rows,
    check_whole,
    client_of,
    counter,
    crew,
    ended,
    owners,
    serving,
    side_by_side,
    sweep_of,
    timed_until,
    waiting_chunks,
)
from tests.support import wait_until

# The promise: the chunks of a killed worker run again this much later, median of many.
RUNNING_AGAIN_S = 10.0
# A run of a chunk, and one that is a chunk alone.
LENGTHS_S = (0.5, 30.0)
# A hang, not a wait.
AT_MOST_S = 30.0
# Nothing that a worker did when it was killed has been paid for more often than this.
MOST_EXTRA_ATTEMPTS = 20


def stopped(folder: Path, rounds: int) -> None:
    """Three idle workers are stopped, each with a pending BRPOP that takes a message, and then killed."""
    lost = 0
    with serving(folder) as server, client_of(server.url) as (client, ledger):
        for _ in range(rounds):
            with crew(server.url, folder, 1, 1, 1) as idle:
                check_whole(sweep_of(client, 1), ledger, 1)  # what is uploaded once is on the server
                for worker in idle:
                    worker.process.send_signal(signal.SIGSTOP)
                sweeps = [sweep_of(client, 1) for _ in idle]
                for worker in idle:
                    worker.process.kill()
                wait_until(lambda idle=idle: all(one.process.poll() is not None for one in idle), "they are dead")  # type: ignore[misc]  # mypy cannot infer a default
                lost += len(idle) - ledger.waiting("backtest")
            with crew(server.url, folder, 1):
                for sweep in sweeps:
                    check_whole(sweep, ledger, 1)
    assert lost  # else the fault did not happen


def saturated(folder: Path, kills: int, runs: int, seed: int) -> None:
    """The main process of the only worker is killed in the middle of its work, again and again."""
    chance = random.Random(seed)  # noqa: S311 -- no secret depends on it
    with serving(folder) as server, client_of(server.url) as (client, ledger):
        sweeps: list[runner.SweepHandle] = []
        for _ in range(kills):
            with crew(server.url, folder, 2) as [worker]:
                if not sweeps or ended(sweeps[-1]):
                    sweeps.append(sweep_of(client, runs, 0.02))
                time.sleep(chance.random())
                worker.process.kill()
        with crew(server.url, folder, 2):
            for sweep in sweeps:
                check_whole(sweep, ledger, runs, timeout_s=600)


def killed(folder: Path, trials: int) -> dict[float, list[float]]:
    """Seconds until the chunk of a killed worker runs again, by the seconds that a run takes."""

    def measured(seconds: float) -> list[float]:
        own = folder / f"{seconds:g}"
        own.mkdir()
        with serving(own) as server:
            return [running_again_s(server.url, own, seconds) for _ in range(trials)]

    with ThreadPoolExecutor() as both:
        return dict(zip(LENGTHS_S, both.map(measured, LENGTHS_S), strict=True))


def running_again_s(url: str, folder: Path, seconds: float) -> float:
    """Kill one of two workers, with a chunk; how long until somebody else has that, or it is done."""
    gate = folder / "gate"
    with crew(url, folder, 1) as [victim], client_of(url) as (client, ledger):
        # Of short runs there are more than enough; a long one lasts until the gate opens.
        sweep = sweep_of(client, 200, seconds) if seconds < 30 else sweep_of(client, 1, gate=gate)
        owner = f"/{victim.children()[0].pid}"

        def its_chunks() -> set[int]:
            return {start for start, name in owners(ledger, sweep.id).items() if name.endswith(owner)}

        with crew(url, folder, 1):
            wait_until(lambda: bool(its_chunks()), "the victim has a chunk")
            victim.process.kill()
            victim.process.wait()
            had = its_chunks()
            assert had, "it was killed between two chunks, which is rare: run the test again"

            def elsewhere() -> bool:
                return had.isdisjoint(its_chunks() | waiting_chunks(ledger, sweep.id))

            took_s = timed_until(elsewhere, "another worker has it", timeout_s=AT_MOST_S)
            gate.touch()
            sweep.cancel()
    gate.unlink()
    return took_s


SCENARIOS: dict[str, Callable[[Path], Any]] = {
    "test_a_message_that_dies_with_a_stopped_worker_is_found_again": partial(stopped, rounds=1),
    "test_a_saturated_worker_whose_main_process_is_killed_loses_no_run": partial(saturated, kills=2, runs=150, seed=1),
    "test_the_chunks_of_a_killed_worker_run_again_however_long_they_are": partial(killed, trials=1),
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


def test_a_message_that_dies_with_a_stopped_worker_is_found_again(scenario: Future[None]) -> None:
    scenario.result()


def test_a_saturated_worker_whose_main_process_is_killed_loses_no_run(scenario: Future[None]) -> None:
    scenario.result()


def test_the_chunks_of_a_killed_worker_run_again_however_long_they_are(scenario: Future[None]) -> None:
    scenario.result()


@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_no_message_of_thirty_that_die_with_stopped_workers_is_lost(tmp_path: Path) -> None:
    stopped(tmp_path, 10)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", [2])
def test_a_hundred_kills_of_a_saturated_worker_lose_and_repeat_no_run(tmp_path: Path, seed: int) -> None:
    saturated(tmp_path, 100, 10_000, seed)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_the_chunks_of_a_killed_worker_run_again_within_ten_seconds(tmp_path: Path) -> None:
    for seconds, took_s in killed(tmp_path, 20).items():
        assert median(took_s) <= RUNNING_AGAIN_S, (seconds, sorted(took_s))


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_one_run_in_ten_thousand_that_kills_is_found_in_few_attempts(tmp_path: Path) -> None:
    def deadly(bars: Any, point: int) -> Any:
        if point == 7_321:
            os.abort()
        return bars.close > bars.sma(5 + point % 100)

    with (
        serving(tmp_path) as server,
        crew(server.url, tmp_path, 2) as [worker],
        client_of(server.url) as (client, ledger),
    ):
        sweep = client.sweep(deadly, SP500, runner.grid(point=range(10_000)))
        result = sweep.result(timeout=500, progress=False)
        check_rows(ledger, sweep.id, 10_000)
        assert list(result.errors.index.get_level_values("point")) == [7_321]
        assert "killed the worker process" in result.errors["message"].iloc[0]
        assert counter(ledger, "tasks_lost") <= MOST_EXTRA_ATTEMPTS
        assert worker.process.poll() is None


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_live_workers_under_full_load_for_ten_minutes_are_never_thought_dead(tmp_path: Path) -> None:
    def busy(bars: Any, point: int) -> Any:
        ends = time.monotonic() + 0.3
        while time.monotonic() < ends:
            pass
        return bars.close > bars.sma(10)

    with (
        serving(tmp_path) as server,
        crew(server.url, tmp_path, 3, 3) as workers,  # more children than cores
        client_of(server.url) as (client, ledger),
    ):
        sweep = client.sweep(busy, SP500, runner.grid(point=range(20_000)))
        for _ in range(600):
            time.sleep(1.0)
            assert len(ledger.workers()) == 2
        sweep.cancel()
        assert counter(ledger, "tasks_lost") == 0
        assert [worker.process.poll() for worker in workers] == [None, None]
