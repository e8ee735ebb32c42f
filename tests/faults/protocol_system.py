"""Workers, messages, clients and faults around the protocol: everything that can happen next in a state.

A step is one script of the ledger together with what follows it outside: a message taken before, one published after. A
crash between the two needs no step of its own, it is that step and then a lost message.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from tests.faults.protocol_model import ENDED, FETCH, OPEN, SWEEP, Batch, Ledger, Protocol

# Workers' names, by their places. A child is "a/0"; one that is dead, whichever it was, "a/-".
NAMES = "abcdef"
FAULTS = frozenset({"kill", "release", "lose", "ghost", "silence", "overdue", "restart", "client", "user"})


class Hand(NamedTuple):
    """What a child does: items start..stop-1 of batch ``i``."""

    i: int
    start: int
    stop: int
    what: str


class Worker(NamedTuple):
    """A worker: whether it runs, whether its heartbeat is fresh, and what each of its children does."""

    alive: bool
    heard: bool
    hands: tuple[Hand | None, ...]


class State(NamedTuple):
    """All there is.

    ``client`` is new, reserved or away; ``saved`` is the ledger that a restart of the broker would fall back to, and
    ``age`` how many changes ago it was; ``queue`` holds (batch, start).
    """

    client: str
    ledger: Ledger
    saved: Ledger | None
    age: int
    queue: frozenset[tuple[int, int]]
    workers: tuple[Worker, ...]

    def worker(self, w: int, worker: Worker) -> State:
        """With another worker ``w``."""
        return self._replace(workers=(*self.workers[:w], worker, *self.workers[w + 1 :]))

    def holds(self, w: int, child: int, hand: Hand | None) -> State:
        """With the child doing that."""
        hands = self.workers[w].hands
        return self.worker(w, self.workers[w]._replace(hands=(*hands[:child], hand, *hands[child + 1 :])))

    def published(self, i: int, *starts: int) -> State:
        """With messages of those chunks; a second one of the same is a message that comes again."""
        return self._replace(queue=self.queue | {(i, start) for start in starts})

    def queued(self, i: int) -> frozenset[int]:
        """Chunks of the batch that have a message."""
        return frozenset(start for batch, start in self.queue if batch == i)

    def heard(self) -> frozenset[str]:
        """Workers whose heartbeat is fresh."""
        return frozenset(name for name, worker in zip(NAMES, self.workers, strict=False) if worker.heard)

    def is_done(self, i: int, start: int) -> bool:
        """Whether the chunk's owner lives and does it."""
        chunk = self.ledger[i].chunk(start)
        name, _, child = chunk.owner.partition("/") if chunk else ("", "", "")
        if child in ("", "-"):
            return False
        hand = self.workers[NAMES.index(name)].hands[int(child)]
        return hand is not None and (hand.i, hand.start) == (i, start)

    def buried(self, owner: str) -> State:
        """No one will have this name again; to the ledger one dead child is like another of the same worker."""
        return self._replace(ledger=_buried(self.ledger, owner), saved=self.saved and _buried(self.saved, owner))


class Broken(Exception):
    """Something that must not be."""


# Label, kind of fault ("" when it takes neither a fault nor a user), where to.
Step = tuple[str, str, State]


@dataclass(frozen=True)
class Scope:
    """How much is searched.

    Attributes:
        total: runs of the sweep.
        workers: for each, the batch whose queue it serves and how many children it has.
        points: runs on a symbol, of a sweep whose prices are fetched; 0 is a sweep without a fetch.
        sizes: how many runs a claim may take: any of them, each time.
        counting: whether deaths and losses are counted. Without, kills go on for ever in few states.
        poison: the run that kills whoever runs it; -1 for none.
        kills_worker: it takes the whole worker along.
        faults: the kinds that happen, at any moment and as often as they like.
        rollback: how many changes of the ledger a restart of the broker can lose.
    """

    total: int
    workers: tuple[tuple[int, int], ...]
    points: int = 0
    sizes: tuple[int, ...] = (1,)
    counting: bool = False
    poison: int = -1
    kills_worker: bool = False
    faults: frozenset[str] = FAULTS
    rollback: int = 0


