"""The search: every state that can be reached, what must hold in each, and whether every course of events ends."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from tests.faults.protocol_invariants import broken_in_ledger, broken_in_messages, held_up
from tests.faults.protocol_model import Ledger, Protocol
from tests.faults.protocol_sameness import Sameness
from tests.faults.protocol_system import Broken, Scope, State, System


class Report(NamedTuple):
    """What a search found: how many states and steps, what does not hold, and the shortest way there.

    ``deaths`` is the most that a course of events without faults has.
    """

    states: int
    steps: int
    broken: str = ""
    trace: tuple[str, ...] = ()
    deaths: int = 0


def search(scope: Scope, protocol: type[Protocol] = Protocol) -> Report:
    """Visit every state, until one is not as it must be."""
    system, same = System(scope, protocol), Sameness(scope)
    ledger_broken = functools.cache(functools.partial(broken_in_ledger, poison=scope.poison, no_other=not scope.faults))
    states = [system.first()]
    numbers = {states[0]: 0}
    came_from = [(-1, "")]
    natural: list[list[tuple[int, bool]]] = []
    steps = 0
    for at, state in enumerate(states):  # it grows meanwhile
        onward = []
        try:
            _check(system, ledger_broken, state)
            for label, fault, to in system.steps(state):
                steps += 1
                tidied = same.tidied(state, to)
                number = numbers.setdefault(tidied, len(states))
                if number == len(states):
                    states.append(tidied)
                    came_from.append((at, label))
                if not fault:
                    onward.append((number, label.endswith("dies")))
        except Broken as broken:
            return Report(len(states), steps, str(broken), _trace(came_from, at))
        natural.append(onward)
    wrong, at, deaths = _course(natural, lambda number: held_up(states[number].ledger))
    return Report(len(states), steps, wrong, _trace(came_from, at) if wrong else (), deaths)


def _check(system: System, ledger_broken: Callable[[Ledger], str], state: State) -> None:
    broken = ledger_broken(state.ledger)
    for i, batch in enumerate(state.ledger):
        done = frozenset(start for start, _ in batch.chunks if state.is_done(i, start))
        broken = broken or broken_in_messages(
            system.plain, state.ledger, i, heard=state.heard(), queued=state.queued(i), done=done
        )
    if broken:
        raise Broken(broken)


def _course(natural: list[list[tuple[int, bool]]], held_up: Callable[[int], bool]) -> tuple[str, int, int]:
    """Whether every course of natural steps ends, and ends well: (what is wrong, where, most deaths on one)."""
    into = [0] * len(natural)
    for onward in natural:
        for to, _ in onward:
            into[to] += 1
    ready = deque(at for at, count in enumerate(into) if not count)
    deaths = [0] * len(natural)
    for _ in range(len(natural)):
        if not ready:
            return "it can go on for ever", next(at for at, count in enumerate(into) if count), 0
        at = ready.popleft()
        if not natural[at] and held_up(at):
            return "it comes to a stop before its end", at, 0
        for to, dies in natural[at]:
            deaths[to] = max(deaths[to], deaths[at] + dies)
            into[to] -= 1
            if not into[to]:
                ready.append(to)
    return "", -1, max(deaths)


def _trace(came_from: list[tuple[int, str]], at: int) -> tuple[str, ...]:
    labels: list[str] = []
    while at > 0:
        at, label = came_from[at]
        labels.append(label)
    return tuple(reversed(labels))
