"""What every task does first: open its signed message; and last: publish what comes after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import Task
from celery.utils.log import get_task_logger

from runner.app import publish_chunk
from runner.errors import SignatureError
from runner.signing import unseal
from workers.chunks import Following
from workers.resources import Resources, resources

logger = get_task_logger(__name__)


def perform(task: Task, envelope: Any, run_chunk: Callable[[Resources, str, int, str], Sequence[Following]]) -> None:
    """Run the chunk that a signed message points at, and publish the messages of the chunks after it."""
    held = resources()
    try:
        body = unseal(held.secret, envelope, task=task.name, task_id=task.request.id, now_s=time.time())
    except SignatureError as error:
        logger.warning("refused a message: %s", error)
        held.ledger.reject("signature")
        return
    for chunk in run_chunk(held, body["batch"], body["start"], task.request.hostname):
        publish_chunk(task.app, held.secret, chunk.batch, chunk.start, queue=chunk.queue, priority=chunk.priority)
