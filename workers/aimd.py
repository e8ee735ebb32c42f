"""How many requests one host gets at once: additive increase, multiplicative decrease, as TCP finds its window."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

# One at a time is right for a provider that allows five a minute; 100 is the connector's pool.
LEAST, MOST = 1.0, 100.0
# The lowest start with the full rate in benchmarks/http_client.py (16 slots, ideal 800 a second; 3,000 requests, start
# included): 750 from 1, 780 from 10, 795 from 20 to 64; from 100 the first burst overruns the server. Netflix's too.
START = 20.0
# A drop takes 30 %: TCP CUBIC's factor (RFC 9438, 4.6), which keeps a server's queue from running empty.
DECREASE = 0.7


def aimd(limit: float, *, dropped: bool, in_use: bool, most: float = MOST) -> float:
    """The next limit after one answer.

    Args:
        limit: requests at once so far, fractions included.
        dropped: the host could not cope (429, 503, no answer in time).
        in_use: as many requests were under way as the limit allows; else a success says nothing about a higher one.
        most: the ceiling.
    """
    if dropped:
        return max(LEAST, limit * DECREASE)
    return min(most, limit + 1.0 / limit) if in_use else limit


class Limiter:
    """At most ``limit`` requests at once, first come first served. Belongs to one event loop."""

    def __init__(self, start: float = START, most: float = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = min(start, most)
        self.under_way = 0
        self._most = most
        self.clock = clock
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._decreased_at = -1.0

    def try_acquire(self) -> bool:
        """Take a place if one is free and nobody waits for it."""
        if self.under_way >= int(self.limit) or self._waiting:
            return False
        self.under_way += 1
        return True

    async def acquire(self) -> None:
        """Take a place, when the turn has come."""
        if self.try_acquire():
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the place was ours already: on to the next
                self.under_way -= 1
            self._wake()
            raise

    def release(self, began: float = 0.0, *, dropped: bool | None = None) -> None:
        """Give the place back.

        Args:
            began: when the request went out, of the clock.
            dropped: how the host coped; None when nothing can be told (cancelled, connection refused).
        """
        if dropped:
            # Requests sent before the last decrease bring old news: one decrease a round trip.
            if began >= self._decreased_at:
                self.limit = aimd(self.limit, dropped=True, in_use=True, most=self._most)
                self._decreased_at = self.clock()
        elif dropped is False and self.under_way >= int(self.limit):
            self.limit = aimd(self.limit, dropped=False, in_use=True, most=self._most)
        self.under_way -= 1
        if self._waiting:
            self._wake()

    def _wake(self) -> None:
        while self._waiting and self.under_way < int(self.limit):
            turn = self._waiting.popleft()
            if not turn.done():
                self.under_way += 1
                turn.set_result(None)  # with the place
