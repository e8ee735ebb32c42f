"""Functions run in other processes of this machine: from a notebook or a bare script, never a hang, nothing left over.

The function travels once to each child, by value. See `runner.child` and `runner.crew` for how.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from runner.child import Reply
from runner.crew import Chunk, Ranges, run_in_processes, run_in_threads
from runner.errors import ExecutorError, InputError, RunTimeoutError

# A chunk of items lasts about this long: a round trip costs some 0.2 ms, and the last chunks end together.
CHUNK_S = 0.1
MAX_SHOWN = 60  # characters of an item in a message


def batch_execute(
    function: Callable[[Any], Any],
    items: Iterable[Any],
    *,
    processes: int | None = None,
    threads: int | None = None,
    timeout_s: float | None = None,
    return_exceptions: bool = False,
) -> list[Any]:
    """``[function(item) for item in items]``, spread over child processes or threads of this machine.

    Works with lambdas, nested functions and functions typed into a notebook or script. What a function prints in a
    child process goes to stderr.

    Args:
        function: takes one item.
        items: what it is called with.
        processes: how many children; with neither this nor threads, one per core.
        threads: how many threads instead: for functions that wait or release the GIL.
        timeout_s: limit for each item; the child that exceeds it is killed. Not with threads, which cannot be killed.
        return_exceptions: put the exception in place of the result, and go on, instead of raising the first one.

    Returns:
        The results in the order of the items.

    Raises:
        InputError: both processes and threads, or a number that is not positive.
        ExecutorError: the function, an item or a result cannot be sent; or a child was killed. It names the item.
        RunTimeoutError: an item took longer than timeout_s.
        Exception: what the function raised, with the child's traceback as its cause.
    """
    if not callable(function):
        raise InputError(f"function={function!r}: expected a function of one item.")
    if processes is not None and threads is not None:
        raise InputError(f"processes={processes!r} and threads={threads!r}: expected one of the two.")
    check_count("processes", processes)
    check_count("threads", threads)
    check_seconds("timeout_s", timeout_s)
    if threads is not None and timeout_s is not None:
        raise InputError(f"timeout_s={timeout_s!r} with threads: a thread cannot be killed, use processes=.")
    todo = list(items)
    label = partial(_label_item, todo)
    workers = min(threads or processes or cores(), len(todo))
    work = _Items(todo, workers, label, return_exceptions=return_exceptions, timeout_s=timeout_s)
    handler = partial(_call_each, function)
    if threads is not None:
        run_in_threads(handler, work, threads=workers)
    else:
        run_in_processes(handler, work, processes=workers, timeout_s=timeout_s, name=_name(function))
    return work.results


def execute_in_process(function: Callable[..., Any], *args: Any, timeout_s: float | None = None, **kwargs: Any) -> Any:
    """``function(*args, **kwargs)`` in a fresh process of its own; as `batch_execute` for one call."""
    if not callable(function):
        raise InputError(f"function={function!r}: expected a function.")
    check_seconds("timeout_s", timeout_s)
    name = _name(function)
    label = f"the call of {name}"
    work = _Items([(args, kwargs)], 1, lambda _: label, return_exceptions=False, timeout_s=timeout_s)
    handler = partial(_call_each, partial(_apply, function))
    run_in_processes(handler, work, processes=1, timeout_s=timeout_s, name=name)
    return work.results[0]


def cores() -> int:
    """How many processes run here at once: the cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_count(name: str, count: int | None) -> None:
    """InputError unless it is None or a positive whole number."""
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise InputError(f"{name}={count!r}: expected a whole number of at least 1, or None.")


def check_seconds(name: str, seconds: float | None) -> None:
    """InputError unless it is None or a positive number."""
    number = isinstance(seconds, int | float) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds < math.inf):
        raise InputError(f"{name}={seconds!r}: expected a number of seconds above 0, or None.")


class _Items:
    """The items of a batch and their results."""

    def __init__(
        self,
        items: list[Any],
        workers: int,
        label: Callable[[int], str],
        *,
        return_exceptions: bool,
        timeout_s: float | None,
    ) -> None:
        self.results: list[Any] = [None] * len(items)
        self._items = items
        self._left = len(items)
        self._ranges = Ranges([(0, len(items))], max(workers, 1), chunk_s=CHUNK_S)
        self._label = label
        self._return_exceptions = return_exceptions
        self._timeout_s = timeout_s

    @property
    def finished(self) -> bool:
        return not self._left

    def take(self) -> Chunk | None:
        taken = self._ranges.take()
        return Chunk(*taken, self._items[slice(*taken)]) if taken else None

    def reply(self, chunk: Chunk, reply: Reply) -> None:
        number, (ok, value) = chunk.at, reply
        chunk.at += 1
        if ok:
            self.results[number] = value
            self._left -= 1
        else:
            self._fail(number, value)

    def done(self, chunk: Chunk, seconds: float) -> None:
        self._ranges.measured(chunk.at - chunk.start, seconds)
        self._ranges.put_back(chunk.at, chunk.stop)

    def refused(self, chunk: Chunk, error: ExecutorError) -> None:
        if chunk.stop - chunk.start == 1:
            self._fail(chunk.start, error)
            return
        for number in reversed(range(chunk.start, chunk.stop)):  # alone, each shows whether it is the one
            self._ranges.put_back(number, number + 1)

    def lost(self, chunk: Chunk, error: ExecutorError | RunTimeoutError) -> None:
        culprit = chunk.at
        self._ranges.put_back(culprit + 1, chunk.stop)
        label = self._label(culprit)
        if isinstance(error, RunTimeoutError):
            told: Exception = RunTimeoutError(
                f"{label} took longer than timeout_s={self._timeout_s:g}; its process was killed."
            )
        else:
            told = ExecutorError(f"{label} ended its process: {error}")
        self._fail(culprit, told, noted=True)

    def _fail(self, number: int, error: Exception, *, noted: bool = False) -> None:
        if not noted:
            error.add_note(f"(raised for {self._label(number)})")
        if not self._return_exceptions:
            raise error
        self.results[number] = error
        self._left -= 1


def _label_item(items: Sequence[Any], number: int) -> str:
    try:
        shown = repr(items[number])
    except Exception:  # noqa: BLE001 -- a broken repr must not hide the error that is being told
        shown = f"a {type(items[number]).__name__}"
    return f"item {number} ({shown if len(shown) <= MAX_SHOWN else shown[:MAX_SHOWN] + '...'})"


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _apply(function: Callable[..., Any], call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = call
    return function(*args, **kwargs)


def _call_each(function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Reply]:
    """The handler of a batch: stops after the item in which the chunk's time is over, however wrong its size was."""
    until = time.perf_counter() + 2 * CHUNK_S
    for item in items:
        try:
            reply = True, function(item)
        except Exception as error:  # noqa: BLE001 -- whatever it raises is the item's answer
            reply = False, _without_own_frame(error)
        except BaseException as error:  # noqa: BLE001 -- sys.exit in a user's function ends the item, not the worker
            reply = False, ExecutorError(f"the function raised {error!r}: it may end by returning or by an Exception.")
        yield reply
        if time.perf_counter() > until:
            return


def _without_own_frame(error: Exception) -> Exception:
    return error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
