"""HMAC-SHA256 over everything that could make a worker run something: task messages and code."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from runner.errors import SignatureError

# A message waits in the queue at most as long as its sweep; the reconciler signs anew what it publishes again.
MESSAGE_LIFETIME_S = 7 * 24 * 3600


def mac(secret: str, purpose: str, *parts: bytes) -> str:
    """Hex HMAC-SHA256 of ``parts`` (each length-prefixed, so that no two lists collide) for one purpose.

    The purpose separates the uses of the one secret: a code signature is no valid message signature.
    """
    digest = hmac.new(secret.encode(), purpose.encode() + b"\0", hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def derive(secret: str, purpose: str) -> str:
    """A password for one purpose, from which the secret cannot be computed."""
    return mac(secret, f"derive:{purpose}")[:40]


def seal(secret: str, *, task: str, task_id: str, now_s: float, body: Mapping[str, Any]) -> dict[str, Any]:
    """The one argument of a task: ``body`` bound by signature to the task's name, its id and an expiry."""
    envelope = {"v": 1, "task": task, "id": task_id, "exp": int(now_s) + MESSAGE_LIFETIME_S, "body": dict(body)}
    return {**envelope, "mac": mac(secret, "message", _canonical(envelope))}


def unseal(secret: str, envelope: Any, *, task: str, task_id: str, now_s: float) -> dict[str, Any]:
    """The body of a message that is ours, for this task and this id, and not expired; SignatureError otherwise."""
    if not isinstance(envelope, dict) or set(envelope) != {"v", "task", "id", "exp", "body", "mac"}:
        raise SignatureError("the message is not one of ours: its fields are wrong.")
    claimed = envelope["mac"]
    unsigned = {key: value for key, value in envelope.items() if key != "mac"}
    expected = mac(secret, "message", _canonical(unsigned))
    if not isinstance(claimed, str) or not hmac.compare_digest(claimed.encode(), expected.encode()):
        raise SignatureError("the message's signature is not valid: client and worker need the same RUNNER_SECRET.")
    if envelope["task"] != task or envelope["id"] != task_id:
        raise SignatureError(f"the message was signed for {envelope['task']} {envelope['id']}, not {task} {task_id}.")
    if now_s > envelope["exp"]:
        raise SignatureError("the message has expired.")
    body: dict[str, Any] = envelope["body"]
    return body


def sign_code(secret: str, payload: bytes) -> bytes:
    """``payload`` with its signature in front: 64 hex characters."""
    return mac(secret, "code", payload).encode() + payload


def verify_code(secret: str, signed: bytes) -> bytes:
    """The payload, after its signature was found to be ours; SignatureError otherwise."""
    claimed, payload = signed[:64], signed[64:]
    if not hmac.compare_digest(claimed, mac(secret, "code", payload).encode()):
        raise SignatureError("code in the store is not signed with this deployment's RUNNER_SECRET: it was not loaded.")
    return payload


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
