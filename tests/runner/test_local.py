"""The local door: the same numbers whichever way, a bad run is a row, and nothing is left behind."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest

import runner
from runner import executor, local
from runner.bars import Bars, sample_data
from runner.engine.batch import run_batch
from runner.errors import BarsError, ExecutorError, InputError, SettingsError, SpaceError, StrategyError
from runner.results import Results
from runner.spec import Execution

WAYS: list[dict[str, Any]] = [{}, {"processes": 2}, {"threads": 2}]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and faults are POSIX")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert [child for child in psutil.Process().children(recursive=True) if child not in before] == []


@pytest.fixture(scope="module")
def prices() -> Bars:
    return sample_data("IBM")[:600]


def cross(bars: Bars, fast: int = 10, slow: int = 30) -> Any:
    return bars.sma(fast) > bars.sma(slow)


def metrics_of(results: Results) -> np.ndarray:
    return results.frame.drop(columns="error").to_numpy(dtype=float)


# Numbers


def test_the_numbers_are_those_of_run_batch_to_the_last_bit_whichever_way(prices: Bars) -> None:
    space = runner.grid(fast=range(2, 30), slow=range(5, 60), where=lambda p: p.fast < p.slow)
    execution = Execution(fees=0.001, slippage=0.0005, trailing_stop=0.1)
    data = {"A": prices, "B": sample_data("AAPL")[:500]}
    expected = np.concatenate([run_batch(cross, bars, space, execution).metrics for bars in data.values()])
    for way in WAYS:
        results = local.sweep(cross, data, space, execution=execution, **way)
        assert metrics_of(results).tobytes() == expected.tobytes()
        assert len(results.errors) == 0
        assert list(results.symbols) == ["A", "B"]


@pytest.mark.parametrize("way", WAYS)
def test_a_random_sample_gives_the_same_numbers_too(prices: Bars, way: dict[str, Any]) -> None:
    space = runner.sample(300, level=runner.uniform(0.5, 1.5), seed=3)

    def below(bars: Bars, level: float) -> Any:
        return bars.close < level * bars.sma(20)

    expected = run_batch(below, prices, space, Execution()).metrics
    assert metrics_of(local.sweep(below, prices, space, **way)).tobytes() == expected.tobytes()


def test_rows_are_named_by_symbol_and_parameters_in_run_order(prices: Bars) -> None:
    results = local.sweep(cross, {"X": prices}, runner.grid(fast=[3, 4], slow=[10, 20]), processes=1)
    assert results.frame.index.to_list() == [("X", 3, 10), ("X", 3, 20), ("X", 4, 10), ("X", 4, 20)]
    assert results.elapsed_s is not None
    assert results.elapsed_s > 0


def test_a_row_can_be_replayed(prices: Bars) -> None:
    results = local.sweep(cross, prices, runner.grid(fast=[3], slow=[10, 20]), processes=1)
    replayed = results.replay(fast=3, slow=20)
    assert replayed.stats["sharpe"] == results.frame["sharpe"].iloc[1]


def test_more_workers_than_runs(prices: Bars) -> None:
    assert len(local.sweep(cross, prices, runner.grid(fast=3), processes=8)) == 1
    assert len(local.sweep(cross, prices, runner.grid(fast=3), threads=8)) == 1


def test_a_frame_is_prices_too(prices: Bars) -> None:
    frame = prices.to_frame()
    assert metrics_of(local.sweep(cross, frame, runner.grid(fast=3))).tobytes() == (
        metrics_of(local.sweep(cross, prices, runner.grid(fast=3))).tobytes()
    )
    assert set(local.as_bars({"A": frame, "B": prices})) == {"A", "B"}


def test_the_executor_is_behind_this_door() -> None:
    assert local.batch_execute is executor.batch_execute
    assert local.execute_in_process is executor.execute_in_process


# A bad run


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_fails_is_a_row(prices: Bars, way: dict[str, Any]) -> None:
    def fragile(bars: Bars, n: int) -> Any:
        if n == 7:
            raise ValueError("seven")
        if n == 8:
            sys.exit("eight")
        return bars.close > bars.sma(n) if n != 9 else None

    results = local.sweep(fragile, prices, runner.grid(n=range(2, 40)), **way)
    assert len(results) == 38
    assert results.errors["kind"].to_dict() == {
        (prices.symbol, 7): "ValueError",
        (prices.symbol, 8): "SystemExit",
        (prices.symbol, 9): "StrategyError",
    }
    assert results.frame["sharpe"].notna().sum() >= 34


@posix
def test_a_run_that_kills_its_process_is_a_row_after_two_deaths_and_every_other_run_keeps_its_numbers(
    prices: Bars, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"

    def deadly(bars: Bars, n: int) -> Any:
        if n in (200, 201):
            with deaths.open("a") as file:
                file.write(f"{n} ")
            os.kill(os.getpid(), signal.SIGSEGV)
        return bars.close > bars.sma(n)

    space = runner.grid(n=range(2, 400))
    results = local.sweep(deadly, prices, space, processes=2)
    assert results.errors["kind"].to_dict() == {(prices.symbol, n): "WorkerLost" for n in (200, 201)}
    assert "SIGSEGV" in results.errors["message"].iloc[0]
    assert deaths.read_text().split().count("200") == 2
    assert 1 <= deaths.read_text().split().count("201") <= 2
    alive = [point for point in space if point["n"] not in (200, 201)]
    expected = run_batch(lambda bars, n: bars.close > bars.sma(n), prices, alive, Execution()).metrics
    rows = results.frame["error"].isna().to_numpy()
    assert metrics_of(results)[rows].tobytes() == expected.tobytes()


def loops_in_python(bars: Bars, n: int) -> Any:
    while n == 3:
        pass
    return bars.close > bars.sma(n)


def loops_in_c(bars: Bars, n: int) -> Any:
    if n == 3:
        re.match(r"(a+)+$", "a" * 60 + "b")  # without end, and the GIL is never let go
    return bars.close > bars.sma(n)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_never_ends_is_a_row(prices: Bars, way: dict[str, Any]) -> None:
    results = local.sweep(loops_in_python, prices, runner.grid(n=range(2, 10)), run_timeout_s=0.3, **way)
    assert results.errors["kind"].to_dict() == {(prices.symbol, 3): "RunTimeoutError"}
    assert len(results) == 8


def test_a_run_that_never_returns_from_c_is_a_row(prices: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "GRACE_S", 0.3)
    results = local.sweep(loops_in_c, prices, runner.grid(n=range(2, 10)), run_timeout_s=0.3, processes=2)
    assert results.errors["kind"].to_dict() == {(prices.symbol, 3): "RunTimeoutError"}
    assert results.frame["sharpe"].notna().sum() == 7


# What cannot be run is refused before anything runs


def test_unknown_parameters_and_wrong_arguments_are_refused_before_anything_runs(prices: Bars) -> None:
    space = runner.grid(fast=[3])

    def never(bars: Bars, fast: int = 1) -> Any:
        pytest.fail("it ran")

    for way in WAYS:
        with pytest.raises(StrategyError, match="'fats': did you mean 'fast'"):
            local.sweep(never, prices, runner.grid(fats=[3]), **way)
    with pytest.raises(StrategyError, match="expected a function"):
        local.sweep(3, prices, space)  # type: ignore[arg-type]
    with pytest.raises(BarsError, match=r"expected runner\.Bars"):
        local.sweep(never, [1, 2], space)  # type: ignore[arg-type]
    with pytest.raises(BarsError, match="at least one symbol"):
        local.sweep(never, {}, space)
    with pytest.raises(SpaceError, match=r"expected runner\.grid"):
        local.sweep(never, prices, {"fast": [3]})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=r"expected runner\.Execution"):
        local.sweep(never, prices, space, execution={"fees": 0.1})  # type: ignore[arg-type]
    impossible = [{"processes": 0}, {"threads": -1}, {"processes": 1, "threads": 1}, {"run_timeout_s": 0}]
    for arguments in impossible:
        with pytest.raises(InputError, match="expected"):
            local.sweep(never, prices, space, **arguments)  # type: ignore[arg-type]


def test_a_strategy_that_cannot_be_sent_fails_at_once(prices: Bars) -> None:
    generator = (level for level in [1.0])

    def holds(bars: Bars) -> Any:
        return bars.close > next(generator)

    with pytest.raises(ExecutorError, match=r"holds cannot be sent to another process.*inside the function"):
        local.sweep(holds, prices, runner.grid(), processes=1)


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_bar_shows_every_run_on_a_terminal(prices: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    local.sweep(cross, {"IBM": prices}, runner.grid(fast=[3, "wrong"]))
    assert "cross IBM: 100%" in terminal.getvalue()
    assert "2.00/2.00" in terminal.getvalue()
    assert "1 failed" in terminal.getvalue()


def test_the_bar_is_silent_when_told_or_when_no_one_sees_it(prices: Bars, monkeypatch: pytest.MonkeyPatch) -> None:
    for stream, progress in ((Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        local.sweep(cross, prices, runner.grid(fast=[3]), progress=progress)
        assert stream.getvalue() == ""


# Scripts and notebooks


SCRIPT = """
import sys
print("main runs", file=sys.stderr)
import runner

