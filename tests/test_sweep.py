"""The main job, end to end: a function, real prices, real workers over a real server, one table."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from itertools import repeat
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import psutil
import pytest

import runner
from runner import Client, Results, signing
from runner.errors import (
    InputError,
    SettingsError,
    SpaceError,
    StrategyError,
    SweepExists,
    SweepNotFound,
    SweepTimeout,
    VersionMismatch,
)
from runner.store import Ledger
from tests.support import ROOT, SECRET, Deployment, Worker, wait_until

SP500 = runner.sample_data("SP500")
GRID = runner.grid(fast=range(5, 15), slow=range(20, 60, 4), where=lambda p: p.fast < p.slow)
COSTS = runner.Execution(fees=0.001, slippage=0.0005)


def cross(bars: Any, fast: int = 10, slow: int = 30) -> Any:
    return bars.sma(fast) > bars.sma(slow)


def unruly(bars: Any, point: int) -> Any:
    if point == 3:
        raise ValueError("point three")
    if point == 5:
        return [1.0]
    if point == 7:
        while True:
            pass
    return bars.close > bars.sma(10 + point)


def deadly(bars: Any, point: int) -> Any:
    if point == 11:
        os.abort()
    return bars.close > bars.sma(10 + point)


def slow(bars: Any, point: int) -> Any:
    time.sleep(0.05)
    return bars.close > bars.sma(10 + point)


def local(strategy: Any, space: runner.Space, data: Any = SP500) -> pd.DataFrame:
    return runner.sweep(strategy, data, space, execution=COSTS, progress=False).frame


def check_equal(result: Results, expected: pd.DataFrame) -> None:
    """To the last bit."""
    pd.testing.assert_frame_equal(result.frame, expected, check_exact=True)


def test_a_sweep_comes_back_as_one_table_equal_to_the_local_one(team: Client) -> None:
    sweep = team.sweep(cross, SP500, GRID, execution=COSTS)
    result = sweep.result(timeout=60, progress=False)
    check_equal(result, local(cross, GRID))
    assert result.frame.index.names == ["symbol", "fast", "slow"]
    assert len(result.frame) == len(GRID)
    _, fast, slow = cast("tuple[str, int, int]", result.best("sharpe").name)
    replayed = result.replay(fast=fast, slow=slow)
    assert replayed.stats["sharpe"] == result.best("sharpe")["sharpe"]


def test_several_symbols_are_one_table(team: Client) -> None:
    prices = {name: runner.sample_data(name) for name in ("AAPL", "IBM", "GOOG")}
    result = team.sweep(cross, prices, GRID, execution=COSTS).result(timeout=60, progress=False)
    check_equal(result, local(cross, GRID, prices))
    assert list(result.frame.index.get_level_values("symbol").unique()) == ["AAPL", "IBM", "GOOG"]


def test_a_failing_run_is_a_row_and_hurts_no_other(team: Client) -> None:
    result = team.sweep(unruly, SP500, runner.grid(point=range(12)), run_timeout_s=0.5).result(
        timeout=60, progress=False
    )
    assert list(result.errors.index.get_level_values("point")) == [3, 5, 7]
    assert result.errors["kind"].to_list() == ["ValueError", "StrategyError", "RunTimeoutError"]
    assert "point three" in result.errors["traceback"].iloc[0]
    assert result.frame["sharpe"].isna().sum() == 3
    with pytest.raises(ValueError, match="point three"):
        result.replay(point=3)


def test_the_run_that_kills_its_process_is_found_and_every_other_is_kept(deployment: Deployment, team: Client) -> None:
    result = team.sweep(deadly, SP500, runner.grid(point=range(8, 16))).result(timeout=100, progress=False)
    assert list(result.errors.index.get_level_values("point")) == [11]
    assert "killed the worker process" in result.errors["message"].iloc[0]
    assert result.frame["sharpe"].notna().sum() == 7
    assert deployment.worker.process.poll() is None


def test_a_run_that_hangs_in_c_ends_as_a_row_that_says_so(team: Client) -> None:
    def stuck(bars: Any, n: int) -> Any:
        return deque(repeat(n), maxlen=0)  # for ever, and no signal or exception is looked at

    result = team.sweep(stuck, SP500, runner.grid(n=[1]), run_timeout_s=0.5).result(timeout=100, progress=False)
    assert "without returning to Python" in result.errors["message"].iloc[0]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_child_loses_no_run(deployment: Deployment, team: Client, how: signal.Signals) -> None:
    sweep = team.sweep(slow, SP500, runner.grid(point=range(60)), execution=COSTS)
    wait_until(lambda: sweep.progress().done > 0, "some runs are done")
    for child in deployment.worker.children():
        child.send_signal(how)
    check_equal(sweep.result(timeout=60, progress=False), local(slow, runner.grid(point=range(60))))


def test_a_killed_worker_loses_no_run(client: Client, start_worker: Callable[..., Worker]) -> None:
    victim = start_worker(1)
    sweep = client.sweep(slow, SP500, runner.grid(point=range(60)), execution=COSTS)
    wait_until(lambda: sweep.progress().done > 0, "some runs are done")
    victim.process.kill()
    start_worker(1)
    check_equal(sweep.result(timeout=60, progress=False), local(slow, runner.grid(point=range(60))))


def test_edited_code_runs_and_stale_code_never(team: Client) -> None:
    one = runner.grid(n=[1])
    for size in (0.25, 0.5):
        strategy = eval(f"lambda bars, n: bars.close * 0 + {size}")  # noqa: S307 - a cell, edited and run again
        result = team.sweep(strategy, SP500, one).result(timeout=60, progress=False)
        check_equal(result, runner.sweep(strategy, SP500, one, progress=False).frame)


def test_parts_land_before_the_end_and_are_every_run_once(team: Client) -> None:
    parts = [part.frame for part in team.sweep(slow, SP500, runner.grid(point=range(60)), execution=COSTS)]
    assert len(parts) > 1
    pd.testing.assert_frame_equal(pd.concat(parts).sort_index(), local(slow, runner.grid(point=range(60))))


def test_a_sweep_can_be_awaited_and_iterated_asynchronously(team: Client) -> None:
    async def watch() -> tuple[Results, int]:
        parts = [len(part) async for part in team.sweep(cross, SP500, GRID)]
        return await team.sweep(cross, SP500, GRID, execution=COSTS), sum(parts)

    result, runs = asyncio.run(watch())
    check_equal(result, local(cross, GRID))
    assert runs == len(GRID)


def test_another_client_attaches_and_replays(deployment: Deployment, team: Client) -> None:
    sweep = team.sweep(cross, SP500, GRID, execution=COSTS, name="mine")
    wait_until(lambda: sweep.progress().ended, "it is done, though nobody has asked for its result")
    with Client(deployment.url, SECRET) as other:
        found = other.attach("mine")
        assert "100 of 100 runs, done" in repr(found)
        attached = found.result(timeout=60, progress=False)
    check_equal(attached, sweep.result(timeout=60, progress=False).frame)
    assert attached.replay(fast=5, slow=20).stats["trades"] == attached.frame.loc[("SP500", 5, 20), "trades"]
    with pytest.raises(SweepExists, match="'mine' exists"):
        team.sweep(cross, SP500, GRID, name="mine")


def test_attach_by_url_finds_what_the_environment_does_not(deployment: Deployment, team: Client) -> None:
    team.sweep(cross, SP500, runner.grid(fast=[5], slow=[20]), name="by-url").result(timeout=60, progress=False)
    assert len(runner.attach("by-url", url=deployment.url, secret=SECRET).result(progress=False)) == 1
    with pytest.raises(SweepNotFound, match="'nobody'"):
        runner.attach("nobody", url=deployment.url, secret=SECRET)


def test_a_cancelled_sweep_keeps_the_runs_that_were_done(team: Client) -> None:
    sweep = team.sweep(slow, SP500, runner.grid(point=range(5000)), execution=COSTS)
    wait_until(lambda: sweep.progress().done > 0, "some runs are done")
    sweep.cancel()
    result = sweep.result(timeout=30, progress=False)
    assert result.cancelled
    assert 0 < len(result) == sweep.progress().done < 5000


def test_a_paused_sweep_stands_still_and_goes_on(team: Client) -> None:
    sweep = team.sweep(slow, SP500, runner.grid(point=range(100)), execution=COSTS)
    wait_until(lambda: sweep.progress().done > 0, "some runs are done")
    sweep.pause()
    with pytest.raises(SweepTimeout, match="it goes on"):
        sweep.result(timeout=2, progress=False)
    standing = sweep.progress()
    assert standing.state == "paused"
    assert standing.done < 100
    sweep.resume()
    check_equal(sweep.result(timeout=60, progress=False), local(slow, runner.grid(point=range(100))))


def test_a_sweep_of_high_priority_overtakes(client: Client, start_worker: Callable[..., Worker]) -> None:
    start_worker(1)
    long = client.sweep(slow, SP500, runner.grid(point=range(400)), priority="low")
    wait_until(lambda: long.progress().done > 0, "some runs are done")
    client.sweep(slow, SP500, runner.grid(point=range(20)), priority="high").result(timeout=60, progress=False)
    assert not long.progress().ended
    with pytest.raises(InputError, match="high, normal, low"):
        long.prioritize("urgent")
    long.prioritize("high")
    long.cancel()


def test_a_worker_that_comes_late_finds_the_sweep(client: Client, start_worker: Callable[..., Worker]) -> None:
    with pytest.warns(UserWarning, match="no live worker"):
        sweep = client.sweep(cross, SP500, GRID, execution=COSTS)
    start_worker(1)
    check_equal(sweep.result(timeout=60, progress=False), local(cross, GRID))


def test_messages_that_never_reached_the_queue_are_found(
    client: Client, start_worker: Callable[..., Worker], ledger: Ledger
) -> None:
    with pytest.warns(UserWarning, match="no live worker"):
        sweep = client.sweep(cross, SP500, GRID, execution=COSTS)
    ledger.server.delete("backtest:3")
    start_worker(1)
    check_equal(sweep.result(timeout=60, progress=False), local(cross, GRID))


def test_ctrl_c_stops_the_waiting_and_says_how_to_come_back(
    deployment: Deployment, team: Client, tmp_path: Path
) -> None:
    script = tmp_path / "wait.py"
    script.write_text(
        "import time, runner\n"
        "def strategy(bars, point):\n    time.sleep(0.05)\n    return bars.close > bars.sma(10 + point)\n"
        f"client = runner.connect({deployment.url!r}, secret={SECRET!r})\n"
        "space = runner.grid(point=range(60))\n"
        "sweep = client.sweep(strategy, runner.sample_data('SP500'), space, name='interrupted')\n"
        "print('submitted', flush=True)\nsweep.result()\n"
    )
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "submitted\n"
        sweep = team.attach("interrupted")
        wait_until(lambda: sweep.progress().done > 0, "some runs are done")
        psutil.Process(process.pid).send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
    assert process.returncode != 0
    assert "runner.attach('interrupted')" in out + err
    assert sweep.result(timeout=60, progress=False).frame["sharpe"].notna().all()


def test_no_key_is_left_without_an_owner(team: Client) -> None:
    sweep = team.sweep(cross, SP500, GRID)
    sweep.result(timeout=60, progress=False)
    team._ledger.remove(sweep.id)
    server = team._ledger.server
    left = {key.decode() for key in server.keys("runner:*") if server.ttl(key) == -1}  # -1: it stays
    of_the_deployment = {"workers", "workers:info", "secret", "reconciler", "rejected", "refused", "health"}
    assert {key for key in left if not key.startswith("runner:health:")} <= {f"runner:{n}" for n in of_the_deployment}


def test_a_forged_message_is_refused_counted_and_stops_nothing(team: Client) -> None:
    team._app.send_task("tasks.backtest.run_chunk", args=[{"batch": "x", "start": 0}], queue="backtest")
    team._app.send_task("tasks.backtest.run_chunk", args=[], queue="backtest")
    wait_until(lambda: team._ledger.server.hget("runner:rejected", "malformed") == b"2", "both are counted")
    check_equal(team.sweep(cross, SP500, GRID, execution=COSTS).result(timeout=60, progress=False), local(cross, GRID))


def test_emptying_the_server_is_said_and_hangs_nobody(client: Client, ledger: Ledger) -> None:
    with pytest.warns(UserWarning, match="no live worker"):
        sweep = client.sweep(cross, SP500, GRID)
    ledger.server.flushall()
    with pytest.raises(SweepNotFound, match="emptied"):
        sweep.result(timeout=20, progress=False)


def test_a_worker_of_another_python_is_named_before_anything_is_sent(client: Client, ledger: Ledger) -> None:
    ledger.beat("old@host", {"name": "old@host", "queues": ["backtest"], "concurrency": 1, "python": "3.9"})
    with pytest.raises(VersionMismatch, match=r"old@host runs Python 3\.9"):
        client.sweep(cross, SP500, GRID)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"strategy": 3}, StrategyError, "expected a function"),
        ({"strategy": "nowhere:f"}, StrategyError, "no module"),
        ({"space": [1, 2]}, SpaceError, "runner.grid"),
        ({"space": runner.grid(fsat=[1], slow=[2])}, StrategyError, "did you mean 'fast'"),
        ({"data": {}}, InputError, "empty mapping"),
        ({"data": 3}, InputError, "DataFrame"),
        ({"execution": {"fees": 1}}, SettingsError, "runner.Execution"),
        ({"name": "No Spaces"}, InputError, "lower-case"),
        ({"priority": "urgent"}, InputError, "high, normal, low"),
        ({"run_timeout_s": 0}, SettingsError, "run_timeout_s=0"),
    ],
)
def test_wrong_arguments_are_named_and_leave_nothing_behind(
    client: Client, ledger: Ledger, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    options: dict[str, Any] = {"strategy": cross, "data": SP500, "space": GRID, **change}
    with pytest.raises(error, match=words):
        client.sweep(options.pop("strategy"), options.pop("data"), options.pop("space"), **options)
    assert ledger.batches() == []


def test_every_part_of_a_task_goes_through_a_spawned_child(deployment: Deployment, team: Client) -> None:
    children = deployment.worker.children()
    assert len(children) == 2
    result = team.sweep(
        lambda bars, n: np.full(len(bars), float(__import__("os").getppid() == n)),
        SP500,
        runner.grid(n=[deployment.worker.process.pid]),
    ).result(timeout=60, progress=False)
    assert result.frame["exposure"].iloc[0] > 0.99


def test_a_strategy_without_parameters_is_one_run(team: Client) -> None:
    result = team.sweep("runner.strategies:buy_and_hold", SP500, runner.grid(), execution=COSTS).result(
        timeout=60, progress=False
    )
    check_equal(result, local("runner.strategies:buy_and_hold", runner.grid()))


def test_code_that_cannot_be_loaded_on_the_worker_makes_rows_that_say_so(team: Client) -> None:
    fresh = eval("lambda bars, n: bars.close > 1000 + n")  # noqa: S307 - code that no child has seen
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("runner.client.sign_code", lambda secret, code: signing.sign_code("another-secret", code))
        sweep = team.sweep(fresh, SP500, runner.grid(n=range(20)))
    assert sweep.result(timeout=60, progress=False).errors["kind"].to_list() == ["Refused"] * 20


def test_a_name_that_is_taken_again_never_runs_what_it_named_before(team: Client) -> None:
    first = team.sweep(cross, SP500, GRID, name="again").result(timeout=60, progress=False)
    team._ledger.remove("again")
    flat = team.sweep("runner.strategies:buy_and_hold", SP500, runner.grid(), name="again").result(
        timeout=60, progress=False
    )
    assert len(first) == len(GRID)
    check_equal(flat, runner.sweep("runner.strategies:buy_and_hold", SP500, runner.grid(), progress=False).frame)


def test_prices_that_are_gone_from_the_server_are_rows_that_say_so(team: Client) -> None:
    prices = SP500[: 1000 + int(__import__("time").time()) % 1000]
    sweep = team.sweep(cross, prices, GRID)
    sweep.pause()
    team._ledger.server.delete(f"runner:data:{prices.digest}")
    sweep.resume()
    kinds = set(sweep.result(timeout=60, progress=False).errors["kind"])
    assert kinds <= {"BrokerError"}
