from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from runner import process
from runner.errors import StackError
from runner.process import Child, ProcessId, Stopping
from tests.support import wait_until

Make = Callable[..., Child]

# Ignores SIGTERM, as does what it starts; says "up" when both do.
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("up", flush=True)
time.sleep(600)
"""
SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    made = []

    def child(code: str, *, grace_s: float = 5.0) -> Child:
        one = Child(
            "thing", [sys.executable, "-c", code], environment=os.environ, log=tmp_path / "log", grace_s=grace_s
        )
        made.append(one)
        return one

    yield child
    for one in made:
        one.stop(lambda: True)


def ready(child: Child) -> None:
    child.wait_ready(lambda: "up" in child.log_tail(), timeout_s=20, stopping=lambda: False)


def test_what_ends_as_it_starts_is_an_error_with_its_last_words(make: Make) -> None:
    child = make("raise SystemExit('no disk')")
    child.start()
    with pytest.raises(StackError, match=r"(?s)thing ended with exit code 1.*no disk"):
        child.wait_ready(lambda: False, timeout_s=20, stopping=lambda: False)


def test_what_does_not_answer_in_time_is_an_error_with_its_last_words(make: Make) -> None:
    child = make(SLEEPS)
    child.start()
    ready(child)
    with pytest.raises(StackError, match=r"(?s)thing did not answer within 0.1 s.*up"):
        child.wait_ready(lambda: False, timeout_s=0.1, stopping=lambda: False)


def test_an_earlier_runs_words_are_not_quoted(make: Make) -> None:
    child = make("print('one of many')")
    for _ in range(2):
        child.start()
        wait_until(child.exited, "it has ended")
    assert child.log_tail().count("one of many") == 1


def test_waiting_ends_when_the_stack_is_told_to_stop(make: Make) -> None:
    child = make(SLEEPS)
    child.start()
    with pytest.raises(Stopping):
        child.wait_ready(lambda: False, timeout_s=20, stopping=lambda: True)


@pytest.mark.parametrize(("grace_s", "hurry"), [(0.2, False), (600.0, True)])
def test_what_ignores_sigterm_is_killed_with_what_it_started(make: Make, grace_s: float, *, hurry: bool) -> None:
    child = make(STUBBORN, grace_s=grace_s)
    child.start()
    ready(child)
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    assert len(family) == 2
    child.stop(lambda: hurry)
    psutil.wait_procs(family, timeout=5)
    assert not any(member.is_running() for member in family)


def test_what_ends_by_itself_starts_again_after_its_back_off(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    child = make(SLEEPS)
    child.start()
    ready(child)
    first = child.pid
    os.kill(first, signal.SIGKILL)
    wait_until(child.exited, "it has ended")
    assert not child.revive(now=100.0)
    assert not child.revive(now=100.9)
    assert child.revive(now=101.0)
    assert child.restarts == 1
    assert child.pid != first
    assert "exit code -9: it starts again in 1 s" in caplog.text


def test_a_command_that_cannot_run_is_an_error_not_the_end_of_the_supervisor(tmp_path: Path) -> None:
    missing = Child("thing", [str(tmp_path / "none")], environment={}, log=tmp_path / "log", grace_s=1)
    with pytest.raises(StackError, match=r"thing cannot be started: .*none: No such file"):
        missing.start()


def test_the_back_off_doubles_up_to_half_a_minute() -> None:
    assert [process.backoff_s(failures) for failures in (1, 2, 3, 5, 6, 99)] == [1, 2, 4, 16, 30, 30]


def test_a_long_log_is_cut_to_its_newer_half(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "MAX_LOG_BYTES", 1000)
    child = make(SLEEPS)
    child.start()
    ready(child)
    with child.log.open("a") as log:
        log.write("old\n" * 200 + "new\n" * 200)
    child.trim_log()
    text = child.log.read_text()
    assert len(text) == 500
    assert set(text.split()) == {"new"}
    assert "new" in child.log_tail()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_a_child_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
from pathlib import Path
from runner.process import Child
child = Child("thing", [sys.executable, "-c", "import time; time.sleep(600)"],
              environment=os.environ, log=Path({str(tmp_path / "log")!r}), grace_s=1)
child.start()
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as supervisor:
        assert supervisor.stdout is not None
        child = psutil.Process(int(supervisor.stdout.readline()))
        supervisor.kill()
        _, alive = psutil.wait_procs([child], timeout=10)
        assert not alive


def test_a_process_is_told_apart_from_a_later_one_with_its_number() -> None:
    me = ProcessId.of("me", os.getpid())
    assert me.find() is not None
    assert ProcessId("me", me.pid, me.created - 60).find() is None


def test_leftovers_are_ended_with_what_they_started(make: Make) -> None:
    child = make(STUBBORN)
    child.start()
    ready(child)
    family = [psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)]
    known = child.id
    assert known is not None
    process.kill_leftovers([known, ProcessId("gone", known.pid, known.created - 60)])
    wait_until(child.exited, "it has ended")
    assert not [member for member in family if member.is_running() and member.status() != psutil.STATUS_ZOMBIE]
