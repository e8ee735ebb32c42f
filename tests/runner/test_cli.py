from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pytest

import runner
from runner import monitor, stack, store
from runner.stack import LocalStack, StackInfo
from runner.valkey import free_port
from tests.misbehaving import serving
from tests.processes import family, wait_gone
from tests.support import wait_until
from workers.standin import make_app

COMMAND = [sys.executable, "-m", "runner"]
STRATEGIES = """
import time

def cross(bars, fast=10, slow=30):
    return bars.sma(fast) > bars.sma(slow)

def sleepy(bars, n=1):
    time.sleep(0.2)
    return bars.close > 0

def broken(bars, n=1):
    raise RuntimeError(f"cannot do {n}")
"""

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(STRATEGIES)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Run:
    """Run a command in a folder that holds mine.py, with a home of its own."""

    def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "RUNNER_HOME": str(folder / "home"), "COLUMNS": "120", **variables}
        return subprocess.run(
            [*COMMAND, *arguments],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return command


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    with LocalStack(workers=1, flower=False, home=tmp_path_factory.mktemp("stack")) as local:
        yield local


@contextmanager
def started(home: Path, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """A command that goes on; killed with all it started should the test fail."""
    environment = {**os.environ, "RUNNER_HOME": str(home), "COLUMNS": "120", **variables}
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*COMMAND, *arguments], env=environment, stdout=pipe, stderr=pipe, text=True, cwd=home
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


@contextmanager
def up(home: Path) -> Iterator[tuple[subprocess.Popen[str], StackInfo, list[psutil.Process]]]:
    home.mkdir()
    with started(home, "up", "--workers", "1", "--no-flower") as process:
        wait_until(lambda: stack.running(home) is not None, "the stack is up", process=process)  # type: ignore[arg-type]  # bytes or text
        info = stack.running(home)
        assert info is not None
        yield process, info, family(process.pid)


def test_help_is_quick_because_it_loads_nothing_heavy() -> None:
    code = (
        "import sys, runner.cli\n"
        "heavy = {'pandas', 'numpy', 'numba', 'celery', 'redis', 'pydantic', 'pyarrow', 'psutil', 'workers', 'tasks'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_help_names_every_command(run: Run) -> None:
    shown = run("--help")
    assert shown.returncode == 0
    names = {"up", "down", "status", "worker", "flower", "check", "sweep", "fetch", "metrics", "demo"}
    assert names <= set(shown.stdout.replace("│", " ").split())


def test_the_version_is_the_packages(run: Run) -> None:
    assert run("--version").stdout.strip() == runner.__version__


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["fly"], "fly"),
        (["up", "--workers", "many"], "--workers"),
        (["sweep"], "STRATEGY"),
        (["sweep", "mine:cross", "--data", "IBM"], "--grid"),
        (["sweep", "mine:cross", "--data", "IBM", "--grid", "fast"], "--grid"),
        (["sweep", "mine:cross", "--data", "IBM", "--grid", "fast=5:9", "--where", "slow > 1"], "--where"),
        (["sweep", "mine:cross", "--data", "IBM", "--grid", "fast=5:9", "--out", "x.xlsx"], "--out"),
        (
            ["sweep", "mine:cross", "--data", "IBM", "--grid", "fast=5:9", "--name", "n", "--processes", "2"],
            "--processes",
        ),
        (["check", "weather"], "weather"),
        (["fetch", "--source", "binance"], "SYMBOL"),
        (["fetch", "A"], "--source"),
        (["fetch", "A", "--source", "binance", "--option", "feed"], "--option"),
        (["fetch", "A", "--source", "binance", "--adjust", "maybe"], "--adjust"),
        (["fetch", "A", "--source", "binance", "--out", "x.xlsx"], "--out"),
    ],
)
def test_wrong_usage_ends_with_2_and_names_what_is_wrong(run: Run, arguments: list[str], word: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert word in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status"], "start one with `runner up`"),
        (["worker"], "start one with `runner up`"),
        (["metrics"], "start one with `runner up`"),
        (["fetch", "A", "--source", "binance"], "`runner up`"),
        (["up", "--workers", "0"], "expected 1 to"),
        (["sweep", "mine:cross", "--data", "IBM", "--grid", "fast=5:9"], "`runner up`"),
        (["sweep", "mine:crosss", "--data", "IBM", "--grid", "fast=5:9", "--processes", "1"], "mine"),
        (["sweep", "mine:cross", "--data", "IBMM", "--grid", "fast=5:9", "--processes", "1"], "IBM"),
        (["sweep", "mine:cross", "--data", "IBM", "--grid", "fats=5:9", "--processes", "1"], "fast"),
        (["sweep", "mine:cross", "--data", "IBM", "--grid", "fast=5:9", "--fees", "2"], "fees"),
    ],
)
def test_an_error_is_one_line_with_its_cure(run: Run, arguments: list[str], sentence: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 1
    assert sentence in ended.stderr
    assert ended.stderr.startswith("runner: ")
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("how", ["option", "variable"])
def test_debug_shows_the_traceback(run: Run, how: str) -> None:
    ended = run("--debug", "status") if how == "option" else run("status", RUNNER_DEBUG="1")
    assert ended.returncode == 1
    assert "Traceback" in ended.stderr


def test_down_without_a_stack_is_no_error(run: Run) -> None:
    ended = run("down")
    assert (ended.returncode, ended.stdout) == (0, "No stack runs here.\n")


def test_up_then_up_again_then_down(run: Run, folder: Path) -> None:
    with up(folder / "home") as (process, info, everything):
        second = run("up")
        assert second.returncode == 1
        assert "already runs" in second.stderr
        assert "runner down" in second.stderr
        shown = run("status")
        assert f"local-{info.supervisor.pid}@" in shown.stdout
        assert run("down").stdout == "Stopped.\n"
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert "runner.connect()" in out
        assert out.endswith("Stopped.\n")
        wait_gone(everything)
    assert not (folder / "home" / "stack.json").exists()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGHUP])
