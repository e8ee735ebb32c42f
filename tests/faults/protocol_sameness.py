"""States that differ in nothing that matters are one: what keeps the search small."""

from __future__ import annotations

import functools

from tests.faults.protocol_model import Chunk, Ledger
from tests.faults.protocol_system import NAMES, Scope, State, Worker

# More deaths and losses than these make no difference to the ledger.
DEATHS, LOSSES = 2, 3


class Sameness:
    """Picks one of the states that are the same."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        self.names = NAMES[: len(scope.workers)]
        self._settled = functools.cache(self._settle)
        self._order = functools.cache(self._order_of)

    def tidied(self, before: State, after: State) -> State:
        """The state after a step from ``before``, without what makes no difference."""
        client, ledger, saved, age, queue, workers = after
        if ledger is not before.ledger:
            ledger, saved = self._settled(ledger), saved and self._settled(saved)
            if saved and ledger != before.ledger:
                saved, age = (saved, age + 1) if age < self.scope.rollback else (None, 0)
            # A message of a chunk that is no more does nothing; should there be such a chunk again, it may come again.
            queue = frozenset((i, start) for i, start in queue if ledger[i].chunk(start) is not None)
        elif workers is before.workers:
            return after
        # A heartbeat matters only to whoever owns a chunk: of the others the living are heard and the dead are not.
        owners = _owners(ledger) | (_owners(saved) if saved else frozenset())
        if any(
            worker.heard != worker.alive and name not in owners
            for name, worker in zip(self.names, workers, strict=True)
        ):
            workers = tuple(
                worker if name in owners else worker._replace(heard=worker.alive)
                for name, worker in zip(self.names, workers, strict=True)
            )
        state = State(client, ledger, saved, age, queue, workers)
        return state if workers is before.workers else self._sorted(state)

    def _sorted(self, state: State) -> State:
        """Two workers of a kind may change places."""
        order = self._order(state.workers)
        if order == self.names:
            return state
        return state._replace(
            ledger=_renamed(state.ledger, order),
            saved=state.saved and _renamed(state.saved, order),
            workers=tuple(state.workers[order.index(name)] for name in self.names),
        )

    def _order_of(self, workers: tuple[Worker, ...]) -> str:
        """The new name of each."""
        places = sorted(
            range(len(workers)),
            key=lambda w: (self.scope.workers[w], *workers[w][:2], [hand or () for hand in workers[w].hands]),
        )
        return "".join(self.names[places.index(w)] for w in range(len(workers)))

    def _settle(self, ledger: Ledger) -> Ledger:
        deaths, losses = (DEATHS, LOSSES) if self.scope.counting else (0, 0)

        def settled(chunk: Chunk) -> Chunk:
            owner = "" if chunk.owner.endswith("-") and not chunk.running else chunk.owner  # no one can say it is his
            return chunk._replace(owner=owner, deaths=min(chunk.deaths, deaths), losses=min(chunk.losses, losses))

        return tuple(
            batch._replace(chunks=tuple((start, settled(chunk)) for start, chunk in batch.chunks)) for batch in ledger
        )


@functools.cache
def _renamed(ledger: Ledger, names: str) -> Ledger:
    """Each worker's name, by its place in the alphabet, replaced by the one at that place in ``names``."""
    for i, batch in enumerate(ledger):
        chunks = tuple(
            (
                start,
                chunk._replace(owner=names[NAMES.index(chunk.owner[0])] + chunk.owner[1:]) if chunk.owner else chunk,
            )
            for start, chunk in batch.chunks
        )
        ledger = (*ledger[:i], batch._replace(chunks=chunks), *ledger[i + 1 :])
    return ledger


@functools.cache
def _owners(ledger: Ledger) -> frozenset[str]:
    return frozenset(chunk.owner[0] for batch in ledger for _, chunk in batch.chunks if chunk.owner)
