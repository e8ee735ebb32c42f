"""How a worker leaves: finish what runs within a grace time, hand back what does not, sign off, end."""

from __future__ import annotations

import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import redis
from celery.worker import state

from runner.store import Ledger
from workers import chunks

logger = logging.getLogger(__name__)

# A chunk lasts about a second, a run may last minutes. Below the 30 s after which Docker (as compose.yaml sets it) and
# Kubernetes kill, with LEAVING_S to spare.
GRACE_S = 20.0
# Handing back and signing off take milliseconds; with the server away they are given up after this.
LEAVING_S = 5.0
POLL_S = 0.05
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Leaving:
    """Waits for the order to leave. The first one ends the taking of messages; a second one hands back at once.

    Celery's own warm shutdown knows no grace time, and waits seconds for its children to end. So its event loop goes
    on, acknowledging what ends, until nothing is under way; then the children are killed, and Celery ends.
    """

    def __init__(self, ledger: Ledger, name: str, *, grace_s: float, sign_off: Callable[[], None]) -> None:
        self._ledger = ledger
        self._name = name
        self._grace_s = grace_s
        self._sign_off = sign_off
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()  # its put may interrupt its put: signal handlers
        self._consumer: Any = None
        self._cancelled: Any = None

    def arm(self, consumer: Any) -> None:
        """From here on signals are heeded this way; called in the main thread when Celery's worker is ready."""
        self._consumer = consumer
        for name in SIGNALS:
            signal.signal(name, lambda *_: self._orders.put(None))
        threading.Thread(target=self._leave, name="leaving", daemon=True).start()

    def follow(self, pipe: int) -> None:
        """Leave at once when the other end of the pipe is closed: whoever kept this worker is gone."""

        def wait() -> None:
            while os.read(pipe, 1024):
                pass
            if self._consumer is None:
                os._exit(1)
            for _ in range(2):
                self._orders.put(None)

        threading.Thread(target=wait, name="following", daemon=True).start()

    def _leave(self) -> None:
        self._orders.get()
        logger.warning("told to stop: what runs has %g s to end, unless told again", self._grace_s)
        try:
            ends = time.monotonic() + self._grace_s
            while not self._idle() and time.monotonic() < ends and not self._hurried():
                pass
            _end_anyway()
            self._hand_back()
            self._sign_off()
        except Exception:
            logger.exception("could not leave in good order; what this worker had is found by the others")
        finally:
            _end_anyway()
            state.should_stop = os.EX_OK  # Celery ends the process; with its children gone that takes half a second

    def _hurried(self) -> bool:
        """Whether a further order comes within the next moment."""
        with suppress(queue.Empty):
            self._orders.get(timeout=POLL_S)
            return True
        return False

    def _idle(self) -> bool:
        """Whether no message is taken any more and all that were are done with; also after a reconnection."""
        consumer = self._consumer.task_consumer
        if consumer is not None and consumer is not self._cancelled:
            self._cancelled = consumer
            self._consumer.call_soon(self._stop_taking, consumer)
        return not state.requests and (consumer is None or consumer.channel.quiet)

    def _stop_taking(self, consumer: Any) -> None:
        consumer.cancel()
        if self._consumer.heart:
            self._consumer.heart = self._consumer.heart.stop()  # Flower shows it as offline

    def _hand_back(self) -> None:
        """End the children, then return their chunks: others have them within a second."""
        pool = self._consumer.pool
        pool.close()  # it starts no new child
        for pid in pool.info.get("processes", []):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running = list(self._running())
        for batch, start, owner in running:
            try:
                self._ledger.release(batch, start, owner)
            except redis.RedisError as error:
                logger.warning("could not hand back a chunk of %s; its owner's silence will tell: %s", batch, error)
        if running:
            logger.warning("%d chunks did not end in time and were handed back", len(running))

    def _running(self) -> Iterator[tuple[str, int, str]]:
        """Batch, first item and owner of what runs in threads of this process and in its children."""
        yield from ((batch, start, owner) for (batch, start), owner in list(chunks.under_way.items()))
        for request in list(state.requests.values()):
            batch, _, start = str(request.id).rpartition(":")
            if request.worker_pid and start.isdigit():
                yield batch, int(start), f"{self._name}/{request.worker_pid}"


def _end_anyway() -> None:
    """The process ends a few seconds from now, whatever hangs: a server that is away, a thread that fetches."""
    timer = threading.Timer(LEAVING_S, os._exit, (os.EX_OK,))
    timer.daemon = True
    timer.start()
