"""The Celery application: names of tasks and queues, and the broker settings that keep jobs safe on Redis."""

from __future__ import annotations

import logging
import time
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.exceptions import OperationalError

from runner import settings, transport
from runner.errors import SettingsError
from runner.signing import seal

logger = logging.getLogger(__name__)

QUEUE_BACKTEST = "backtest"
QUEUE_FETCH = "fetch"
QUEUES = (QUEUE_BACKTEST, QUEUE_FETCH)

RUN_CHUNK = "tasks.backtest.run_chunk"
FETCH_CHUNK = "tasks.fetch.fetch_chunk"
TASKS = {QUEUE_BACKTEST: RUN_CHUNK, QUEUE_FETCH: FETCH_CHUNK}
# Of a chunk's items, in Flower's list of tasks.
ITEMS = {QUEUE_BACKTEST: "run", QUEUE_FETCH: "symbol"}

# Redis has no priorities; kombu keeps one list a step and pops the lowest number first.
PRIORITIES = {"high": 0, "normal": 3, "low": 6}
PRIORITY_STEPS = sorted(PRIORITIES.values())

# Each timeout's reason and measurement: docs/decisions.md, "Broker settings".
TRANSPORT_OPTIONS: dict[str, Any] = {
    "visibility_timeout": 30,
    "unacked_restore_interval": 5,
    "unacked_restore_throttle": 1,
    "unacked_mutex_expire": 10,
    "socket_timeout": 5,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 5,
    "priority_steps": PRIORITY_STEPS,
    "queue_order_strategy": "priority",
    "sep": ":",
}

# A failed publish is harmless, since the reconciler finds the chunk; so retry for seconds only.
PUBLISH_RETRY = {"max_retries": 5, "interval_start": 0.1, "interval_step": 0.3, "interval_max": 1.0}


def make_app(url: str) -> Celery:
    """An application bound to one server. Importing or making it connects to nothing.

    Raises:
        VersionMismatch: the kombu that is installed is not the one that recovery was written for.
    """
    transport.check_version()
    app = Celery("runner", amqp="runner.transport:AMQP", set_as_current=False)
    app.conf.update(
        **transport.broker_settings(url),
        task_acks_late=True,
        task_reject_on_worker_lost=True,  # a killed child's chunk is redelivered at once
        worker_prefetch_multiplier=1,
        # With one Redis for everything it acknowledges interrupted jobs as revoked: measured, 4 of 4 lost.
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_transport_options=TRANSPORT_OPTIONS,
        visibility_timeout=TRANSPORT_OPTIONS["visibility_timeout"],
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A server that is full, read-only or out of disk answers with an error: the main process connects again.
        broker_channel_error_retry=True,
        task_ignore_result=True,  # outcomes are in the ledger; there is no result backend
        task_serializer="json",
        accept_content=["json"],
        task_queues=[Queue(name) for name in QUEUES],
        task_default_queue=QUEUE_BACKTEST,
        task_create_missing_queues=False,
        task_publish_retry_policy=PUBLISH_RETRY,
        task_send_sent_event=True,
        worker_send_task_events=True,
        task_track_started=True,
        worker_pool_start_method="spawn",
        worker_proc_alive_timeout=60,  # a spawned child imports numpy and numba before it says it is up
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,  # Flower shows pool and queues through it
        broker_heartbeat=0,
    )
    return app


def publish_chunk(app: Celery, secret: str, batch: str, start: int, *, queue: str, priority: str) -> None:
    """Say to the workers: look at the ledger, this chunk is yours. Its id names the chunk, the same each time.

    One that cannot be sent is not an error but a warning: the reconciler finds the chunk without a message.
    """
    task, task_id = TASKS[queue], f"{batch}:{start}"
    envelope = seal(secret, task=task, task_id=task_id, now_s=time.time(), body={"batch": batch, "start": start})
    try:
        app.send_task(
            task,
            args=[envelope],
            task_id=task_id,
            queue=queue,
            priority=PRIORITIES[priority],
            argsrepr=f"({batch}, from {ITEMS[queue]} {start:,})",
            ignore_result=True,
        )
    except OperationalError as error:
        logger.warning("%s: no message for chunk %d, the workers send it again within seconds: %s", batch, start, error)


def queue_keys(queue: str) -> list[str]:
    """The Redis lists behind one queue, one a priority step; the first step's list bears the plain name."""
    return [queue if step == 0 else f"{queue}{TRANSPORT_OPTIONS['sep']}{step}" for step in PRIORITY_STEPS]


def __getattr__(name: str) -> Any:
    """``runner.app:app``, the application of this process's RUNNER_URL, for Celery's and Flower's own commands."""
    if name != "app":
        raise AttributeError(f"module 'runner.app' has no attribute {name!r}")
    url = settings.load().url
    if url is None:
        raise SettingsError("RUNNER_URL is not set: expected redis://:PASSWORD@HOST:PORT/0.")
    return make_app(url.get_secret_value())