class System:
    """One scope with one protocol."""

    def __init__(self, scope: Scope, protocol: type[Protocol]) -> None:
        self.scope = scope
        self.protocols = [protocol(functools.partial(_always, n)) for n in scope.sizes]
        self.plain = self.protocols[0]
        self.everyone = frozenset(NAMES[: len(scope.workers)])

    def first(self) -> State:
        """Idle workers, and a client that is about to submit."""
        workers = tuple(Worker(alive=True, heard=True, hands=(None,) * children) for _, children in self.scope.workers)
        return State("new", (Batch(),) * (2 if self.scope.points else 1), None, 0, frozenset(), workers)

    def steps(self, state: State) -> Iterator[Step]:
        """Everything that can happen next. Raises Broken when a chunk is given to two."""
        for step in self._all(state):
            if not step[1] or step[1] in self.scope.faults:
                yield step

    def _all(self, state: State) -> Iterator[Step]:
        yield from self._client(state)
        yield from self._user(state)
        for w, worker in enumerate(state.workers):
            yield from self._worker(state, w)
            for child in range(len(worker.hands) if worker.alive else 0):
                yield from self._child(state, w, child)
        yield from self._messages(state)
        if any(worker.alive for worker in state.workers):
            for i, batch in enumerate(state.ledger):
                if batch.active:
                    yield from self._reconcile(state, i)
        yield from self._broker(state)

    def _client(self, state: State) -> Iterator[Step]:
        if state.client == "new":
            yield "reserve", "", state._replace(client="reserved", ledger=self.plain.reserve(state.ledger)[0])
        if state.client == "reserved":
            ledger, _ = self.plain.activate(state.ledger, self.scope.total, self.scope.points)
            yield "activate", "", state._replace(client="away", ledger=ledger)
        if state.client != "away":
            yield "client dies", "client", state._replace(client="away")
        if state.ledger[SWEEP].state == "submitting":
            kind = "" if state.client == "away" else "client"
            yield "submission expires", kind, state._replace(ledger=self.plain.remove(state.ledger, SWEEP))

    def _user(self, state: State) -> Iterator[Step]:
        for i, batch in enumerate(state.ledger):
            if batch.state in OPEN and (i == SWEEP or state.ledger[SWEEP].state == "cancelled"):
                for wanted in ("paused", "running", "cancelled") if i == SWEEP else ("cancelled",):
                    if wanted != batch.state:
                        ledger, _ = self.plain.turn(state.ledger, i, wanted)
                        yield f"{i} is {wanted}", "user", state._replace(ledger=ledger)
        if state.ledger[SWEEP].state in ENDED:
            last = max(i for i, batch in enumerate(state.ledger) if batch.state)  # the fetch goes first
            yield f"{last} is removed", "user", state._replace(ledger=self.plain.remove(state.ledger, last))

    def _worker(self, state: State, w: int) -> Iterator[Step]:
        worker, name = state.workers[w], NAMES[w]
        if worker.alive:
            yield f"{name} dies", "kill", self._kill(state, w)
            if not worker.heard:
                yield f"{name} is heard", "", state.worker(w, worker._replace(heard=True))
        else:
            colleagues = (other for v, other in enumerate(state.workers) if self._queue(v) == self._queue(w))
            kind = "restart" if any(other.alive for other in colleagues) else ""
            yield f"{name} is started", kind, state.worker(w, worker._replace(alive=True))
        if worker.heard:
            yield (
                f"{name} is not heard",
                "silence" if worker.alive else "",
                state.worker(w, worker._replace(heard=False)),
            )

    def _child(self, state: State, w: int, child: int) -> Iterator[Step]:
        hand, me = state.workers[w].hands[child], _me(w, child)
        if hand is None:
            for i, start in state.queue:
                if i == self._queue(w):
                    yield f"{me} takes {i}:{start}", "", self._take(state, w, child, start)
            return
        poison = self.scope.poison if hand.i == SWEEP and hand.what == "run" else -1
        if hand.start <= poison < hand.stop:
            yield f"{me} runs the poison and dies", "", self._poisoned(state, w, child, hand)
        last = poison if hand.start <= poison < hand.stop else hand.stop
        for done_stop in range(hand.start + 1, last + 1):
            for protocol in self.protocols:
                to = self._commit(protocol, state, hand, done_stop)
                yield f"{me} commits {hand.i}:{hand.start}-{done_stop}", "", self._idle(to, w, child)
        ledger, _ = self.plain.release(state.ledger, hand.i, hand.start, me)
        yield f"{me} hands back", "release", self._idle(state._replace(ledger=ledger), w, child)
        if hand.i == SWEEP:  # a fetch is done by a thread, which does not die alone
            yield f"{me} dies", "kill", self._kill_child(state, w, child, hand)

    def _messages(self, state: State) -> Iterator[Step]:
        for i, start in state.queue:
            yield f"message {i}:{start} is lost", "lose", state._replace(queue=state.queue - {(i, start)})
        for i, batch in enumerate(state.ledger):
            for start, _ in batch.chunks:
                if (i, start) not in state.queue:
                    yield f"message {i}:{start} comes again", "ghost", state.published(i, start)

    def _reconcile(self, state: State, i: int) -> Iterator[Step]:
        batch, heard = state.ledger[i], state.heard()
        yield from self._recover(state, i, "finds the dead", "", living=heard)
        for start, chunk in batch.chunks:
            if chunk.running:
                kind = "overdue" if state.is_done(i, start) else ""
                yield from self._recover(state, i, f"finds {i}:{start} overdue", kind, overdue=start)
            elif (i, start) not in state.queue:
                yield from self._recover(state, i, f"misses {i}:{start}", "", waited=start)
        for protocol in self.protocols:
            ledger, starts = protocol.top_up(state.ledger, i, 1, len(batch.chunks) + 1)
            if starts:
                yield f"{i} is topped up", "", state._replace(ledger=ledger).published(i, *starts)

    def _broker(self, state: State) -> Iterator[Step]:
        if self.scope.rollback and state.saved is None:
            yield "sync", "forget", state._replace(saved=state.ledger, age=0)
        if state.saved is not None and state.saved != state.ledger:
            yield "the broker falls back", "forget", state._replace(ledger=state.saved, saved=None, age=0)

    def _take(self, state: State, w: int, child: int, start: int) -> State:
        i, me = self._queue(w), _me(w, child)
        before = state.ledger[i].chunk(start)
        taken = before is not None and before.running and before.owner != me and state.is_done(i, start)
        ledger, begun = self.plain.begin(state.ledger, i, start, me)
        if begun.what == "owned" and i == SWEEP and begun.owner == f"{NAMES[w]}/-":
            ledger, begun = self.plain.begin(state.ledger, i, start, me, begun.owner)
        state = state._replace(ledger=ledger, queue=state.queue - {(i, start)})
        if begun.what not in ("run", "poison"):
            return state
        if taken:
            raise Broken(f"{me} was given {i}:{start}, which another child does")
        return state.holds(w, child, Hand(i, start, begun.stop, begun.what))

    def _commit(self, protocol: Protocol, state: State, hand: Hand, done_stop: int) -> State:
        ledger, following = protocol.commit(
            state.ledger, hand.i, hand.start, hand.stop, done_stop, failed=int(hand.what == "poison"), us=0, slots=1
        )
        state = state._replace(ledger=ledger)
        return state if following is None else state.published(hand.i, following)

    def _idle(self, state: State, w: int, child: int) -> State:
        """A thread's next delivery has another name; a process keeps its own."""
        state = state.holds(w, child, None)
        return state.buried(_me(w, child)) if self._queue(w) == FETCH else state

    def _kill_child(self, state: State, w: int, child: int, hand: Hand) -> State:
        """Its message is delivered again at once, and another child takes its place."""
        return state.holds(w, child, None).buried(_me(w, child)).published(hand.i, hand.start)

    def _kill(self, state: State, w: int) -> State:
        hands = state.workers[w].hands
        state = state.worker(w, Worker(False, state.workers[w].heard, (None,) * len(hands)))
        for child in range(len(hands)):
            state = state.buried(_me(w, child))
        return state

    def _poisoned(self, state: State, w: int, child: int, hand: Hand) -> State:
        return self._kill(state, w) if self.scope.kills_worker else self._kill_child(state, w, child, hand)

    def _recover(
        self, state: State, i: int, what: str, kind: str, *,
        living: frozenset[str] | None = None, overdue: int = -1, waited: int = -1,
    ) -> Iterator[Step]:  # fmt: skip
        ledger, starts = self.plain.recover(
            state.ledger, i, living=self.everyone if living is None else living,
            overdue=frozenset({overdue}), waited=frozenset({waited}), queued=state.queued(i),
        )  # fmt: skip
        if starts:
            yield f"the reconciler {what}", kind, state._replace(ledger=ledger).published(i, *starts)

    def _queue(self, w: int) -> int:
        return self.scope.workers[w][0]


def _me(w: int, child: int) -> str:
    return f"{NAMES[w]}/{child}"


def _always(n: int, _batch: Batch, _remaining: int, _slots: int) -> int:
    return n


@functools.cache
def _buried(ledger: Ledger, owner: str) -> Ledger:
    return tuple(
        batch._replace(
            chunks=tuple(
                (start, chunk._replace(owner=f"{owner[0]}/-") if chunk.owner == owner else chunk)
                for start, chunk in batch.chunks
            )
        )
        for batch in ledger
    )
