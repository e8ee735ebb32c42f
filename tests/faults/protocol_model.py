"""The claim-commit-recover protocol of runner/ledger.lua as plain functions over values that do not change.

`Protocol` has a method for each of the ledger's scripts; tests/faults/test_protocol.py holds them against the real
ones. protocol_search.py puts workers, messages, clients and faults around it. docs/protocol/README.md says the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

SWEEP, FETCH = 0, 1
ENDED = ("done", "cancelled")
OPEN = ("running", "paused")


class Chunk(NamedTuple):
    """A range that was given out: queued, or running under an owner "WORKER/CHILD"."""

    stop: int
    running: bool = False
    owner: str = ""
    deaths: int = 0
    losses: int = 0
    suspect: bool = False


class Range(NamedTuple):
    """Items start..stop-1, handed back or opened, claimed before new ones."""

    start: int
    stop: int
    suspect: bool = False


class Outcome(NamedTuple):
    """Items start..stop-1 as they were committed; ``failed`` of them are errors."""

    start: int
    stop: int
    failed: int


class Batch(NamedTuple):
    """All that the ledger knows of a batch; state "" is a batch that is not there."""

    state: str = ""
    total: int = 0
    next: int = 0
    done: int = 0
    failed: int = 0
    cost_us: float = 0.0
    points: int = 0  # of a batch that feeds another: the runs that each of its items opens
    active: bool = False
    expiring: bool = False
    chunks: tuple[tuple[int, Chunk], ...] = ()
    free: tuple[Range, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    landed: tuple[int, ...] = ()

    def chunk(self, start: int) -> Chunk | None:
        """The chunk that begins at ``start``."""
        return next((chunk for at, chunk in self.chunks if at == start), None)

    def keep(self, start: int, chunk: Chunk | None) -> Batch:
        """With the chunk at ``start``, or with none there."""
        others = (pair for pair in self.chunks if pair[0] != start)
        return self._replace(chunks=tuple(sorted([*others, *([(start, chunk)] if chunk else [])])))

    def give_back(self, start: int, stop: int, *, suspect: bool) -> Batch:
        """With items start..stop-1, if there are any, to be claimed next."""
        return self._replace(free=(Range(start, stop, suspect), *self.free)) if stop > start else self

    def finish(self, how: str) -> Batch:
        """Ended: kept until its retention is over, or its sweep's."""
        return self._replace(state=how, active=False, expiring=not self.points, chunks=(), free=())


# A sweep, or a sweep and the fetch that feeds it.
Ledger = tuple[Batch, ...]
Size = Callable[[Batch, int, int], int]
GONE = Batch()


class Begun(NamedTuple):
    """What `begin` answers."""

    what: str
    stop: int = 0
    owner: str = ""


