"""Between the queue and Celery: what is not signed never reaches it, and what reaches it is made here.

Celery's and kombu's own handling of a message is no place for a hostile one: of 60 malformed messages 23 ended the
main process of Celery 5.7.0 (docs/security.md), one made it inflate 500 MB, and a header such as ``eta``, ``timelimit``
or ``compression`` works whatever was signed. So a message is checked while it is still bytes, and of a good one only
the signed envelope is taken: headers and properties are written anew.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
import uuid
from collections.abc import Mapping
from functools import partial
from typing import Any

import redis
from celery.worker.control import Panel
from kombu.transport.virtual import Empty

from runner import transport
from runner.app import ITEMS, PRIORITIES, QUEUES, TASKS, queue_keys
from runner.signing import Refused, unseal
from workers.quarantine import Quarantine
from workers.resources import resources

# Ours are 1.6 kB, of which a sweep's name is at most 80 bytes, four times.
MOST_BYTES = 8 * 1024
# Redis list → queue and priority.
LISTS = {
    key: (queue, priority)
    for queue in QUEUES
    for key, priority in zip(queue_keys(queue), sorted(PRIORITIES.values()), strict=True)
}
AMQP_PATH = "workers.gate:AMQP"
# What may be asked of a worker by broadcast, which needs no signature. Everything that stops, slows or re-routes
# a worker is left out: we do that by signals.
QUESTIONS = frozenset(
    {
        "active", "active_queues", "clock", "conf", "disable_events", "enable_events", "heartbeat", "hello", "ping",
        "query_task", "registered", "reserved", "revoked", "scheduled", "stats",
    }
)  # fmt: skip


def checked(secret: str, key: str, raw: bytes, now_s: float) -> bytes:
    """The message as Celery is to see it, made from the envelope in ``raw``; Refused when that is not ours.

    Args:
        secret: of the deployment.
        key: the Redis list that it was taken from.
        raw: as it was there.
        now_s: seconds since 1970.
    """
    if len(raw) > MOST_BYTES:
        raise Refused("oversized", f"a message of {len(raw):,} bytes: ours have at most {MOST_BYTES:,}.")
    queue, priority = LISTS[key]
    envelope, task, task_id = _opened(raw)
    body = unseal(secret, envelope, task=TASKS[queue], task_id=task_id, now_s=now_s)
    if task != TASKS[queue]:
        raise Refused("misplaced", f"the message was signed for {TASKS[queue]}, and says it is for another task.")
    return _message(envelope, queue, priority, f"({body['batch']}, from {ITEMS[queue]} {body['start']:,})")


def _opened(raw: bytes) -> tuple[Any, str, str]:
    """The signed part of a message, unchecked, and the task and id that it goes by."""
    try:
        message = json.loads(raw)
        (envelope,), _, _ = json.loads(base64.b64decode(message["body"], validate=True))
        return envelope, message["headers"]["task"], message["headers"]["id"]
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise Refused("malformed", f"no task message: {type(error).__name__}.") from None


def _message(envelope: Mapping[str, Any], queue: str, priority: int, shown: str) -> bytes:
    """What kombu finds in the queue for ``send_task(task, [envelope], task_id=id, queue=queue)``."""
    task, task_id = envelope["task"], envelope["id"]
    signatures = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return json.dumps(
        {
            "body": base64.b64encode(json.dumps([[envelope], {}, signatures]).encode()).decode(),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": {
                "lang": "py",
                "task": task,
                "id": task_id,
                "root_id": task_id,
                "argsrepr": shown,
                "kwargsrepr": "{}",
                "ignore_result": True,
            },
            "properties": {
                "correlation_id": task_id,
                "delivery_mode": 2,
                "delivery_info": {"exchange": "", "routing_key": queue},
                "priority": priority,
                "body_encoding": "base64",
                "delivery_tag": str(uuid.uuid4()),
            },
        }
    ).encode()


class Gate:
    """One process's check of what comes off the queues."""

    def __init__(self, secret: str, quarantine: Quarantine) -> None:
        self._secret = secret
        self._quarantine = quarantine

    def pass_on(self, key: bytes, raw: bytes) -> list[bytes] | None:
        """A popped list element as Celery is to see it, or None: then nothing was popped, as far as it knows."""
        name = key.decode()
        try:
            return [key, checked(self._secret, name, raw, time.time())]
        except Refused as refusal:
            self._quarantine.put(refusal.reason, raw, queue=LISTS[name][0], words=str(refusal))
            return None


class Client(redis.Redis):
    """kombu's client of a channel; it pops messages through the gate."""

    def __init__(self, *args: Any, gate: Gate, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gate = gate

    def parse_response(self, connection: Any, command_name: str | bytes, **options: Any) -> Any:
        """A server's answer. An empty one to BRPOP is what its time-out gives: kombu asks again."""
        answer = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]  # redis-py
        return self._gate.pass_on(*answer) if command_name == "BRPOP" and answer else answer


class Channel(transport.Channel):
    """A channel of a worker."""

    def _get_client(self) -> Any:
        held = resources()
        return partial(Client, gate=Gate(held.secret, Quarantine(held.ledger, f"{socket.gethostname()}/{os.getpid()}")))

    def _receive_one(self, client: Any) -> bool:
        """Whether a broadcast came. kombu bears one that is no JSON, and no JSON of another shape (measured: exit)."""
        try:
            return bool(super()._receive_one(client))  # type: ignore[no-untyped-call]  # kombu
        except (Empty, ValueError, TypeError, LookupError, AttributeError, RecursionError):
            return False


class Transport(transport.Transport):
    """The broker of a worker."""

    Channel = Channel


class Connection(transport.Connection):
    """A connection of a worker."""

    def get_transport_cls(self) -> type[Transport]:
        """With the gate."""
        return Transport


class AMQP(transport.AMQP):
    """What makes the connections of a worker's application; named by AMQP_PATH, as spawned children import it."""

    Connection = Connection


def only_questions() -> None:
    """Let broadcasts ask this worker how it does, and no more."""
    for name in set(Panel.data) - QUESTIONS:
        del Panel.data[name]
