"""Heartbeat and reconciler: what every worker's main process does beside consuming messages."""

from __future__ import annotations

import logging
import math
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import redis
from celery import Celery

from runner import __version__
from runner.app import PRIORITIES, QUEUES, publish_chunk
from runner.errors import SweepNotFound
from runner.store import DEAD_AFTER_S, HEARTBEAT_S, Ledger
from runner.strategy import PYTHON

logger = logging.getLogger(__name__)

LOCK = "runner:reconciler"
# Longer than a reconciler's round trip to a busy server; a reconciler killed in the act holds the others up this long.
LOCK_S = 5.0
# Two heartbeats missed and half a third: one late by a busy machine is no outage.
SILENCE_S = 2.5 * HEARTBEAT_S
# The priority that is popped before any other.
FIRST = min(PRIORITIES, key=lambda name: PRIORITIES[name])
# Batches live for days: looking once a minute for those whose retention has ended is plenty.
JANITOR_EVERY_S = 60.0


class Steward:
    """Two threads: one says "alive" every second, one returns to the queue what was lost, when it holds the lock.

    They are two because a reconciler may wait for the server, and who falls silent is taken for dead.
    """

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
        self._threads = [
            threading.Thread(target=self._repeat, args=(step,), name=name, daemon=True)
            for name, step in (("heartbeat", self._beat), ("reconciler", self._reconcile_if_sure))
        ]
        self._beaten_at = -math.inf
        self._sure_at = -math.inf
        self._janitor_at = 0.0

    def start(self) -> None:
        """Begin; returns after the first heartbeat, so that a worker that is ready is seen."""
        self._attempt(self._bury)
        self._attempt(self._beat)
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End, and tell the others; a second call does nothing."""
        if self._stopping.is_set():
            return
        self._stopping.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=2 * HEARTBEAT_S)
        self._attempt(lambda: self._ledger.leave(self._name))

    def _repeat(self, step: Callable[[], None]) -> None:
        while not self._stopping.wait(HEARTBEAT_S):
            self._attempt(step)

    def _attempt(self, step: Callable[[], None]) -> None:
        """The server may be away and Celery's connection with it; this worker stays, and tries again."""
        try:
            step()
        except (redis.RedisError, OSError) as error:
            logger.warning("the server could not be told or asked: %s", error)
        except Exception:
            logger.exception("a fault of ours; heartbeat and reconciler go on")

    def _bury(self) -> None:
        """An earlier process of this name was killed: what it had is lost, not in the hands of a living worker."""
        self._ledger.leave(self._name)
        self._tend_all()

    def _beat(self) -> None:
        """Only children that are warm count: a worker that is starting has none."""
        self._ledger.beat(self._name, {**self._info, "concurrency": self._slots()})
        now = time.monotonic()
        if now - self._beaten_at > SILENCE_S and self._beaten_at > 0:
            # The server was away, or this process slept: the others' heartbeats are as old as ours was.
            self._sure_at = now + DEAD_AFTER_S
        self._beaten_at = now

    def _reconcile_if_sure(self) -> None:
        """Take nobody for dead in the first seconds after an outage."""
        now = time.monotonic()
        if now - self._beaten_at < SILENCE_S and now >= self._sure_at:
            self._reconcile()

    def _reconcile(self) -> None:
        token = secrets.token_hex(8)
        server = self._ledger.server
        if not server.set(LOCK, token, nx=True, px=round(LOCK_S * 1000)):
            return
        try:
            self._tend_all()
            self._clean()
        finally:
            server.register_script(_UNLOCK)(keys=[LOCK], args=[token])

    def _tend_all(self) -> None:
        slots = {queue: self._ledger.slots(queue) for queue in QUEUES}
        for batch in self._ledger.active():
            self._attempt(partial(self._tend, batch, slots))  # one that is damaged must not keep the others waiting

    def _tend(self, batch: str, slots: Mapping[str, int]) -> None:
        try:
            queue, priority = self._ledger.route(batch)
            lost = self._ledger.recover(batch)
            if lost:
                logger.warning("%s: %d chunks lost their worker or their message; published again", batch, len(lost))
            fresh = self._ledger.top_up(batch, slots[queue])
        except SweepNotFound:
            return  # removed since it was listed
        # What was lost has waited before: it goes ahead of the window, which may be seconds long.
        for starts, urgency in ((lost, FIRST), (fresh, priority)):
            for start in starts:
                publish_chunk(self._app, self._secret, batch, start, queue=queue, priority=urgency)

    def _clean(self) -> None:
        if time.monotonic() >= self._janitor_at:
            self._janitor_at = time.monotonic() + JANITOR_EVERY_S
            for batch in self._ledger.sweep_out():
                logger.info("%s: removed, its retention has ended", batch)


_UNLOCK = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
