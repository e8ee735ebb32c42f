"""What must hold in every state of the protocol."""

from __future__ import annotations

from collections import Counter

from tests.faults.protocol_model import ENDED, FETCH, GONE, OPEN, SWEEP, Batch, Ledger, Protocol


def broken_in_ledger(ledger: Ledger, *, poison: int, no_other: bool) -> str:
    """What is wrong with the ledger itself, or "".  no_other: nothing but the poison can have become an error."""
    fed = ledger[FETCH:] and ledger[FETCH].points
    for i, batch in enumerate(ledger):
        points = ledger[FETCH].points if fed and i == SWEEP else 0
        if broken := _flags(batch) or _counts(batch) or _places(batch, points):
            return f"batch {i}: {broken}"
    if fed and (broken := _feeding(ledger[SWEEP], ledger[FETCH])):
        return broken
    for outcome in ledger[SWEEP].outcomes:
        suspected = outcome.start <= poison < outcome.stop or (outcome.failed and no_other)
        if suspected and outcome != (poison, poison + 1, 1):
            return f"an error row, and none but the poison {poison} may be one, alone: {outcome}"
    return ""


def _flags(batch: Batch) -> str:
    if not batch.state:
        return "" if batch == GONE else f"something is left of a removed batch: {batch}"
    expires = batch.state not in OPEN and not batch.points  # a fetch that feeds a sweep goes when the sweep goes
    if (batch.active, batch.expiring) != (batch.state in OPEN, expires):
        return f"{batch.state}, but active is {batch.active} and expiring {batch.expiring}"
    if batch.state in ENDED and (batch.chunks or batch.free):
        return f"{batch.state}, but there are still chunks"
    return ""


def _counts(batch: Batch) -> str:
    done = sum(stop - start for start, stop, _ in batch.outcomes)
    failed = sum(outcome.failed for outcome in batch.outcomes)
    if (batch.done, batch.failed) != (done, failed):
        return f"{batch.done} counted as done and {batch.failed} as failed, but {done} and {failed} committed"
    return ""


def _places(batch: Batch, points: int) -> str:
    """Each run is in one place: committed, given out, free, beyond ``next``, or waiting for its prices."""
    places = Counter[int]()
    for start, stop, _ in (*batch.outcomes, *batch.free):
        places.update(range(start, stop))
    for start, chunk in batch.chunks:
        places.update(range(start, chunk.stop))
    places.update(range(batch.next, batch.total) if batch.state in OPEN else ())
    if points and batch.state in OPEN:
        places.update(run for run in range(batch.total) if run // points not in batch.landed)
    if twice := [run for run in range(batch.total) if places[run] > 1]:
        return f"runs in two places: {twice}"
    if batch.state != "cancelled" and (lost := [run for run in range(batch.total) if not places[run]]):
        return f"runs in no place: {lost}"
    return ""


def _feeding(sweep: Batch, fetch: Batch) -> str:
    if sweep.state not in OPEN or not fetch.state:
        return ""
    if fetch.state == "cancelled":
        return "the sweep waits for a fetch that was cancelled"
    fetched = tuple(item for start, stop, _ in fetch.outcomes for item in range(start, stop))
    return "" if sweep.landed == fetched else f"fetched {fetched}, but opened {sweep.landed}"


def broken_in_messages(
    protocol: Protocol, ledger: Ledger, i: int, *, heard: frozenset[str], queued: frozenset[int], done: frozenset[int]
) -> str:
    """Whether some chunk is neither queued, nor done by the living (``done``), nor found by the reconciler in time."""
    starts = frozenset(start for start, _ in ledger[i].chunks)
    _, found = protocol.recover(ledger, i, living=heard, overdue=starts - done, waited=starts, queued=queued)
    for start, chunk in ledger[i].chunks:
        if start not in found and not (start in done if chunk.running else start in queued):
            return f"chunk {i}:{start} is lost: {chunk}"
    return ""


def held_up(ledger: Ledger) -> bool:
    """Whether there is something left to do although nobody paused it."""
    fetch = ledger[FETCH] if ledger[FETCH:] else GONE
    if ledger[SWEEP].state == "paused":
        return bool(ledger[SWEEP].chunks) or fetch.state in OPEN
    return any(batch.state and batch.state not in ENDED for batch in ledger)
