"""What every task does first: open its signed message; and last: publish what comes after it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from celery import Task

from runner.app import publish_chunk
from runner.signing import Refused, unseal
from workers.chunks import Following
from workers.quarantine import Quarantine
from workers.resources import Resources, resources


def perform(task: Task, envelope: Any, run_chunk: Callable[[Resources, str, int, str], Sequence[Following]]) -> None:
    """Run the chunk that a signed message points at, and publish the messages of the chunks after it.

    The gate has checked the message in the main process. Here it is checked once more, so that no other way to call a
    task, now or to come, runs anything without a signature.
    """
    held, request = resources(), task.request
    try:
        body = unseal(held.secret, envelope, task=task.name, task_id=request.id, now_s=time.time())
    except Refused as refusal:
        quarantine = Quarantine(held.ledger, str(request.hostname))
        raw = json.dumps(envelope, default=repr).encode()
        quarantine.put(refusal.reason, raw, queue=str(request.delivery_info.get("routing_key")), words=str(refusal))
        return
    for chunk in run_chunk(held, body["batch"], body["start"], request.hostname):
        publish_chunk(task.app, held.secret, chunk.batch, chunk.start, queue=chunk.queue, priority=chunk.priority)
