from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.processes import family, wait_gone
from tests.support import ROOT, wait_until

Start = Callable[[str], subprocess.Popen[bytes]]

# What is kept says each start, and each order that it gets.
KEPT = """
import os, pathlib, signal, sys, time
log = pathlib.Path(sys.argv[1])
def say(word):
    with log.open("a") as file:
        file.write(word + "\\n")
say("start")
"""


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def keep(tmp_path: Path, log: Path) -> Iterator[Start]:
    """Start a keeper of a Python text; it and what it started are gone at the end."""
    script = tmp_path / "kept.py"
    code = "import sys; from workers.keeper import Keeper; sys.exit(Keeper(sys.argv[1:]).run())"
    seen: list[psutil.Process] = []
    with ExitStack() as stack:

        def start(text: str) -> subprocess.Popen[bytes]:
            script.write_text(KEPT + text)
            command = [sys.executable, "-c", code, sys.executable, str(script), str(log)]
            process = stack.enter_context(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE))
            stack.callback(process.kill)
            seen.append(psutil.Process(process.pid))
            return process

        yield start
        for process in seen:
            if process.is_running():
                for member in process.children(recursive=True):
                    member.kill()


def words(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def test_what_ends_in_good_order_is_not_started_again(keep: Start, log: Path) -> None:
    assert keep("sys.exit(0)").wait(20) == 0
    assert words(log) == ["start"]


@pytest.mark.parametrize("code", [1, 2])
def test_what_cannot_start_as_it_is_set_up_is_given_up_with_its_message(keep: Start, log: Path, code: int) -> None:
    keeper = keep(f"sys.stderr.write('the cure'); sys.exit({code})")
    _, err = keeper.communicate(timeout=20)
    assert keeper.returncode == code
    assert err == b"the cure"
    assert words(log) == ["start"]


@pytest.mark.parametrize("fault", ["sys.exit(70)", "os.kill(os.getpid(), signal.SIGKILL)"])
def test_what_ends_by_a_fault_is_started_again_even_if_it_then_cannot_start(keep: Start, log: Path, fault: str) -> None:
    keeper = keep(f"n = len(log.read_text().split())\nif n == 1: {fault}\nif n == 2: sys.exit(1)\ntime.sleep(60)")
    wait_until(lambda: len(words(log)) == 3, "it is started a third time")
    assert keeper.stderr is not None
    assert b"it starts again in 1 s" in keeper.stderr.readline()
    assert b"exit code 1; it starts again in 2 s" in keeper.stderr.readline()


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_orders_are_passed_on_one_by_one_and_its_exit_code_is_the_keepers(
    keep: Start, log: Path, name: signal.Signals
) -> None:
    keeper = keep(
        "def told(*_):\n    say('told')\n    if log.read_text().count('told') == 2: os._exit(0)\n"
        "signal.signal(signal.SIGTERM, told)\nsay('ready')\ntime.sleep(60)\ntime.sleep(60)"
    )
    wait_until(lambda: "ready" in words(log), "it is up")
    keeper.send_signal(name)
    wait_until(lambda: words(log).count("told") == 1, "the first order is passed on")
    keeper.send_signal(name)
    assert keeper.wait(20) == 0
    assert words(log) == ["start", "ready", "told", "told"]


def test_an_order_ends_the_wait_before_the_next_start(keep: Start, log: Path) -> None:
    keeper = keep("sys.exit(70)")
    assert keeper.stderr is not None
    assert b"starts again in 1 s" in keeper.stderr.readline()
    assert b"starts again in 2 s" in keeper.stderr.readline()
    keeper.terminate()
    assert keeper.wait(20) == 0
    assert words(log) == ["start", "start"]


def test_a_killed_keeper_is_noticed_by_the_end_of_the_pipe(keep: Start, log: Path) -> None:
    keeper = keep("say('ready')\nos.read(0, 1)\nsay('alone')")
    wait_until(lambda: "ready" in words(log), "it is up")
    everything = family(keeper.pid)
    keeper.kill()
    wait_gone(everything)
    assert words(log) == ["start", "ready", "alone"]


def test_what_a_killed_command_leaves_behind_is_ended(keep: Start, log: Path) -> None:
    keeper = keep("child = os.fork()\nif child:\n    say(str(child))\n    os._exit(0)\ntime.sleep(60)")
    assert keeper.wait(20) == 0
    wait_until(lambda: not psutil.pid_exists(int(words(log)[1])), "its child is gone")
