"""The memory of one process: objects bounded by their bytes, each with a lifetime of its own."""

from __future__ import annotations

import math
import threading
from typing import Generic, TypeVar

from cachetools import TLRUCache

V = TypeVar("V")

# A child's share: 16 children with full caches take 4 GiB, and 256 MiB holds five years of one-minute bars.
LIMIT_BYTES = 256 * 2**20


class LocalCache(Generic[V]):
    """Keeps values, never None, until their lifetime is over or room is needed; the least recently used goes first.

    Safe to use from several threads: the lock is held for dictionary work only.

    Args:
        limit_bytes: of all values together, by the sizes given with them.

    Attributes:
        hits, misses: answers of `get` so far.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._items: TLRUCache[str, tuple[V, int, float]] = TLRUCache(limit_bytes, _expires, getsizeof=_size)
        self._lock = threading.Lock()
        self._limit_bytes = limit_bytes
        self.hits = 0
        self.misses = 0

    def get(self, key: str) -> V | None:
        """The value, or None when it is not here (any more)."""
        with self._lock:
            try:
                value = self._items[key][0]
            except KeyError:
                self.misses += 1
                return None
            self.hits += 1
            return value

    def put(self, key: str, value: V, size_bytes: int, lives_s: float = math.inf) -> None:
        """Keep a value in place of the one before; one that is larger than the whole cache is not kept."""
        with self._lock:
            if size_bytes > self._limit_bytes:
                self._items.pop(key, None)
            else:
                self._items[key] = (value, size_bytes, lives_s)


def _expires(_key: str, item: tuple[object, int, float], now: float) -> float:
    return now + item[2]


def _size(item: tuple[object, int, float]) -> int:
    return item[1]
