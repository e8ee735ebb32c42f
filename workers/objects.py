"""What the children of the backtest queue keep decoded: code, prices, batch messages, all named by their content."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

from workers.local_cache import LIMIT_BYTES, LocalCache

T = TypeVar("T")


class ObjectCache:
    """``get`` looks in memory, then calls ``fetch`` for the bytes and ``decode`` for the object, and keeps it.

    Keys are content addresses, so an entry is never stale and needs no expiry.
    """

    def __init__(self, limit_bytes: int = LIMIT_BYTES) -> None:
        self._objects: LocalCache[Any] = LocalCache(limit_bytes)

    def get(self, key: str, fetch: Callable[[], bytes | None], decode: Callable[[bytes], T]) -> T | None:
        """The object of ``key``, or None when the server has no such bytes.

        An object whose bytes are more than the whole cache is decoded and returned, but not kept.
        """
        kept = self._objects.get(key)
        if kept is not None:
            return cast("T", kept)
        blob = fetch()
        if blob is None:
            return None
        value = decode(blob)
        self._objects.put(key, value, len(blob))
        return value

    def stats(self) -> dict[str, int]:
        """Requests that memory answered, and those that it could not."""
        return {"objects_hits": self._objects.hits, "objects_misses": self._objects.misses}
