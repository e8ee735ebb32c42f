from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

import runner
from runner.store import Ledger
from runner.strategies import sma_cross
from tests.faults.helpers import check_whole, command, owners, sweep_of
from tests.support import ROOT, SECRET, Worker, lives, wait_until


def test_sigterm_finishes_what_runs_signs_off_and_leaves_no_process(
    client: runner.Client, ledger: Ledger, start_worker: Callable[..., Worker]
) -> None:
    worker = start_worker(1)
    client.sweep(sma_cross, runner.sample_data("IBM"), runner.grid(fast=[5], slow=[20])).result(
        timeout=60, progress=False
    )
    family = psutil.Process(worker.process.pid).children(recursive=True)
    worker.process.terminate()
    assert worker.process.wait(timeout=20) == 0
    assert ledger.workers() == []
    wait_until(lambda: not any(map(lives, family)), "its children are gone", timeout_s=5)


def test_children_are_spawned_with_one_thread_each(start_worker: Callable[..., Worker]) -> None:
    worker = start_worker(2)
    wait_until(lambda: len(worker.children()) == 2, "both children are there")
    for child in worker.children():
        assert child.environ()["OMP_NUM_THREADS"] == "1"
        assert child.environ()["NUMBA_NUM_THREADS"] == "1"


def test_a_worker_says_what_it_is(start_worker: Callable[..., Worker], ledger: Ledger) -> None:
    worker = start_worker(2)
    said = ledger.workers()[0]
    assert said["pid"] == worker.process.pid
    assert said["concurrency"] == 2
    assert said["queues"] == ["backtest"]
    assert said["python"] == f"{sys.version_info.major}.{sys.version_info.minor}"


def test_a_worker_that_comes_back_under_its_old_name_has_its_past_run_again_at_once(
    client: runner.Client, ledger: Ledger, url: str, tmp_path: Path
) -> None:
    options = ("-m", "workers", "--concurrency", "1", "--name", "fixed")
    gate = tmp_path / "gate"
    with command(url, tmp_path, *options) as first:
        wait_until(lambda: ledger.slots("backtest") == 1, "it is up")
        sweep = sweep_of(client, 1, gate=gate)
        wait_until(lambda: owners(ledger, sweep.id) != {}, "the run is in a child")
        had = owners(ledger, sweep.id)
        first.kill()
        first.wait()
    with command(url, tmp_path, *options):
        # By redelivery alone that would be the 30 s of the visibility timeout.
        wait_until(lambda: owners(ledger, sweep.id) not in ({}, had), "it runs again", timeout_s=20)
        gate.touch()
        check_whole(sweep, ledger, 1)


def test_the_kept_worker_of_the_command_line_is_started_again_and_stops_with_it(
    ledger: Ledger, url: str, tmp_path: Path
) -> None:
    with command(url, tmp_path, "-m", "runner", "worker", "--concurrency", "1") as keeper:
        wait_until(lambda: ledger.slots("backtest") == 1, "it is up")
        [before] = ledger.workers()
        assert before["pid"] != keeper.pid
        psutil.Process(before["pid"]).kill()
        wait_until(lambda: any(row["pid"] != before["pid"] for row in ledger.workers()), "another is alive")
        everything = psutil.Process(keeper.pid).children(recursive=True)
        keeper.terminate()
        assert keeper.wait(timeout=20) == 0
        wait_until(lambda: not any(map(lives, everything)), "its family is gone", timeout_s=5)


@pytest.mark.parametrize(
    ("variables", "arguments", "code", "words"),
    [
        ({}, [], 1, "RUNNER_URL and RUNNER_SECRET"),
        (
            {"RUNNER_URL": "redis://:x@127.0.0.1:1/0", "RUNNER_SECRET": SECRET},
            [],
            1,
            "no Redis or Valkey server answers",
        ),
        ({"RUNNER_URL": "amqp://h", "RUNNER_SECRET": SECRET}, [], 1, "RUNNER_URL"),
        ({}, ["--queues", "bogus"], 2, "expected backtest or fetch"),
        ({}, ["--queues", "backtest,fetch"], 2, "one worker serves one queue"),
        ({}, ["--concurrency", "0"], 2, "at least 1"),
        ({}, ["--grace", "soon"], 2, "'soon': expected a whole number"),
    ],
)
def test_a_worker_that_cannot_start_says_why(
    variables: dict[str, str], arguments: list[str], code: int, words: str
) -> None:
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "workers", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_another_secret_is_refused_at_the_door(client: runner.Client, url: str) -> None:
    environment = {
        **os.environ,
        "RUNNER_URL": url,
        "RUNNER_SECRET": "another-secret-altogether",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "workers"], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "another secret" in done.stderr
