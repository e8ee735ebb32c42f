"""The executor, with real processes: what it runs, what it tells, and that nothing of it is left."""

from __future__ import annotations

import ctypes
import functools
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from runner.child import Reply
from runner.crew import Chunk, Ranges, run_in_processes
from runner.errors import ExecutorError, InputError, RunTimeoutError
from runner.executor import _call_each, _Items, batch_execute, cores, execute_in_process

ROOT = Path(__file__).resolve().parents[2]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals and fork are POSIX")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Every test leaves the processes and threads that it found."""
    before = set(psutil.Process().children(recursive=True))
    yield
    left = [child for child in psutil.Process().children(recursive=True) if child not in before]
    assert left == []
    for thread in threading.enumerate():
        if thread.name == "runner-executor":
            thread.join(timeout=5)  # it may be on its last line
            assert not thread.is_alive()


def square(x: int) -> int:
    return x * x


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def plus(self, y: int) -> int:
        return self.x + y

    def __call__(self, y: int) -> Point:
        return Point(self.x + y)


# What it runs


@pytest.mark.parametrize("where", [{}, {"processes": 1}, {"processes": 3}, {"threads": 2}])
def test_results_come_in_the_order_of_the_items(where: dict[str, int]) -> None:
    assert batch_execute(square, range(50), **where) == [x * x for x in range(50)]  # type: ignore[arg-type]


def test_any_callable_travels() -> None:
    shift = 3

    def nested(x: int) -> int:
        return x + shift

    functions: list[Callable[[int], int]] = [
        lambda x: x + shift,
        nested,
        functools.partial(int.__add__, 3),
        Point(3).plus,
    ]
    for function in functions:
        assert batch_execute(function, [1, 2], processes=1) == [4, 5]


def test_an_object_comes_back_as_an_instance_of_the_class_that_was_sent() -> None:
    (back,) = batch_execute(Point(3), [4], processes=1)
    assert type(back) is Point
    assert back.x == 7


def test_an_item_is_an_instance_of_the_class_the_function_knows() -> None:
    assert batch_execute(lambda point: isinstance(point, Point), [Point(1)], processes=1) == [True]


def test_one_call_takes_positional_and_keyword_arguments() -> None:
    assert execute_in_process(lambda a, b, *, c: (a, b, c), 1, 2, c=3) == (1, 2, 3)


def test_it_runs_in_another_process() -> None:
    assert execute_in_process(os.getpid) != os.getpid()


def test_one_child_a_core_by_default() -> None:
    barrier_free = batch_execute(lambda _: os.getpid(), range(200))
    assert 1 <= len(set(barrier_free)) <= cores()


def test_no_items_no_process() -> None:
    assert batch_execute(square, []) == []
    assert batch_execute(square, iter(()), threads=2) == []


def test_it_works_from_a_thread() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(batch_execute(square, [1, 2], processes=1)))
    thread.start()
    thread.join()
    assert results == [1, 4]


def test_a_child_may_have_children_of_its_own() -> None:
    assert execute_in_process(lambda: batch_execute(lambda x: x + 1, [1, 2], processes=2)) == [2, 3]


def test_a_child_sees_the_parents_folder_import_path_arguments_and_warning_filters() -> None:
    def look() -> tuple[Any, ...]:
        return str(Path.cwd()), sys.path, sys.argv, sys.warnoptions

    assert execute_in_process(look) == (str(Path.cwd()), sys.path, sys.argv, sys.warnoptions)


def test_numeric_libraries_use_one_thread_in_a_child() -> None:
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    assert execute_in_process(lambda: [os.environ[name] for name in names]) == ["1"] * 4


