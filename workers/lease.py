"""The lease: while a worker lives, the server hears every few seconds that its messages are still in hand."""

from __future__ import annotations

from typing import Any

from celery import bootsteps

# A sixth of the visibility timeout of 30 s: five renewals in a row may be late before a message is handed out twice.
RENEW_EVERY_S = 5.0


class Lease(bootsteps.StartStopStep):  # type: ignore[misc]  # Celery has no types
    """A step of Celery's consumer, which starts and stops it with every connection.

    It runs in the main process's event loop, which no backtest can hold up. A connection that has gone half-open is
    found by it too: the renewal that gets no answer ends the connection, and Celery makes another.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, consumer: Any, **options: Any) -> None:
        super().__init__(consumer, **options)
        self._timer: Any = None

    def start(self, consumer: Any) -> None:
        """Begin with a connection that has just been made."""
        qos = consumer.task_consumer.channel.qos
        self._timer = consumer.timer.call_repeatedly(RENEW_EVERY_S, qos.renew)

    def stop(self, _consumer: Any) -> None:
        """End with the connection."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
