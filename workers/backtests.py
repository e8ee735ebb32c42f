"""What a child of the backtest queue does with a chunk: runs of a sweep, one after the other."""

from __future__ import annotations

import faulthandler
import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import psutil
import redis
from billiard.common import terminate_handler_fired

from runner import outcomes, signing
from runner.app import QUEUE_BACKTEST
from runner.bars import Bars, DataRef, sample_data
from runner.engine.batch import BatchOutcome, RunError, run_batch, run_error
from runner.engine.metrics import METRICS
from runner.errors import BarsError, BrokerError, SweepNotFound
from runner.fetching import error_of
from runner.outcomes import Outcome
from runner.spec import Execution, Sweep
from runner.store import CHUNK_BUDGET_S, HARD_LIMIT_GRACE_S, Begun
from runner.strategies import sma_cross
from runner.strategy import Strategy, StrategyRef, resolve
from workers import chunks
from workers.chunks import Done, Following, Job
from workers.resources import Resources

T = TypeVar("T")

# A chunk of fast runs has tens of thousands; in pieces it needs little more memory than its outcome.
PIECE_RUNS = 4096


def run_chunk(held: Resources, batch: str, start: int, worker: str) -> list[Following]:
    """Run the chunk that begins at run ``start``, if it is still to be run."""
    job = Job(
        queue=QUEUE_BACKTEST,
        owner=f"{worker}/{os.getpid()}",
        died=lambda owner: _died_here(owner, worker),
        run=partial(_run, held),
        poisoned=_poisoned,
    )
    return chunks.run_chunk(held, job, batch, start)


def _run(held: Resources, batch: str, start: int, begun: Begun) -> Done:
    """As many of the runs as fit into the budget, at least one."""
    life = _Life(batch, begun.life)
    sweep = _sweep(held, life)
    columns: list[np.ndarray] = []
    errors: dict[int, RunError] = {}
    seconds, at = 0.0, start
    with _killed_after(CHUNK_BUDGET_S + sweep.run_timeout_s + HARD_LIMIT_GRACE_S):
        while at < begun.stop and seconds < CHUNK_BUDGET_S:
            chunks.exit_if_told_to()
            part = sweep.parts(at, min(at + PIECE_RUNS, begun.stop))[0]
            ran = _run_part(held, life, sweep, part, CHUNK_BUDGET_S - seconds)
            errors.update({at + offset: error for offset, error in ran.errors.items()})
            columns.append(ran.metrics.T)
            seconds += ran.seconds
            at += len(ran.metrics)
    return _done(Outcome(start, np.concatenate(columns, axis=1), errors), seconds)


def _done(outcome: Outcome, seconds: float) -> Done:
    return Done(outcome.stop, len(outcome.errors), seconds, outcomes.encode(outcome))


def _run_part(
    held: Resources, life: _Life, sweep: Sweep, part: tuple[DataRef, int, int], budget_s: float
) -> BatchOutcome:
    """Points first..last-1 on one symbol.

    Whatever hinders all of them, code or prices that cannot be loaded here, is the error row of each: a chunk that
    raised instead would be handed out again for ever.
    """
    ref, first, last = part
    try:
        strategy = _strategy(held, sweep.strategy)
        bars = _bars(held, ref if sweep.source is None else _landed(held, life, sweep.data.index(ref)))
        points = _until_told_to_stop(sweep.space.points(first, last))
        return run_batch(strategy, bars, points, sweep.execution, run_timeout_s=sweep.run_timeout_s, budget_s=budget_s)
    except (SweepNotFound, redis.RedisError):
        raise
    except Exception as error:  # noqa: BLE001 - see above
        return BatchOutcome(_nan_rows(last - first), dict.fromkeys(range(last - first), run_error(error)), 0.0)