def test_up_stops_in_order_on_ctrl_c_and_with_its_terminal(folder: Path, sent: signal.Signals) -> None:
    with up(folder / "home") as (process, _, everything):
        process.send_signal(sent)
        out, _ = process.communicate(timeout=20)
        assert process.returncode == 0
        assert out.endswith("Stopped.\n")
        wait_gone(everything)
    assert not (folder / "home" / "stack.json").exists()


def test_up_that_is_told_to_stop_while_it_starts_leaves_nothing(folder: Path) -> None:
    home = folder / "home"
    home.mkdir()
    with started(home, "up", "--workers", "1", "--no-flower") as process:
        wait_until(lambda: StackInfo.load(home) is not None, "the server is starting")
        everything = family(process.pid)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
        assert process.returncode == 0
        assert len(everything) > 1
        wait_gone(everything)
    assert not (home / "stack.json").exists()


def test_one_more_worker_joins_the_stack_and_ends_by_sigterm(local: LocalStack) -> None:
    ledger = store.Ledger(store.connect(local.info.url))

    def names() -> list[str]:
        return [row["name"] for row in ledger.workers()]

    with started(local.home, "worker", "--concurrency", "1", "--name", "extra") as process:
        wait_until(lambda: any(name.startswith("extra@") for name in names()), "the worker is alive")
        everything = family(process.pid)
        assert {row["pid"] for row in ledger.workers() if row["name"].startswith("extra@")} <= {
            p.pid for p in everything
        }
        process.terminate()
        process.communicate(timeout=20)
        wait_gone(everything)
    ledger.server.close()


def test_a_sweep_on_the_stack_and_one_in_local_processes_write_the_same_table(
    run: Run, folder: Path, local: LocalStack
) -> None:
    runner.sample_data("IBM").to_frame().to_csv(folder / "ibm.csv")
    what = [
        "sweep",
        "mine:cross",
        "--data",
        "ibm.csv",
        "--grid",
        "fast=5:9",
        "--grid",
        "slow=8,20",
        "--where",
        "fast < slow",
    ]
    what += ["--fees", "0.001", "--slippage", "0.0005", "--top", "3", "--metric", "calmar"]
    here = run(*what, "--processes", "2", "--out", "here.parquet")
    there = run(*what, "--name", "from-the-shell", "--out", "there.csv", RUNNER_HOME=str(local.home))
    assert (here.returncode, there.returncode) == (0, 0), here.stderr + there.stderr
    one, other = pd.read_parquet(folder / "here.parquet"), pd.read_csv(folder / "there.csv")
    assert len(other) == 7  # fast 5, 6, 7 with both, 8 with 20 alone
    pd.testing.assert_series_equal(one["calmar"].reset_index(drop=True), other["calmar"], check_names=False)
    assert "best of 7 runs by calmar" in here.stdout
    assert "there.csv" in there.stdout
    seen = run("status", RUNNER_HOME=str(local.home)).stdout
    assert "from-the-shell" in seen
    assert "done" in seen


