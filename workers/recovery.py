"""Heartbeat and reconciler: what every worker's main process does beside consuming messages."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import redis
from celery import Celery

from runner import __version__
from runner.app import QUEUES, publish_chunk
from runner.errors import SweepNotFound
from runner.store import HEARTBEAT_S, Ledger
from runner.strategy import PYTHON

logger = logging.getLogger(__name__)

LOCK = "runner:reconciler"
# Longer than a reconciler's round trip to a busy server; a reconciler killed in the act holds the others up this long.
LOCK_S = 5.0
# Batches live for days: looking once a minute for those whose retention has ended is plenty.
JANITOR_EVERY_S = 60.0


class Steward:
    """A thread that says "alive" every second and, when it holds the lock, returns to the queue what was lost."""

    def __init__(
        self, app: Celery, ledger: Ledger, secret: str, *, name: str, queues: Sequence[str], slots: Callable[[], int]
    ) -> None:
        self._app = app
        self._ledger = ledger
        self._secret = secret
        self._name = name
        self._slots = slots
        self._info = {
            "name": name,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "queues": list(queues),
            "python": PYTHON,
            "version": __version__,
            "started_s": time.time(),
        }
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._live, name="steward", daemon=True)
        self._janitor_at = 0.0

    def start(self) -> None:
        """Begin; returns after the first heartbeat, so that a worker that is ready is seen."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End, and tell the others."""
        self._stopping.set()
        self._thread.join(timeout=2 * HEARTBEAT_S)
        try:
            self._ledger.leave(self._name)
        except redis.RedisError as error:
            logger.warning("could not sign off: %s", error)

    def _live(self) -> None:
        while not self._stopping.wait(HEARTBEAT_S):
            try:
                self._beat()
                self._reconcile()
            except (redis.RedisError, OSError) as error:  # the server is away; this worker stays
                logger.warning("no heartbeat: %s", error)

    def _beat(self) -> None:
        """Only children that are warm count: a worker that is starting has none."""
        self._ledger.beat(self._name, {**self._info, "concurrency": self._slots()})

    def _reconcile(self) -> None:
        token = secrets.token_hex(8)
        server = self._ledger.server
        if not server.set(LOCK, token, nx=True, px=round(LOCK_S * 1000)):
            return
        try:
            slots = {queue: self._ledger.slots(queue) for queue in QUEUES}
            for batch in self._ledger.active():
                self._tend(batch, slots)
            self._clean()
        finally:
            server.register_script(_UNLOCK)(keys=[LOCK], args=[token])

    def _tend(self, batch: str, slots: Mapping[str, int]) -> None:
        try:
            queue, priority = self._ledger.route(batch)
            lost = self._ledger.recover(batch)
            if lost:
                logger.warning("%s: %d chunks lost their worker or their message; published again", batch, len(lost))
            starts = [*lost, *self._ledger.top_up(batch, slots[queue])]
        except SweepNotFound:
            return  # removed since it was listed
        for start in starts:
            publish_chunk(self._app, self._secret, batch, start, queue=queue, priority=priority)

    def _clean(self) -> None:
        if time.monotonic() >= self._janitor_at:
            self._janitor_at = time.monotonic() + JANITOR_EVERY_S
            for batch in self._ledger.sweep_out():
                logger.info("%s: removed, its retention has ended", batch)


_UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