class Protocol:
    """The ledger's scripts. Every step takes the ledger and returns it changed, with the script's answer."""

    def __init__(self, size: Size) -> None:
        self.size = size

    def reserve(self, ledger: Ledger) -> tuple[Ledger, bool]:
        """Take the name."""
        if ledger[SWEEP].state:
            return ledger, False
        return _put(ledger, SWEEP, Batch("submitting", expiring=True)), True

    def activate(self, ledger: Ledger, total: int, points: int = 0) -> tuple[Ledger, bool]:
        """Start the sweep; with ``points`` a symbol also the fetch that feeds it."""
        if ledger[SWEEP].state != "submitting":
            return ledger, False
        if not points:
            return _put(ledger, SWEEP, Batch("running", total, active=True)), True
        fetch = Batch("running", total // points, points=points, active=True)
        return (Batch("running", total, next=total, active=True), fetch), True

    def top_up(self, ledger: Ledger, i: int, slots: int, window: int) -> tuple[Ledger, list[int]]:
        """Fill the window; the starts are to be published."""
        batch, starts = ledger[i], list[int]()
        while len(batch.chunks) < window:
            batch, start = self._claim(batch, slots)
            if start is None:
                break
            starts.append(start)
        return _put(ledger, i, batch), starts

    def begin(self, ledger: Ledger, i: int, start: int, me: str, dead: str = "") -> tuple[Ledger, Begun]:
        """Take a chunk, or learn why not."""
        batch = ledger[i]
        if batch.state == "running" and batch.points and ledger[SWEEP].state not in OPEN:
            batch = batch.finish("cancelled")
        chunk = batch.chunk(start)
        if chunk is None or batch.state in ENDED:
            return _put(ledger, i, batch), Begun("drop")
        if batch.state == "paused":
            batch = self._hand_back(batch, start, chunk)
            return _put(ledger, i, batch), Begun("drop")
        if chunk.running and chunk.owner != me:
            if not self._may_take_over(chunk, dead):
                return ledger, Begun("owned", chunk.stop, chunk.owner)
            chunk = chunk._replace(deaths=self._one_more(chunk.deaths))
        runs = chunk.stop - start
        if runs > 1 and (chunk.deaths >= 2 or (chunk.suspect and chunk.deaths >= 1)):
            middle = start + runs // 2
            batch = batch.give_back(middle, chunk.stop, suspect=True)
            chunk = chunk._replace(stop=middle, suspect=True, deaths=0)
        poison = runs == 1 and chunk.deaths >= 2
        batch = batch.keep(start, chunk._replace(running=True, owner=me))
        return _put(ledger, i, batch), Begun("poison" if poison else "run", chunk.stop)

    def commit(
        self, ledger: Ledger, i: int, start: int, stop: int, done_stop: int, *, failed: int, us: int, slots: int
    ) -> tuple[Ledger, int | None]:
        """The first commit wins; answers with the start of the chunk to publish next."""
        batch = ledger[i]
        chunk = batch.chunk(start)
        if chunk is None or not self._is_same(chunk, stop) or batch.state in ENDED:
            return ledger, None
        runs = done_stop - start
        kept = [outcome for outcome in batch.outcomes if outcome.start != start]
        batch = batch.keep(start, None)._replace(
            outcomes=tuple(sorted([*kept, Outcome(start, done_stop, failed)])),
            cost_us=_smoothed(batch.cost_us, us / runs),
            failed=batch.failed + failed,
            done=batch.done + runs,
        )
        ledger = self._feed(ledger, batch, range(start, done_stop)) if batch.points else ledger
        batch = batch.give_back(done_stop, stop, suspect=chunk.suspect)
        following = None
        if batch.done >= batch.total:
            batch = batch.finish("done")
        else:
            batch, following = self._claim(batch, slots)
        return _put(ledger, i, batch), following

    def release(self, ledger: Ledger, i: int, start: int, me: str) -> tuple[Ledger, bool]:
        """A child that could not do its chunk hands it back."""
        chunk = ledger[i].chunk(start)
        if chunk is None or chunk.owner != me:
            return ledger, False
        return _put(ledger, i, self._hand_back(ledger[i], start, chunk)), True

    def turn(self, ledger: Ledger, i: int, wanted: str) -> tuple[Ledger, str]:
        """Pause, resume or cancel; answers with the state that it is in now."""
        batch = ledger[i]
        if batch.state not in OPEN:
            return ledger, batch.state
        batch = batch.finish(wanted) if wanted == "cancelled" else batch._replace(state=wanted)
        return _put(ledger, i, batch), wanted

    def recover(
        self,
        ledger: Ledger,
        i: int,
        *,
        living: frozenset[str],
        overdue: frozenset[int],
        waited: frozenset[int],
        queued: frozenset[int],
    ) -> tuple[Ledger, list[int]]:
        """Chunks whose owner or message is gone, to be published again.

        Args:
            ledger: before.
            i: the batch.
            living: workers that were heard of.
            overdue: chunks that run for longer than the limit.
            waited: queued chunks that have waited for longer than the grace.
            queued: chunks that have a message in the queue.
        """
        batch, starts = ledger[i], list[int]()
        for start, chunk in batch.chunks:
            if chunk.running and (chunk.owner.rpartition("/")[0] not in living or start in overdue):
                losses = chunk.losses + 1
                deaths = self._one_more(chunk.deaths) if losses >= 3 else chunk.deaths
                batch = batch.keep(start, chunk._replace(running=False, losses=losses, deaths=deaths))
                starts.append(start)
            elif not chunk.running and start in waited and start not in queued and self._looks_for_messages():
                starts.append(start)
        return _put(ledger, i, batch), starts

    def remove(self, ledger: Ledger, i: int) -> Ledger:
        """Forget a batch."""
        return _put(ledger, i, GONE)

    def _claim(self, batch: Batch, slots: int) -> tuple[Batch, int | None]:
        if batch.state != "running" or (not batch.free and batch.next >= batch.total):
            return batch, None
        if batch.free:
            (start, stop, suspect), rest = batch.free[0], batch.free[1:]
            last = min(stop, start + self.size(batch, batch.total - batch.done, slots))
            batch = batch._replace(free=rest).give_back(last, stop, suspect=suspect)
        else:
            start, suspect = batch.next, False
            last = min(batch.total, start + self.size(batch, batch.total - start, slots))
            batch = batch._replace(next=last)
        return batch.keep(start, Chunk(last, suspect=suspect)), start

    def _feed(self, ledger: Ledger, fetch: Batch, items: Iterable[int]) -> Ledger:
        sweep = ledger[SWEEP]
        for item in items:
            if sweep.state in OPEN and item not in sweep.landed:
                opened = Range(item * fetch.points, (item + 1) * fetch.points)
                sweep = sweep._replace(free=(*sweep.free, opened), landed=tuple(sorted([*sweep.landed, item])))
        return _put(ledger, SWEEP, sweep)

    # The points at which the tests break the protocol, to see that the checker notices.

    def _hand_back(self, batch: Batch, start: int, chunk: Chunk) -> Batch:
        return batch.keep(start, None).give_back(start, chunk.stop, suspect=chunk.suspect)

    def _may_take_over(self, chunk: Chunk, dead: str) -> bool:
        return dead == chunk.owner

    def _is_same(self, chunk: Chunk, stop: int) -> bool:
        return chunk.stop == stop

    def _looks_for_messages(self) -> bool:
        return True

    def _one_more(self, deaths: int) -> int:
        return deaths + 1


def measured(first_runs: int, target_us: float, floor_us: float) -> Size:
    """The ledger's own rule: as long as aimed at by the cost measured so far, shorter towards the end."""

    def size(batch: Batch, remaining: int, slots: int) -> int:
        if batch.cost_us <= 0:
            return first_runs
        even = math.ceil(remaining / (2 * slots))
        floor = math.floor(floor_us / batch.cost_us)
        return max(1, min(math.floor(target_us / batch.cost_us), max(even, floor)))

    return size


def _smoothed(cost_us: float, measured_us: float) -> float:
    # Lua writes a number with 14 digits.
    return float(f"{(cost_us + measured_us) / 2 if cost_us > 0 else measured_us:.14g}")


def _put(ledger: Ledger, i: int, batch: Batch) -> Ledger:
    return (*ledger[:i], batch, *ledger[i + 1 :])
