"""What this process has counted and the ledger has not been told yet."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping


class Tally:
    """Counts, its own and those of the components it watches; `take` hands out what is new since the last time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._watched: list[Callable[[], Mapping[str, int]]] = []
        self._told: Counter[str] = Counter()

    def add(self, name: str, by: int = 1) -> None:
        """One more, or ``by`` more, of it."""
        with self._lock:
            self._counts[name] += by

    def watch(self, stats: Callable[[], Mapping[str, int]]) -> None:
        """From now on count what a component counts: a mapping of numbers that only grow."""
        with self._lock:
            self._watched.append(stats)

    def take(self) -> dict[str, int]:
        """What has been counted since the last call, by name; what has not grown is left out."""
        with self._lock:
            now = Counter(self._counts)
            for stats in self._watched:
                now.update(stats())
            new = {name: count - self._told[name] for name, count in now.items() if count > self._told[name]}
            self._told = now
            return new