def _until_told_to_stop(points: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """SIGTERM ends the run that it meets; the next one, which may last minutes, is not begun."""
    for point in points:
        if terminate_handler_fired():
            return
        yield point


def _poisoned(_batch: str, start: int) -> Done:
    message = (
        "this run killed the worker process that ran it, twice (a crash in C code, os._exit, out of memory, or longer "
        "than the time limit without returning to Python)"
    )
    return _done(Outcome(start, _nan_rows(1).T, {start: RunError("WorkerLost", message, "")}), 0.0)


def _nan_rows(n: int) -> np.ndarray:
    return np.full((n, len(METRICS)), np.nan)


@dataclass(frozen=True, slots=True)
class _Life:
    """One batch of a name. A removed batch's name may be taken again, and this process may remember the first."""

    name: str
    token: str

    def key(self, what: str) -> str:
        """The cache's key for what this very batch has."""
        return f"{what}:{self.name}:{self.token}"


def _sweep(held: Resources, life: _Life) -> Sweep:
    def verified(signed: bytes) -> Sweep:
        return Sweep.from_json(signing.verify_spec(held.secret, life.name, signed))

    sweep = held.cache.get(life.key("batch"), lambda: held.ledger.spec(life.name), verified)
    if sweep is None:
        raise SweepNotFound(f"sweep {life.name!r} is no longer on the server.")
    return sweep


def _strategy(held: Resources, ref: StrategyRef) -> Strategy:
    if ref.path is not None:
        return resolve(ref, None)

    def verified(signed: bytes) -> Strategy:
        return resolve(ref, signing.verify_code(held.secret, signed))

    strategy = held.cache.get(f"code:{ref.digest}", lambda: held.ledger.get("code", ref.digest), verified)
    return _found(strategy, f"code of strategy {ref.name!r}")


def _bars(held: Resources, ref: DataRef) -> Bars:
    def verified(blob: bytes) -> Bars:
        bars = Bars.from_bytes(blob)
        if bars.digest != ref.digest:
            raise BarsError(f"the prices of {ref.symbol!r} on the server are not those that were sent.")
        return bars

    bars = held.cache.get(f"data:{ref.digest}", lambda: held.ledger.get("data", ref.digest), verified)
    return _found(bars, f"prices of {ref.symbol!r}")


def _landed(held: Resources, life: _Life, item: int) -> DataRef:
    """What the sweep's fetch brought for symbol ``item``, or its error."""
    found = held.cache.get(life.key(f"landed:{item}"), lambda: held.ledger.landed(life.name, item), json.loads)
    landed = _found(found, f"outcome of the fetch of symbol {item}")
    if "error" in landed:
        raise error_of(landed["error"])
    return DataRef(landed["symbol"], landed["digest"], landed["n_bars"])


def _found(value: T | None, what: str) -> T:
    """The value; its absence is an error of the runs that need it. Whether the sweep is gone too, the commit tells."""
    if value is None:
        raise BrokerError(f"the {what} is no longer on the server: submit the sweep again.")
    return value


def _died_here(owner: str, worker: str) -> bool:
    """Whether ``owner`` was a child of this very worker and is no more. Of other hosts only their heartbeat tells."""
    name, _, pid = owner.rpartition("/")
    return name == worker and int(pid) not in {child.pid for child in psutil.Process(os.getppid()).children()}


@contextmanager
def _killed_after(limit_s: float) -> Iterator[None]:
    """This process ends when the block does not: the one limit that also holds inside C code that keeps the GIL."""
    faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or 2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def warm_up() -> None:
    """Load in a new child what its first run would wait for: the compiled kernel, Arrow, the indicator library."""
    bars = sample_data("SP500")[:50]
    done = run_batch(sma_cross, bars, [{"fast": 2, "slow": 5}], Execution(), run_timeout_s=60.0)
    outcomes.decode(outcomes.encode(Outcome(0, done.metrics.T, done.errors)))
    # What is loaded by now stays; without this the collector walks it again and again (a tenth of a second each time).
    gc.collect()
    gc.freeze()
