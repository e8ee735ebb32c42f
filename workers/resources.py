"""What a worker process holds open: one connection, one cache. Made lazily, in the process that uses it."""

from __future__ import annotations

import math
import os
import time
from functools import cached_property

from runner import settings, store
from runner.errors import SettingsError
from workers.objects import ObjectCache
from workers.tally import Tally

# Workers come and go in seconds; chunks end about once a second, and one in three of them may ask.
SLOTS_TTL_S = 3.0


class Resources:
    """One worker process's connections; never shared with a child."""

    def __init__(self, url: str, secret: str) -> None:
        self.url = url
        self.secret = secret
        self.cache = ObjectCache()  # decoded code, prices and batch messages
        self.tally = Tally()
        self.tally.watch(self.cache.stats)
        self._slots = 0
        self._slots_at = -math.inf

    @cached_property
    def ledger(self) -> store.Ledger:
        """The ledger on the deployment's server."""
        return store.Ledger(store.connect(self.url))

    def slots(self, queue: str) -> int:
        """How many chunks of the queue are done at once, all workers together; asked at most every SLOTS_TTL_S."""
        now = time.monotonic()
        if now - self._slots_at > SLOTS_TTL_S:
            self._slots, self._slots_at = self.ledger.slots(queue), now
        return self._slots


_opened: dict[int, Resources] = {}


def resources() -> Resources:
    """This process's resources; a forked child never sees its parent's."""
    mine = _opened.get(os.getpid())
    if mine is None:
        found = settings.load()
        if found.url is None or found.secret is None:
            raise SettingsError("a worker needs RUNNER_URL and RUNNER_SECRET in its environment.")
        mine = Resources(found.url.get_secret_value(), found.secret.get_secret_value())
        _opened.clear()
        _opened[os.getpid()] = mine
    return mine
