"""Room: so much may be in memory at once in a process; who needs more waits for those who leave."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Room:
    """A semaphore by weight, first come, first served. Belongs to the event loop that uses it.

    Args:
        size: the weight that fits at once; a single user who needs more gets all of it, alone.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._free = size
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def taken(self, weight: int) -> AsyncIterator[None]:
        """Wait until there is room for ``weight``, and hold it while the block runs."""
        weight = min(max(weight, 1), self._size)
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((weight, turn))
        self._let_in()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # let in and cancelled at once
                self._leave(weight)
            else:
                self._waiting.remove((weight, turn))
                self._let_in()
            raise
        try:
            yield
        finally:
            self._leave(weight)

    def _leave(self, weight: int) -> None:
        self._free += weight
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._waiting[0][0] <= self._free:
            weight, turn = self._waiting.popleft()
            self._free -= weight
            turn.set_result(None)
