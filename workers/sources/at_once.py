"""At most so many calls at once in this process, for providers that count calls under way and not calls a minute."""

from __future__ import annotations

import asyncio
from weakref import WeakKeyDictionary


class AtOnce:
    """So many slots on every event loop that asks; a worker process has one."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    def slot(self) -> asyncio.Semaphore:
        """``async with at_once.slot():`` waits for a free one. Called on the loop that waits."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            self._by_loop[loop] = asyncio.Semaphore(self._slots)
        return self._by_loop[loop]
