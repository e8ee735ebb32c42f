"""A handle on a submitted sweep: progress, results, cancel, pause. It needs no process but the caller's own."""

from __future__ import annotations

import asyncio
import math
import time
import warnings
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.app import PRIORITIES
from runner.engine.metrics import METRICS
from runner.errors import InputError, SweepTimeout
from runner.following import BEAT_S, Follower
from runner.outcomes import decode
from runner.progressbar import ProgressBar
from runner.results import Results
from runner.spec import Sweep
from runner.store import Ledger, Progress, feeding

if TYPE_CHECKING:
    from runner.engine.batch import RunError
    from runner.single import Backtest


class SweepHandle:
    """A sweep on the workers.

    ``result()`` waits and returns the table; ``await handle`` does so in an asynchronous cell; iterating yields the
    table's parts as they land. Stopping to wait never stops the sweep.

    Attributes:
        id: the name to `runner.attach` by.
    """

    def __init__(
        self,
        name: str,
        sweep: Sweep,
        ledger: Ledger,
        rerun: Callable[[str, dict[str, Any]], Backtest],
        refill: Callable[[], None],
    ) -> None:
        self.id = name
        self._sweep = sweep
        self._ledger = ledger
        self._rerun = rerun
        self._refill = refill
        self._follower = Follower(ledger, name, len(sweep))
        self._fetched = Progress("running", len(sweep.data), 0, 0, 0.0)  # of the fetch that feeds it

    @cached_property
    def _collected(self) -> _Collected:
        """Made when results are asked for: a sweep too large for this machine's memory can still be cancelled."""
        return _Collected(len(self._sweep))

    @property
    def _seen(self) -> Progress:
        return self._follower.seen

    def progress(self) -> Progress:
        """Where it stands now: one question to the server."""
        return self._follower.refresh()

    def result(self, timeout: float | None = None, *, progress: bool = True) -> Results:
        """Wait for the end and return every run. A cancelled sweep returns the runs that were done.

        Args:
            timeout: seconds to wait; None waits as long as it takes.
            progress: show a bar, driven from this thread.

        Raises:
            SweepTimeout: not done in time; the sweep goes on.
            SweepNotFound: it is gone from the server.
        """
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        with ProgressBar(self.id, len(self._sweep), shown=progress) as bar:
            try:
                while not self._absorb(min(BEAT_S, max(0.0, deadline - time.monotonic()))):
                    bar.show(self._seen.done, self._note())
                    if time.monotonic() >= deadline:
                        raise SweepTimeout(
                            f"{self.id}: {self._seen.done:,} of {self._seen.total:,} runs done after {timeout:g} s; "
                            "it goes on: call result() again to wait longer, or cancel()."
                        )
                bar.show(self._seen.done, self._note())
            except KeyboardInterrupt:
                bar.say(f"stopped waiting; the sweep goes on. Come back with: runner.attach({self.id!r})")
                raise
        self._warn_of_stale()
        return self._results()

    def __await__(self) -> Generator[Any, None, Results]:
        return self._wait().__await__()

    async def _wait(self) -> Results:
        while not await asyncio.to_thread(self._absorb, BEAT_S):
            pass
        return self._results()

    def __iter__(self) -> Iterator[Results]:
        """Parts of the table as they land; together they are every run once."""
        taken = np.zeros(len(self._sweep), dtype=bool)
        ended = False
        while not ended:
            ended = self._absorb(BEAT_S)
            if (part := self._collected.done & ~taken).any():
                taken |= part
                yield self._results(part)

    async def __aiter__(self) -> AsyncIterator[Results]:
        """Parts of the table as they land, in an asynchronous cell."""
        parts = iter(self)
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            yield part

    def cancel(self) -> None:
        """End it now, and the fetch that feeds it; runs that are done stay. Cancelling what has ended does nothing."""
        self._ledger.turn(self.id, "cancelled")
        if self._sweep.source is not None:
            self._ledger.turn(feeding(self.id), "cancelled")

    def pause(self) -> None:
        """Start no further chunk until `resume`."""
        self._ledger.turn(self.id, "paused")

    def resume(self) -> None:
        """Go on after `pause`."""
        if self._ledger.turn(self.id, "running") == "running":
            self._refill()

    def prioritize(self, priority: str) -> None:
        """high, normal or low, from the next chunk on."""
        if priority not in PRIORITIES:
            raise InputError(f"priority={priority!r}: expected {', '.join(PRIORITIES)}.")
        self._ledger.set_priority(self.id, priority)
        if self._sweep.source is not None:
            self._ledger.set_priority(feeding(self.id), priority)

    def __repr__(self) -> str:
        return f"<sweep {self.id}: {_line(self._seen)}>"

    def _repr_html_(self) -> str:
        from html import escape

        share = self._seen.done / max(1, self._seen.total)
        return (
            f"<div><b>{escape(self.id)}</b> <progress value='{share:.4f}'></progress> {escape(_line(self._seen))}</div>"
        )

    def _absorb(self, wait_s: float) -> bool:
        """Take in what has landed, waiting at most ``wait_s`` for something to; returns whether the sweep has ended."""
        for blob in self._follower.look(wait_s):
            self._collected.add(blob)
        if self._sweep.source is not None and not self._fetched.ended:
            self._fetched = self._ledger.progress(feeding(self.id))
        return self._follower.complete

    def _note(self) -> str:
        seen, fetched, parts = self._seen, self._fetched, []
        if self._sweep.source is not None and not fetched.ended:
            parts.append(f"{fetched.done:,} of {fetched.total:,} symbols fetched")
        parts += [f"{seen.failed:,} failed"] * (seen.failed > 0) + ["paused"] * (seen.state == "paused")
        return ", ".join(parts)

    def _warn_of_stale(self) -> None:
        """Say which prices are old because the provider did not answer."""
        stale = self._ledger.stale(self.id) if self._sweep.source is not None else []
        if stale:
            warnings.warn(
                f"{self.id}: the provider did not answer for {len(stale):,} symbols ({', '.join(stale[:3])}): their "
                "prices are from the cache and end earlier.",
                stacklevel=3,
            )

    def _results(self, part: np.ndarray | None = None) -> Results:
        collected, sweep = self._collected, self._sweep
        return Results(
            name=self.id,
            symbols=[ref.symbol for ref in sweep.data],
            space=sweep.space,
            execution=sweep.execution,
            metrics=collected.columns.T,
            errors=collected.errors,
            rerun=self._rerun,
            elapsed_s=self._seen.elapsed_s,
            cancelled=self._seen.state == "cancelled",
            done=collected.done if part is None else part,
        )


class _Collected:
    """The outcomes taken in so far, a row a metric: that is how they come and how the table wants them."""

    def __init__(self, total: int) -> None:
        self.columns = np.empty((len(METRICS), total))
        self.done = np.zeros(total, dtype=bool)
        self.errors: dict[int, RunError] = {}

    def add(self, blob: bytes) -> None:
        outcome = decode(blob)
        rows = slice(outcome.start, outcome.stop)
        for kept, landed in zip(self.columns, outcome.columns, strict=True):
            kept[rows] = landed
        self.done[rows] = True
        self.errors.update(outcome.errors)


def _line(progress: Progress) -> str:
    failed = f", {progress.failed:,} failed" if progress.failed else ""
    return f"{progress.done:,} of {progress.total:,} runs{failed}, {progress.state}"