PERIOD = 20

def own(bars, level=1.0):
    return bars.close > level * bars.sma(PERIOD)

results = runner.sweep(own, runner.sample_data("IBM"), runner.grid(level=[0.9, 1.0, 1.1]), processes=2)
print(len(results), len(results.errors))
"""


def test_a_script_without_a_main_guard_sweeps_in_processes(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("3 0\n", "main runs\n")


def test_a_strategy_may_be_named_by_its_module(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def own(bars, n):\n    return bars.close > bars.sma(n)\n")
    code = (
        "import runner; "
        "print(len(runner.sweep('mine:own', runner.sample_data('IBM'), runner.grid(n=[5, 6]), processes=1)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("2\n", "")


CELLS = [
    "import runner\nfactor = 3",
    "def own(bars, n):\n    return bars.close > bars.sma(n * factor)",
    "runner.sweep(own, runner.sample_data('IBM'), runner.grid(n=range(2, 9)), processes=2).errors.shape",
    "runner.local.batch_execute(lambda x: x * factor, [1, 2, 3], processes=2)",
]


def test_functions_of_notebook_cells_run_in_processes() -> None:
    from nbclient import NotebookClient
    from nbformat import v4

    cells = [v4.new_code_cell(source) for source in CELLS]
    notebook = v4.new_notebook(cells=cells)
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    shown = [output["data"]["text/plain"] for cell in notebook.cells for output in cell.outputs if "data" in output]
    assert shown[-2:] == ["(0, 3)", "[3, 6, 9]"]


# Ctrl-C


@posix
@pytest.mark.parametrize("way", ["", "processes=2", "threads=2"])
def test_ctrl_c_ends_a_sweep_at_once_and_leaves_no_process(way: str, tmp_path: Path) -> None:
    code = f"""
import os, sys, runner
def endless(bars, n):
    os.write(2, b'pid %d\\n' % os.getpid())  # one write: the two do not mix
    while True:
        pass
try:
    runner.sweep(endless, runner.sample_data('IBM'), runner.grid(n=range(10)), {way})
except KeyboardInterrupt:
    print('interrupted', file=sys.stderr, flush=True)
    os._exit(0)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            assert process.stderr is not None
            pids = {int(process.stderr.readline().removeprefix("pid ")) for _ in range(2 if way else 1)}
            running = [psutil.Process(pid) for pid in pids]
            process.send_signal(signal.SIGINT)
            assert process.stderr.readline() == "interrupted\n"
            assert process.wait(timeout=10) == 0
            assert psutil.wait_procs(running, timeout=10)[1] == []
        finally:
            process.kill()


def test_frames_of_many_symbols_become_many_rows(prices: Bars) -> None:
    frame = pd.concat([prices.to_frame().assign(symbol="A"), prices.to_frame().assign(symbol="B")])
    results = local.sweep(cross, frame, runner.grid(fast=[3, 4]))
    assert [symbol for symbol, _ in results.frame.index] == ["A", "A", "B", "B"]
