"""The one task of the backtest queue."""

from __future__ import annotations

import time
from typing import Any

from celery import Task, shared_task, signals
from celery.utils.log import get_task_logger

from runner.app import RUN_CHUNK, publish_chunk
from runner.errors import SignatureError
from runner.signing import unseal
from workers import chunks
from workers.resources import resources

logger = get_task_logger(__name__)


@signals.worker_process_init.connect
def warm_up(**_: Any) -> None:
    """A child is ready only when it is fast."""
    chunks.warm_up()


@shared_task(name=RUN_CHUNK, bind=True)
def run_chunk(self: Task, envelope: Any) -> None:
    """Run the chunk that a signed message points at, and publish the message of the chunk after it."""
    held = resources()
    try:
        body = unseal(held.secret, envelope, task=self.name, task_id=self.request.id, now_s=time.time())
    except SignatureError as error:
        logger.warning("refused a message: %s", error)
        held.ledger.reject("signature")
        return
    following = chunks.run_chunk(held, body["batch"], body["start"], self.request.hostname)
    if following is not None:
        publish_chunk(self.app, held.secret, body["batch"], following.start, following.priority)
