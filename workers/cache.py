"""Two levels: decoded objects in this process (L1, bounded in bytes), their bytes on the server (L2)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast

from cachetools import LRUCache

T = TypeVar("T")

# A child's share: 16 children with full caches take 4 GiB, and 256 MiB holds five years of one-minute bars.
L1_BYTES = 256 * 2**20


class TieredCache:
    """``get`` looks in L1, then calls ``fetch`` for the bytes and ``decode`` for the object, and keeps it.

    Keys are content addresses, so an entry is never stale and needs no expiry.
    """

    def __init__(self, limit_bytes: int = L1_BYTES) -> None:
        self._entries: LRUCache[str, tuple[Any, int]] = LRUCache(limit_bytes, getsizeof=lambda entry: entry[1])
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def get(self, key: str, fetch: Callable[[], bytes | None], decode: Callable[[bytes], T]) -> T | None:
        """The object of ``key``, or None when the server has no such bytes.

        An object larger than the whole of L1 is decoded and returned, but not kept.
        """
        with self._lock:
            entry = self._entries.get(key)
        if entry is not None:
            self.hits += 1
            return cast("T", entry[0])
        self.misses += 1
        blob = fetch()
        if blob is None:
            return None
        value = decode(blob)
        if len(blob) <= self._entries.maxsize:
            with self._lock:
                self._entries[key] = (value, len(blob))
        return value