def test_what_a_function_prints_or_reads_does_not_touch_the_answers(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy() -> str:
        os.write(1, b"written\n")
        subprocess.run([sys.executable, "-c", "print('by a grandchild')"], check=True)
        print("printed\nhalf a line", end="")  # noqa: T201 -- what is tested
        return sys.stdin.read()

    assert execute_in_process(noisy) == ""
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["written", "by a grandchild", "printed", "half a line"]


def test_large_items_and_results_pass_whole() -> None:
    block = os.urandom(20_000_000)
    assert execute_in_process(lambda data: data[::-1], block) == block[::-1]


def test_the_function_is_sent_once_to_each_child(tmp_path: Path) -> None:
    log = tmp_path / "loads"

    class Heavy:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return loaded, ()

    def loaded() -> str:
        with log.open("a") as file:
            file.write("x")
        return "heavy"

    heavy = Heavy()
    assert set(batch_execute(lambda _: heavy, range(500), processes=2)) == {"heavy"}
    assert len(log.read_text()) <= 2


# Scripts and notebooks: what is typed there, without a guard


SCRIPT = """
import sys
print("main runs", file=sys.stderr)
from runner.executor import batch_execute, execute_in_process

class Point:
    def __init__(self, x):
        self.x = x

def move(point):
    return Point(point.x + SHIFT)

SHIFT = 2
moved = batch_execute(move, [Point(1), Point(2)], processes=2)
assert all(type(point) is Point for point in moved), moved
print([point.x for point in moved], execute_in_process(lambda: __name__))
"""


@pytest.mark.parametrize("how", ["file", "-c", "-"])
def test_a_script_without_a_main_guard_is_run_once(how: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    command = {"file": ["script.py"], "-c": ["-c", SCRIPT], "-": ["-"]}[how]
    done = subprocess.run(
        [sys.executable, *command], input=SCRIPT, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("[3, 4] __main__\n", "main runs\n")


def test_a_function_of_a_module_that_changed_on_disk_runs_as_it_was_imported(tmp_path: Path) -> None:
    script = """
import helper
from pathlib import Path
from runner.executor import execute_in_process
Path("helper.py").write_text("raise SystemExit('stale code')")
print(execute_in_process(helper.answer))
"""
    (tmp_path / "helper.py").write_text("VALUE = 42\ndef answer():\n    return VALUE\n")
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"], capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("42\n", "")


# Errors


def test_an_exception_comes_back_with_the_childs_traceback_and_its_item() -> None:
    def fails(x: int) -> float:
        return 1 / x

    with pytest.raises(ZeroDivisionError, match="division by zero") as caught:
        batch_execute(fails, [0], processes=1)
    assert "in fails" in str(caught.value.__cause__)
    assert re.search(r"in process \d+", str(caught.value.__cause__))
    assert caught.value.__notes__ == ["(raised for item 0 (0))"]


def test_an_exception_of_a_thread_names_its_item_too() -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        batch_execute(lambda x: 1 / x, [1, 0], threads=1)
    assert caught.value.__notes__ == ["(raised for item 1 (0))"]


@pytest.mark.parametrize("where", [{"processes": 2}, {"threads": 2}])
def test_exceptions_take_the_place_of_results_when_asked_for(where: dict[str, int]) -> None:
    results = batch_execute(lambda x: 1 / x, [1, 0, 2], return_exceptions=True, **where)
    assert results[::2] == [1.0, 0.5]
    assert isinstance(results[1], ZeroDivisionError)


def test_an_exception_that_cannot_be_sent_is_told_in_words() -> None:
    class TwoArguments(Exception):  # it pickles, but does not load
        def __init__(self, one: int, two: int) -> None:
            super().__init__(f"{one} and {two}")

    class HoldsLock(Exception):  # it does not pickle
        def __init__(self) -> None:
            super().__init__("held")
            self.lock = threading.Lock()

    def fails(kind: str) -> None:
        raise TwoArguments(1, 2) if kind == "two" else HoldsLock

    two, lock = batch_execute(fails, ["two", "lock"], processes=1, return_exceptions=True)
    assert isinstance(two, ExecutorError)
    assert "TwoArguments: 1 and 2" in str(two)
    assert "in fails" in str(two.__cause__)
    assert isinstance(lock, ExecutorError)
    assert "HoldsLock: held" in str(lock)


def test_exceptions_with_a_meaning_for_the_executor_itself_are_only_exceptions() -> None:
    def fails(kind: type[BaseException]) -> None:
        raise kind

    for where in ({"processes": 1}, {"threads": 1}):
        raised = batch_execute(
            fails, [queue.Empty, StopIteration, EOFError, BrokenPipeError], return_exceptions=True, **where
        )
        assert [type(error) for error in raised] == [queue.Empty, StopIteration, EOFError, BrokenPipeError]
        (left,) = batch_execute(fails, [SystemExit], return_exceptions=True, **where)
        assert isinstance(left, ExecutorError)
        assert "SystemExit" in str(left)
    with pytest.raises(queue.Empty):
        batch_execute(fails, [queue.Empty], processes=1)


def test_a_function_that_cannot_be_sent_fails_before_any_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.crew.start_child", lambda: pytest.fail("a process was started"))
    lock = threading.Lock()
    with pytest.raises(ExecutorError, match=r"function .*lambda.* cannot be sent.*lock.*inside the function"):
        execute_in_process(lambda: lock)


def test_a_function_that_a_child_cannot_load_fails_with_the_reason() -> None:
    class Unloadable:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return __import__, ("no_such_module_anywhere",)

        def __call__(self) -> None: ...

    with pytest.raises(
        ExecutorError, match=r"cannot be loaded in a child process: ModuleNotFoundError.*no_such_module"
    ):
        execute_in_process(Unloadable())


def test_an_item_that_cannot_be_sent_is_named_and_the_others_are_run() -> None:
    results = batch_execute(str, [1, iter(x for x in [1]), 2, 3], processes=1, return_exceptions=True)
    assert results[0::2] == ["1", "2"]
    assert results[3] == "3"
    assert isinstance(results[1], ExecutorError)
    with pytest.raises(ExecutorError, match=r"cannot be sent to another process.*threads=") as caught:
        batch_execute(str, [iter(x for x in [1])], processes=1)
    assert "item 0 (<generator" in caught.value.__notes__[0]


def test_an_item_that_a_child_cannot_load_is_named_and_the_others_are_run() -> None:
    class Unloadable:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return int, ("no number",)

    results = batch_execute(type, [1, 2, Unloadable(), *range(500)], processes=1, return_exceptions=True)
    assert isinstance(results[2], ExecutorError)
    assert "no number" in str(results[2])
    assert [*results[:2], *results[3:]] == [int] * 502


def test_a_result_that_cannot_be_sent_is_named() -> None:
    def lazy(_: int) -> Iterator[int]:
        yield 1

    with pytest.raises(ExecutorError, match=r"result, a generator, cannot be sent back.*Return numbers"):
        batch_execute(lazy, [1], processes=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"processes": 0},
        {"processes": -1},
        {"processes": True},
        {"processes": 1.5},
        {"threads": 0},
        {"processes": 1, "threads": 1},
        {"timeout_s": 0},
        {"timeout_s": float("nan")},
        {"timeout_s": "1"},
        {"threads": 1, "timeout_s": 1},
    ],
)
def test_impossible_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected|cannot be killed"):
        batch_execute(square, [1], **arguments)


def test_what_cannot_be_called_is_refused() -> None:
    with pytest.raises(InputError, match="expected a function"):
        batch_execute(3, [1])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected a function"):
        execute_in_process("print")  # type: ignore[arg-type]


# Death and time


def die(how: str) -> str:
    if how == "exit":
        os._exit(3)
    elif how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "abort":
        os.abort()
    elif how == "segfault":
        ctypes.string_at(0)
    return how


@posix
@pytest.mark.parametrize(
    ("how", "told"), [("exit", "exit status 3"), ("kill", "SIGKILL"), ("abort", "SIGABRT"), ("segfault", "SIGSEGV")]
)
def test_a_dead_child_is_an_error_that_names_the_item_and_how_it_died(how: str, told: str) -> None:
    with pytest.raises(ExecutorError, match=rf"item 1 \('{how}'\) ended its process: .*{told}"):
        batch_execute(die, ["live", how], processes=1)
    with pytest.raises(ExecutorError, match=rf"call of die ended its process: .*{told}"):
        execute_in_process(die, how)


@posix
def test_other_items_keep_their_results_when_children_die_and_none_runs_twice(tmp_path: Path) -> None:
    log = tmp_path / "runs"
    log.touch()

    def run(x: int) -> int:
        with log.open("a") as file:
            file.write(f"{x}\n")
        if x in (7, 8, 50, 399):
            os.kill(os.getpid(), signal.SIGKILL)
        return x

    results = batch_execute(run, range(400), processes=2, return_exceptions=True)
    dead = [x for x, result in enumerate(results) if isinstance(result, ExecutorError)]
    assert dead == [7, 8, 50, 399]
    assert [result for result in results if isinstance(result, int)] == [x for x in range(400) if x not in dead]
    assert sorted(map(int, log.read_text().split())) == list(range(400))


@posix
def test_a_fork_that_outlives_its_child_does_not_hide_the_death(tmp_path: Path) -> None:
    def leave_a_fork() -> None:
        pid = os.fork()
        if pid == 0:
            signal.pause()
        (tmp_path / "pid").write_text(str(pid))
        os._exit(4)

    try:
        with pytest.raises(ExecutorError, match="exit status 4"):
            execute_in_process(leave_a_fork, timeout_s=30)
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


def loop_in_python(_: object) -> None:
    while True:
        pass


def loop_in_c(_: object) -> None:
    re.match(r"(a+)+$", "a" * 60 + "b")  # the GIL is held for longer than anyone waits


@pytest.mark.parametrize("loop", [loop_in_python, loop_in_c])
def test_an_item_that_takes_too_long_is_killed_and_the_others_go_on(loop: Callable[[object], None]) -> None:
    results = batch_execute(
        lambda x: loop(x) if x == 3 else x, range(6), processes=2, timeout_s=0.5, return_exceptions=True
    )
    assert isinstance(results[3], RunTimeoutError)
    assert isinstance(results[3], TimeoutError)
    assert "item 3 (3) took longer than timeout_s=0.5" in str(results[3])
    assert [*results[:3], *results[4:]] == [0, 1, 2, 4, 5]


def test_one_call_has_a_time_limit_too() -> None:
    with pytest.raises(RunTimeoutError, match=r"call of loop_in_python took longer than timeout_s=0.2"):
        execute_in_process(loop_in_python, None, timeout_s=0.2)


def test_the_limit_is_of_each_item_and_not_of_loading_the_function() -> None:
    class Slow:
        def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
            return waited, ()

        def __call__(self, x: int) -> int:
            return x

    def waited() -> Callable[[int], int]:
        threading.Event().wait(0.5)
        return square

    assert batch_execute(Slow(), [1, 2], processes=1, timeout_s=0.3) == [1, 4]


def test_a_child_that_cannot_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.child.BOOT", "raise SystemExit(9)")
    with pytest.raises(ExecutorError, match="did not start: exit status 9"):
        execute_in_process(square, 2)
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    with pytest.raises(ExecutorError, match=r"did not start: .*No such file"):
        execute_in_process(square, 2)


@dataclass
class Family:
    """A script that runs two children without end, and what it says on stderr."""

    parent: subprocess.Popen[str]
    children: list[psutil.Process] = field(default_factory=list)

    def line(self) -> str:
        assert self.parent.stderr is not None
        return self.parent.stderr.readline().strip()

    def survivors(self) -> list[psutil.Process]:
        return psutil.wait_procs(self.children, timeout=15)[1]


@contextmanager
def running_family(function: str) -> Iterator[Family]:
    code = f"""
import os, re, sys, threading
from runner.executor import batch_execute
def endless(x):
    os.write(2, b'pid %d\\n' % os.getpid())  # one write: the two do not mix
    {function}
try:
    batch_execute(endless, [1, 2], processes=2)
except KeyboardInterrupt:
    print('interrupted', threading.active_count(), file=sys.stderr, flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as parent:
        family = Family(parent)
        try:
            for _ in range(2):
                line = family.line()
                assert line.startswith("pid "), line
                family.children.append(psutil.Process(int(line.removeprefix("pid "))))
            yield family
        finally:
            parent.kill()
            for child in psutil.wait_procs(family.children, timeout=0)[1]:
                child.kill()


LOOPS = [
    pytest.param("threading.Event().wait()", id="waiting"),
    pytest.param("while True: pass", id="in python"),
    pytest.param(
        "re.match('(a+)+$', 'a' * 60 + 'b')",
        id="in C",
        marks=pytest.mark.skipif(
            sys.platform != "linux", reason="only Linux ends a process that never lets go of the GIL"
        ),
    ),
]


@posix
@pytest.mark.parametrize("function", LOOPS)
def test_children_do_not_outlive_a_parent_that_was_killed(function: str) -> None:
    with running_family(function) as family:
        family.parent.kill()
        assert family.survivors() == []


@posix
@pytest.mark.parametrize("function", LOOPS)
def test_ctrl_c_leaves_no_process_and_no_thread(function: str) -> None:
    with running_family(function) as family:
        family.parent.send_signal(signal.SIGINT)
        assert family.line() == "interrupted 1"
        assert family.survivors() == []
        assert family.parent.poll() is None


@posix
def test_children_are_out_of_reach_of_the_terminals_ctrl_c() -> None:
    assert execute_in_process(os.getpgrp) != os.getpgrp()


# Chunks


class Counted(_Items):
    chunks = 0

    def take(self) -> Chunk | None:
        chunk = super().take()
        self.chunks += chunk is not None
        return chunk


def test_tiny_items_share_round_trips() -> None:
    work = Counted(list(range(20_000)), 2, str, return_exceptions=False, timeout_s=None)
    run_in_processes(functools.partial(_call_each, square), work, processes=2)
    assert work.results == [x * x for x in range(20_000)]
    assert work.chunks < 500


def test_a_chunk_of_items_that_turn_out_slow_is_shared_out_again() -> None:
    """A thousand instant items promise more; the slow ones behind them do not all wait for one child."""

    def run(x: int) -> int:
        if x >= 1000:
            threading.Event().wait(0.05)
        return os.getpid()

    pids = batch_execute(run, range(1040), processes=2)
    assert min(pids[1000:].count(pid) for pid in set(pids)) >= 10


@pytest.mark.parametrize(
    ("measured", "taken"),
    [
        ([], 1),  # nothing is known
        ([(1, 0.01)], 10),  # as many as fit into chunk_s
        ([(1, 0.0)], 16),  # no faster than 16 times
        ([(1, 5.0)], 1),
        ([(1, 0.001), (16, 0.0016)], 250),  # a half of the even share of what is left
    ],
)
def test_a_chunk_lasts_its_time(measured: list[tuple[int, float]], taken: int) -> None:
    ranges = Ranges([(0, 1000)], 2, chunk_s=0.1)
    for count, seconds in measured:
        ranges.measured(count, seconds)
    assert ranges.take() == (0, taken)


def test_every_number_is_taken_once() -> None:
    ranges = Ranges([(0, 10), (10, 10), (10, 25)], 2, chunk_s=1.0, first=4)
    taken: list[int] = []
    turn = 0
    while (chunk := ranges.take()) is not None:
        start, stop = chunk
        assert stop <= 10 or start >= 10
        turn += 1
        cut = stop - 1 if turn % 2 and stop - start > 1 else stop
        ranges.put_back(cut, stop)
        taken += range(start, cut)
    assert sorted(taken) == list(range(25))


def test_a_fault_of_a_handler_is_raised() -> None:
    def handler(_: Any) -> Iterator[Reply]:
        yield True, 1
        raise ValueError("fault")

    work = _Items([1, 2, 3], 1, str, return_exceptions=True, timeout_s=None)
    with warnings.catch_warnings(), pytest.raises(ValueError, match="fault"):
        run_in_processes(handler, work, processes=1)
