"""The local door: a sweep on this machine without a broker, and the executor behind it.

The runs are the same, `run_batch` is the same, so the numbers are those of the workers to the last bit.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runner.child import Reply
from runner.crew import Chunk, Ranges, run_here, run_in_processes, run_in_threads
from runner.errors import BarsError, ExecutorError, InputError, RunTimeoutError
from runner.executor import batch_execute, check_count, check_seconds, execute_in_process
from runner.plan import Plan, as_bars, make_plan
from runner.progressbar import ProgressBar
from runner.results import Results
from runner.space import Space
from runner.spec import RUN_TIMEOUT_S, Execution
from runner.strategy import Strategy, strategy_name

if TYPE_CHECKING:
    from runner.engine.batch import BatchOutcome, RunError
    from runner.plan import Data
    from runner.source import Source

__all__ = ["as_bars", "batch_execute", "execute_in_process", "sweep"]

CHUNK_S = 0.5  # twice a second the bar moves, and a round trip of 0.2 ms is nothing
FIRST_CHUNK = 16  # runs, before any was measured; one that would last longer than CHUNK_S ends early
GRACE_S = 5.0  # for a run to end by its own deadline before its process is killed


def sweep(
    strategy: Strategy | str,
    data: Data | Source,
    space: Space,
    *,
    execution: Execution | None = None,
    processes: int | None = None,
    threads: int | None = None,
    run_timeout_s: float | None = RUN_TIMEOUT_S,
    progress: bool = True,
) -> Results:
    """Run every point of ``space`` on every symbol of ``data`` on this machine: the same numbers as on workers.

    Works from a notebook or a bare script, for any function. A run that fails, loops or kills its process is an error
    row. Ctrl-C ends the sweep and leaves no process.

    Args:
        strategy: ``function(bars, **parameters)`` that returns a target position for each bar, or "module:function".
        data: Bars, a DataFrame of OHLCV, or {symbol: either}.
        space: `runner.grid` or `runner.sample`.
        execution: costs, fills and stops.
        processes: how many child processes; with neither this nor threads, all runs are made in this thread.
        threads: how many threads instead: the engine releases the GIL, a strategy in Python does not.
        run_timeout_s: limit for one run. None lets it run for ever. Only a child process (``processes=``) can be
            stopped when it hangs in C code.
        progress: show a bar, in a notebook and where stderr is a terminal.

    Returns:
        One row a run.

    Raises:
        InputError: something passed in cannot be run (StrategyError, BarsError, SpaceError, SettingsError say what).
        ExecutorError: the strategy cannot be sent to a child process.
    """
    if processes is not None and threads is not None:
        raise InputError(f"processes={processes!r} and threads={threads!r}: expected one of the two.")
    check_count("processes", processes)
    check_count("threads", threads)
    check_seconds("run_timeout_s", run_timeout_s)
    plan = make_plan(strategy, data, space, execution)
    if plan.source is not None:
        raise BarsError("runner.sweep runs here and fetches nothing: pass what client.fetch(...) returns.")
    began = time.monotonic()
    with ProgressBar(_title(plan), len(plan), shown=progress) as bar:
        work = _Runs(plan, processes or threads or 1, bar)
        handler = RunChunk(plan, run_timeout_s)
        if processes is not None:
            limit_s = None if run_timeout_s is None else run_timeout_s + CHUNK_S + GRACE_S
            name = strategy_name(plan.strategy)
            run_in_processes(handler, work, processes=min(processes, len(plan)), timeout_s=limit_s, name=name)
        elif threads is not None:
            run_in_threads(handler, work, threads=min(threads, len(plan)))
        else:
            run_here(handler, work)
    return Results(
        name=_title(plan),
        symbols=list(plan.bars),
        space=plan.space,
        execution=plan.execution,
        metrics=work.metrics,
        errors=work.errors,
        rerun=plan.backtest,
        elapsed_s=time.monotonic() - began,
    )


class _Request(NamedTuple):
    """Runs start..stop-1, all on one symbol; ``alone``: answer for each, because one of them killed a process."""

    start: int
    stop: int
    alone: bool


@dataclass(frozen=True, slots=True)
class RunChunk:
    """What a worker of a local sweep holds; see `runner.child.Handler`."""

    plan: Plan
    run_timeout_s: float | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _load_compiled, (self.plan, self.run_timeout_s)

    def __call__(self, request: _Request) -> Iterator[Reply]:
        """One `BatchOutcome`, of as many runs as fit into the chunk's time; one a run when they are alone."""
        step = 1 if request.alone else request.stop - request.start
        for start in range(request.start, request.stop, step):
            yield True, self._run(start, start + step)

    def _run(self, start: int, stop: int) -> BatchOutcome:
        from runner.engine.batch import run_batch

        plan = self.plan
        symbol, first = divmod(start, len(plan.space))
        bars = list(plan.bars.values())[symbol]
        points = plan.space.points(first, first + stop - start)
        return run_batch(
            plan.strategy, bars, points, plan.execution, run_timeout_s=self.run_timeout_s, budget_s=CHUNK_S
        )


