from __future__ import annotations

import asyncio
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests import misbehaving
from tests.faults.helpers import (
    check_whole,
    client_of,
    command,
    counter,
    crew,
    owners,
    serving,
    side_by_side,
    sweep_of,
)
from tests.processes import family, wait_gone
from tests.support import wait_until
from workers.standin import make_app

# For the process to end once nothing runs: not the grace's 20 s, nor a hang's 60.
ENDS_WITHIN_S = 15.0


def scaled_down(folder: Path) -> None:
    """One of two workers is told to stop while both are busy."""
    with (
        serving(folder) as server,
        crew(server.url, folder, 1, 1) as [leaver, _],
        client_of(server.url) as (client, ledger),
    ):
        sweep = sweep_of(client, 80, 0.1)
        wait_until(lambda: sweep.progress().done > 10, "it runs")
        everything = family(leaver.process.pid)
        leaver.process.terminate()
        assert leaver.process.wait(ENDS_WITHIN_S) == 0, leaver.log.read_text()
        wait_gone(everything)
        check_whole(sweep, ledger, 80)
        assert counter(ledger, "tasks_lost") == 0
        assert counter(ledger, "tasks_failed") == 0
        assert "handed back" not in leaver.log.read_text()


def handed_back(folder: Path) -> None:
    """Four workers with a run that never ends: a short grace, two orders to each of two, a keeper that is killed."""
    gate, log = folder / "gate", folder / "command.log"
    with serving(folder) as server, client_of(server.url) as (client, ledger), ExitStack() as stack:

        def start(*words: str) -> subprocess.Popen[bytes]:
            return stack.enter_context(command(server.url, folder, "-m", *words, "--concurrency", "1"))

        short = start("workers", "--grace", "1")
        long = start("workers", "--grace", "100")
        kept = start("workers.keeper", "--grace", "100")
        orphaned = start("workers.keeper", "--grace", "100")
        wait_until(lambda: ledger.slots("backtest") == 4, "all are up", timeout_s=60)
        everything = [member for each in (short, long, kept, orphaned) for member in family(each.pid)]
        sweeps = [sweep_of(client, 2, gate=gate) for _ in range(4)]
        wait_until(lambda: all(owners(ledger, sweep.id) for sweep in sweeps), "every worker has a chunk")

        for told, each in enumerate((short, long, kept), 1):
            each.terminate()
            wait_until(lambda told=told: log.read_text().count("told to stop") == told, "the order is taken", log=log)  # type: ignore[misc]  # mypy cannot infer a default
        for each in (long, kept):
            each.terminate()
        orphaned.kill()
        assert [each.wait(ENDS_WITHIN_S) for each in (short, long, kept)] == [0, 0, 0]
        wait_gone(everything)
        assert [owners(ledger, sweep.id) for sweep in sweeps] == [{}, {}, {}, {}]
        assert ledger.workers() == []

        gate.touch()
        with crew(server.url, folder, 2):
            for sweep in sweeps:
                check_whole(sweep, ledger, 2)
        assert counter(ledger, "tasks_lost") == 0
        assert counter(ledger, "tasks_failed") == 0


def fetch_handed_back(folder: Path) -> None:
    """A fetch worker with a request that is never answered is told twice."""
    app = make_app()
    trouble = misbehaving.Trouble(app)
    asked = threading.Event()

    async def never(_request: web.Request) -> web.StreamResponse:
        asked.set()
        await asyncio.sleep(600)
        raise AssertionError

    with (
        misbehaving.serving(app) as provider,
        serving(folder) as server,
        crew(server.url, folder, 1, queue="fetch") as [leaver],
        client_of(server.url) as (client, ledger),
        ThreadPoolExecutor() as user,
    ):
        trouble.plan["/binance/api/v3/klines"] = [never]
        options: dict[str, Any] = {"source": "binance", "base_url": f"{provider}/binance"}
        waiting = user.submit(client.fetch, "SP500", start="2018-01-01", end="2019-01-01", **options)
        assert asked.wait(30)
        leaver.process.terminate()
        wait_until(lambda: "told to stop" in leaver.log.read_text(), "the order is taken")
        leaver.process.terminate()
        assert leaver.process.wait(ENDS_WITHIN_S) == 0
        with crew(server.url, folder, 1, queue="fetch"):
            assert len(waiting.result(60)) == 251
        assert counter(ledger, "tasks_lost") == 0


SCENARIOS: dict[str, Callable[[Path], None]] = {
    "test_what_does_not_end_in_time_is_handed_back_and_others_have_it_at_once": handed_back,
    "test_scaling_down_under_load_loses_nothing_and_lets_chunks_finish": scaled_down,
    "test_a_fetch_worker_hands_back_too": fetch_handed_back,
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


def test_what_does_not_end_in_time_is_handed_back_and_others_have_it_at_once(scenario: Future[None]) -> None:
    scenario.result()


def test_scaling_down_under_load_loses_nothing_and_lets_chunks_finish(scenario: Future[None]) -> None:
    scenario.result()


def test_a_fetch_worker_hands_back_too(scenario: Future[None]) -> None:
    scenario.result()
