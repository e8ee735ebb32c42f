"""HMAC-SHA256 over everything that could make a worker run something: task messages, batches and code.

A secret is one key, or several with commas between them: the first signs, all of them verify. So a secret is replaced
without a stop: give every process ``old,new``, then every process ``new,old``, then every process ``new``.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from runner.errors import SignatureError

# A message waits in the queue at most as long as its sweep; the reconciler signs anew what it publishes again.
MESSAGE_LIFETIME_S = 7 * 24 * 3600
FIELDS = frozenset({"v", "kid", "task", "id", "exp", "body", "mac"})
# Between keys; no base64, hexadecimal or URL-safe secret has one.
SEPARATOR = ","
# Names a key among a handful: 32 bits.
KEY_ID_CHARS = 8
MAC_CHARS = 64


class Refused(SignatureError):
    """A message or code that is not ours.

    Attributes:
        reason: one word to count it under: malformed, foreign-key, altered, misplaced or expired.
    """

    def __init__(self, reason: str, words: str) -> None:
        super().__init__(words)
        self.reason = reason


def keys(secret: str) -> list[str]:
    """The keys of a secret, the one that signs first."""
    return [key.strip() for key in secret.split(SEPARATOR)]


def mac(key: str, purpose: str, *parts: bytes) -> str:
    """Hex HMAC-SHA256 of ``parts`` (each length-prefixed, so that no two lists collide) for one purpose.

    The purpose separates the uses of one key: a code signature is no valid message signature.
    """
    digest = hmac.new(key.encode(), purpose.encode() + b"\0", hashlib.sha256)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def derive(secret: str, purpose: str) -> str:
    """A password for one purpose, from which the secret cannot be computed. Of several keys, of the one that signs."""
    return mac(keys(secret)[0], f"derive:{purpose}")[:40]


def fingerprints(secret: str) -> list[str]:
    """What may be known of each key, the one that signs first: two processes with one in common understand each other.

    Returns:
        40 hexadecimal digits for each key.
    """
    return [derive(key, "fingerprint") for key in keys(secret)]


def seal(secret: str, *, task: str, task_id: str, now_s: float, body: Mapping[str, Any]) -> dict[str, Any]:
    """The one argument of a task: ``body`` bound by signature to the task's name, its id and an expiry.

    A task's name stands for its queue too: each queue has one.
    """
    kid, key = _signing_key(secret)
    envelope = {"v": 2, "kid": kid, "task": task, "id": task_id, "exp": int(now_s) + MESSAGE_LIFETIME_S}
    envelope["body"] = dict(body)
    return {**envelope, "mac": mac(key, "message", _canonical(envelope))}


def unseal(secret: str, envelope: Any, *, task: str, task_id: str, now_s: float) -> dict[str, Any]:
    """The body of a message that is ours, for this task and this id, and not expired; Refused otherwise."""
    if not isinstance(envelope, dict) or envelope.keys() != FIELDS:
        raise Refused("malformed", "the message is not one of ours: its fields are wrong.")
    key = _known(secret, envelope["kid"], "the message")
    try:
        signed = _canonical({name: value for name, value in envelope.items() if name != "mac"})
    except (ValueError, TypeError, RecursionError):
        raise Refused("malformed", "the message is not one of ours: it is no plain JSON.") from None
    if not _same(envelope["mac"], mac(key, "message", signed)):
        raise Refused("altered", "the message's signature is not valid: it was changed on its way, or never ours.")
    if envelope["task"] != task or envelope["id"] != task_id:
        words = f"the message was signed for {envelope['task']} {envelope['id']}, not {task} {task_id}."
        raise Refused("misplaced", words)
    if now_s > envelope["exp"]:
        raise Refused("expired", "the message has expired.")
    body: dict[str, Any] = envelope["body"]
    return body


def sign_code(secret: str, payload: bytes) -> bytes:
    """``payload`` with the key's id (8 hex digits) and its signature (64) in front."""
    return _sign(secret, "code", payload)


def verify_code(secret: str, signed: bytes) -> bytes:
    """The payload, after its signature was found to be ours; Refused otherwise."""
    return _verify(secret, "code", signed, "code in the store")


def sign_spec(secret: str, batch: str, spec: str) -> str:
    """What a batch is to do, bound to its name: whoever can write to the server alone cannot have other work done."""
    return _sign(secret, "spec", spec.encode(), batch.encode()).decode()


def verify_spec(secret: str, batch: str, signed: bytes) -> bytes:
    """The spec of a batch that somebody with the secret has submitted under this name; Refused otherwise."""
    return _verify(secret, "spec", signed, f"batch {batch!r}", batch.encode())


def _sign(secret: str, purpose: str, payload: bytes, *bound: bytes) -> bytes:
    kid, key = _signing_key(secret)
    return (kid + mac(key, purpose, payload, *bound)).encode() + payload


def _verify(secret: str, purpose: str, signed: bytes, what: str, *bound: bytes) -> bytes:
    head, payload = signed[: KEY_ID_CHARS + MAC_CHARS], signed[KEY_ID_CHARS + MAC_CHARS :]
    text = head.decode("ascii", "replace")
    key = _known(secret, text[:KEY_ID_CHARS], what)
    if not _same(text[KEY_ID_CHARS:], mac(key, purpose, payload, *bound)):
        raise Refused("altered", f"{what} is not as it was signed with RUNNER_SECRET: it was not loaded.")
    return payload


@functools.lru_cache(maxsize=8)  # of a deployment's one secret, asked for with every message
def _ring(secret: str) -> dict[str, str]:
    """Key id → key, the one that signs first."""
    return {mac(key, "key id")[:KEY_ID_CHARS]: key for key in keys(secret)}


def _signing_key(secret: str) -> tuple[str, str]:
    return next(iter(_ring(secret).items()))


def _known(secret: str, kid: Any, what: str) -> str:
    key = _ring(secret).get(kid) if isinstance(kid, str) else None
    if key is None:
        raise Refused(
            "foreign-key",
            f"{what} is not signed with this deployment's RUNNER_SECRET: client and worker need the same one.",
        )
    return key


def _same(claimed: Any, expected: str) -> bool:
    """In constant time. Lone surrogates, which JSON allows, are no text that can be encoded as it is."""
    return isinstance(claimed, str) and hmac.compare_digest(claimed.encode("utf-8", "replace"), expected.encode())


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
