"""A chunk's life in a worker: take it from the ledger, do it, hand it in, and learn which is next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from billiard.common import terminate_handler_fired
from redis import exceptions

from runner.errors import SweepNotFound
from runner.signing import Refused
from runner.store import Begun
from workers.resources import Resources

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A server that is away, full, or short of disk: what a child has computed is worth waiting for. The lease goes on
# meanwhile; after this the chunk is given up, and run again when the server is back.
PATIENCE_S = 3600.0
FIRST_WAIT_S = 0.1
LONGEST_WAIT_S = 5.0
# Of errors that redis-py has no class for.
CANNOT_WRITE = ("MISCONF", "NOREPLICAS")

# Batch and first item of each chunk that runs in a thread of this process → its owner.
under_way: dict[tuple[str, int], str] = {}


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
        run: items from start on, to ``begun.stop`` or as many as fit into the time of a chunk, at least one.
        poisoned: the one item at start, which has killed whoever did it, twice.
    """

    queue: str
    owner: str
    died: Callable[[str], bool]
    run: Callable[[str, int, Begun], Done]
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
    begun = patiently(lambda: held.ledger.begin(batch, start, job.owner))
    if begun.what == "owned" and job.died(begun.owner):
        dead_owner = begun.owner
        begun = patiently(lambda: held.ledger.begin(batch, start, job.owner, dead_owner=dead_owner))
    if begun.what not in ("run", "poison"):
        return []
    under_way[batch, start] = job.owner
    try:
        return _run_and_commit(held, job, batch, start, begun)
    except SweepNotFound:
        return []  # removed while its message was under way
    except Refused as refusal:  # nobody with the secret wants it done
        held.ledger.reject(f"batch {refusal.reason}")
        held.ledger.turn(batch, "cancelled")
        return []
    except BaseException:
        _hand_back(held, job, batch, start)
        raise
    finally:
        under_way.pop((batch, start), None)


def _run_and_commit(held: Resources, job: Job, batch: str, start: int, begun: Begun) -> list[Following]:
    done = job.poisoned(batch, start) if begun.what == "poison" else job.run(batch, start, begun)
    exit_if_told_to()
    held.tally.add("tasks_ok")
    counters = held.tally.take()
    following = patiently(
        lambda: held.ledger.commit(
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
            counters=counters,
        )
    )
    return [] if following is None else [Following(batch, following, job.queue, begun.priority)]


def _hand_back(held: Resources, job: Job, batch: str, start: int) -> None:
    """Return a chunk that was not done; whoever was told to stop has not failed."""
    if not terminate_handler_fired():
        held.tally.add("tasks_failed")
    try:
        held.ledger.release(batch, start, job.owner, held.tally.take())
    except exceptions.RedisError as error:
        logger.warning("%s: could not hand back chunk %d, the reconciler will find it: %s", batch, start, error)


def patiently(step: Callable[[], T]) -> T:
    """What a step of the ledger returns, tried again while the server is away or has no room.

    A step runs whole or not at all, and the first commit of a chunk wins, so one whose answer was lost may run again.
    """
    gives_up, wait_s = time.monotonic() + PATIENCE_S, FIRST_WAIT_S
    while True:
        try:
            return step()
        except exceptions.RedisError as error:
            if not _passes(error) or time.monotonic() > gives_up:
                raise
            logger.warning("the server is away or cannot be written to; the chunk waits and tries again: %s", error)
        time.sleep(wait_s)
        exit_if_told_to()
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


def _passes(error: exceptions.RedisError) -> bool:
    """Whether it is a state of the server that ends, not a mistake of ours."""
    if isinstance(error, exceptions.AuthenticationError | exceptions.AuthorizationError):
        return False  # connection errors to redis-py, but no waiting cures them
    away = exceptions.ConnectionError | exceptions.TimeoutError | exceptions.BusyLoadingError
    cannot_write = exceptions.OutOfMemoryError | exceptions.ReadOnlyError
    return isinstance(error, away | cannot_write) or str(error).startswith(CANNOT_WRITE)


def exit_if_told_to() -> None:
    """A SIGTERM raises SystemExit wherever this process is: inside a strategy it was taken for a failed run."""
    if terminate_handler_fired():
        raise SystemExit
