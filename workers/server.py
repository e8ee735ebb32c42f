"""The Redis of the cache, on which nothing may depend: calls have a deadline, an outage is left alone for a while."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import redis.asyncio
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NotInTime

T = TypeVar("T")

logger = logging.getLogger(__name__)

# A call moves at most a megabyte, so a link of 4 Mbit/s still makes it; the client's own retries count against it.
DEADLINE_S = 2.0
# After an outage one call tries again this often, and the others do without at once.
PAUSE_S = 3.0
# Long enough for a task to give its lock back before it is cancelled once more.
CANCEL_AGAIN_S = 1.0


class ServerAway(Exception):
    """The server did not do it: there is none, it is down, slow, full, or it refuses. No user ever sees it."""


class Server:
    """A redis.asyncio client whose every failure is ServerAway.

    Args:
        client: answers bytes, and belongs to the loop that makes the calls; None when there is no server.

    Attributes:
        errors: calls that failed so far; those that were not tried during a pause are not among them.
    """

    def __init__(self, client: redis.asyncio.Redis | None) -> None:
        self.client = client
        self.errors = 0
        self._away_until = 0.0
        self._down = False

    async def ask(self, call: Callable[[redis.asyncio.Redis], Awaitable[T]]) -> T:
        """What ``call(client)`` answers within DEADLINE_S.

        Raises:
            ServerAway: no answer, an error instead of one, or it is not being tried at the moment.
        """
        now = time.monotonic()
        if self.client is None or now < self._away_until:
            raise ServerAway
        if self._down:  # this call is the probe: the others need not wait for it
            self._away_until = now + DEADLINE_S
        cancels = _cancels()
        try:
            async with asyncio.timeout(DEADLINE_S):
                answer = await call(self.client)
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            raise ServerAway from error
        finally:
            # redis-py awaits through asyncio.wait_for, which before Python 3.12 may lose a cancellation (gh-81839).
            if _cancels() > cancels:
                raise asyncio.CancelledError
        if self._down:
            self._down, self._away_until = False, 0.0
            logger.warning("the cache's server answers again")
        return answer

    def _failed(self, error: Exception) -> None:
        self.errors += 1
        if not isinstance(error, (NotConnected, NotInTime, OSError, TimeoutError)):
            logger.warning(
                "the cache's server refused a call: %s", error
            )  # full, or not allowed: the next one may work
            return
        self._away_until = time.monotonic() + PAUSE_S
        if not self._down:
            self._down = True
            logger.warning("the cache's server is away (%r): doing without, slower", error)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task of ours until it has ended: once is not enough, its Redis calls may lose a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=CANCEL_AGAIN_S)


def _cancels() -> int:
    """How often this task was cancelled, time-outs apart."""
    task = asyncio.current_task()
    return task.cancelling() if task else 0
