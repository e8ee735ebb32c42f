"""A chunk's life in a worker: take it from the ledger, do it, hand it in, and learn which is next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from billiard.common import terminate_handler_fired

from runner.errors import SweepNotFound
from workers.resources import Resources


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a chunk.

    Attributes:
        stop: the last item that was done + 1; the rest is handed back.
        failed: how many items are errors.
        seconds: what it took; the next chunk is sized by it.
        blob: the outcome, as whoever collects the batch reads it.
        landed: of a fetch that feeds a sweep, each item's reference or error.
    """

    stop: int
    failed: int
    seconds: float
    blob: bytes
    landed: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """How the chunks of one kind of batch are done.

    Attributes:
        queue: where they come from.
        owner: whoever does this one; unlike anyone else, "WORKER/..." .
        died: whether another owner is known to be dead; of other hosts only their heartbeat tells.
        run: items start..stop-1, as many as fit into the time of a chunk, at least one.
        poisoned: the one item at start, which has killed whoever did it, twice.
    """

    queue: str
    owner: str
    died: Callable[[str], bool]
    run: Callable[[str, int, int], Done]
    poisoned: Callable[[str, int], Done]


@dataclass(frozen=True, slots=True)
class Following:
    """A chunk that the ledger has given out; its message is still to be published."""

    batch: str
    start: int
    queue: str
    priority: str


def run_chunk(held: Resources, job: Job, batch: str, start: int) -> list[Following]:
    """Do the chunk that begins at item ``start``, if it is still to be done. Safe to call twice: first commit wins."""
    begun = held.ledger.begin(batch, start, job.owner)
    if begun.what == "owned" and job.died(begun.owner):
        begun = held.ledger.begin(batch, start, job.owner, dead_owner=begun.owner)
    if begun.what not in ("run", "poison"):
        return []
    try:
        done = job.poisoned(batch, start) if begun.what == "poison" else job.run(batch, start, begun.stop)
        _exit_if_told_to()
    except SweepNotFound:
        return []  # removed while its message was under way
    except BaseException:
        held.tally.add("tasks_failed")
        held.ledger.release(batch, start, job.owner, held.tally.take())
        raise
    held.tally.add("tasks_ok")
    following = held.ledger.commit(
        batch,
        start,
        begun.stop,
        done.stop,
        failed=done.failed,
        seconds=done.seconds,
        worker=job.owner.rpartition("/")[0],
        slots=held.slots(job.queue),
        blob=done.blob,
        landed=done.landed,
        counters=held.tally.take(),
    )
    return [] if following is None else [Following(batch, following, job.queue, begun.priority)]


def _exit_if_told_to() -> None:
    """A SIGTERM raises SystemExit wherever this process is: inside a strategy it was taken for a failed run."""
    if terminate_handler_fired():
        raise SystemExit