def _load_compiled(plan: Plan, run_timeout_s: float | None) -> RunChunk:
    """In a child: the kernel is compiled, or read from its cache, before any limit of time runs."""
    from runner.engine.batch import simulator
    from runner.engine.metrics import METRICS

    bars = next(iter(plan.bars.values()))
    simulate = simulator(bars, plan.execution)
    for kind in (bool, float):
        simulate(np.zeros(len(bars), kind), np.empty(len(METRICS)))
    return RunChunk(plan, run_timeout_s)


class _Runs:
    """The runs of a sweep and their rows; see `runner.crew.Work`."""

    def __init__(self, plan: Plan, workers: int, bar: ProgressBar) -> None:
        from runner.engine.metrics import METRICS

        self.metrics = np.full((len(plan), len(METRICS)), np.nan)
        self.errors: dict[int, RunError] = {}
        points = len(plan.space)
        symbols = [(start, start + points) for start in range(0, len(plan), points)]
        self._ranges = Ranges(symbols, workers, chunk_s=CHUNK_S, first=FIRST_CHUNK)
        self._suspects: list[tuple[int, int]] = []
        self._left = len(plan)
        self._bar = bar

    @property
    def finished(self) -> bool:
        return not self._left

    def take(self) -> Chunk | None:
        if self._suspects:
            suspects = self._suspects.pop()
            return Chunk(*suspects, _Request(*suspects, alone=True))
        taken = self._ranges.take()
        return Chunk(*taken, _Request(*taken, alone=False)) if taken else None

    def reply(self, chunk: Chunk, reply: Reply) -> None:
        outcome: BatchOutcome = reply[1]
        self._keep(chunk, outcome.metrics, outcome.errors)

    def done(self, chunk: Chunk, seconds: float) -> None:
        if not chunk.payload.alone:
            self._ranges.measured(chunk.at - chunk.start, seconds)
        self._ranges.put_back(chunk.at, chunk.stop)

    def refused(self, chunk: Chunk, error: ExecutorError) -> None:  # noqa: ARG002 -- three plain numbers always arrive
        raise error

    def lost(self, chunk: Chunk, error: ExecutorError | RunTimeoutError) -> None:
        """The first death sends the runs again, one by one; the second tells which it was."""
        if chunk.payload.alone:
            self._keep(chunk, np.full((1, self.metrics.shape[1]), np.nan), {0: _lost_run(error)})
        if chunk.at < chunk.stop:
            self._suspects.append((chunk.at, chunk.stop))

    def _keep(self, chunk: Chunk, rows: np.ndarray, errors: Mapping[int, RunError]) -> None:
        self.metrics[chunk.at : chunk.at + len(rows)] = rows
        self.errors.update({chunk.at + offset: error for offset, error in errors.items()})
        chunk.at += len(rows)
        self._left -= len(rows)
        self._bar.show(len(self.metrics) - self._left, f"{len(self.errors):,} failed" if self.errors else "")


def _lost_run(error: ExecutorError | RunTimeoutError) -> RunError:
    from runner.engine.batch import RunError

    if isinstance(error, RunTimeoutError):
        text = "this run took longer than run_timeout_s without returning to Python; its process was killed, twice"
        return RunError("RunTimeoutError", text, "")
    return RunError("WorkerLost", f"this run ended the process that ran it, twice: {error}", "")


def _title(plan: Plan) -> str:
    symbols: list[Any] = list(plan.bars)
    what = symbols[0] if len(symbols) == 1 else f"{len(symbols)} symbols"
    return f"{strategy_name(plan.strategy)} {what}".strip()