def test_failed_runs_are_counted_and_the_first_is_quoted(run: Run) -> None:
    ended = run("sweep", "mine:broken", "--data", "IBM", "--grid", "n=1:3", "--processes", "1")
    assert "cannot do 1" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr


def test_ctrl_c_ends_with_130_and_says_how_to_come_back(folder: Path, local: LocalStack) -> None:
    (local.home / "mine.py").write_text(STRATEGIES)
    ledger = store.Ledger(store.connect(local.info.url))
    with ExitStack() as after:
        arguments = ["sweep", "mine:sleepy", "--data", "IBM", "--grid", "n=0:1000", "--name", "long"]
        process = after.enter_context(started(local.home, *arguments))
        after.callback(ledger.turn, "long", "cancelled")
        wait_until(lambda: "long" in ledger.active() and ledger.progress("long").done > 0, "the sweep runs")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=20)
        assert process.returncode == 130
        assert "runner.attach('long')" in out + err
        assert "Traceback" not in err
        assert "long" in ledger.active()
    ledger.server.close()


def test_checks_answer_with_their_exit_code(run: Run, local: LocalStack) -> None:
    there = {"RUNNER_URL": local.info.url, "RUNNER_SECRET": local.info.secret}
    assert run("check", "server", **there).returncode == 0
    assert run("check", "worker", **there).returncode == 0
    assert run("check", "worker", "--queues", "fetch", **there).returncode == 0
    assert run("check", "worker", "--queues", "other", **there).returncode == 1
    assert run("check", "metrics", "--port", str(free_port()), **there).returncode == 1
    assert run("check", "flower", **there, FLOWER_BASIC_AUTH="no:body").returncode == 1


def test_prices_are_fetched_into_a_file_that_a_sweep_takes(run: Run, folder: Path, local: LocalStack) -> None:
    there = {"RUNNER_HOME": str(local.home)}
    with serving(make_app()) as url:
        what = ["--source", "binance", "--start", "2017-01-01", "--end", "2018-01-01", "--out", "p.parquet"]
        option = ["--option", f"base_url={url}/binance"]
        good = run("fetch", "SP500", "ABC", *what, *option, **there)
        bad = run("fetch", "SP500", "UNKNOWN", *what, *option, **there)
    assert good.returncode == 0, good.stderr
    assert "2 symbols are in p.parquet" in good.stdout
    assert bad.returncode == 1
    assert "binance: UNKNOWN" in " ".join(bad.stdout.split())
    swept = run("sweep", "mine:cross", "--data", "p.parquet", "--grid", "fast=5:9", "--processes", "1")
    assert "best of 4 runs" in swept.stdout, swept.stderr


def test_metrics_are_served_until_sigterm(folder: Path, local: LocalStack) -> None:
    port = free_port()
    with started(local.home, "metrics", "--port", str(port)) as process:
        wait_until(lambda: monitor.serves_metrics(port), "the metrics are there")
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert process.returncode == 0, err
    assert f"http://127.0.0.1:{port}/metrics" in out


def test_the_demo_goes_from_nothing_to_the_best_run_and_leaves_nothing(run: Run, folder: Path) -> None:
    ended = run("demo")
    assert ended.returncode == 0, ended.stderr
    for words in (
        "Fetched 5,031 bars of SP500 over HTTP",
        "10,059 backtests",
        "Flower",
        "runs a second",
        "best of 10,059 runs by sharpe",
        "buy and hold",
        "runner up",
    ):
        assert words in ended.stdout
    assert not (folder / "home" / "stack.json").exists()
    lines = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    assert not [line for line in lines if str(folder) in line]
