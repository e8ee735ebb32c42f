"""Messages that were refused: counted, and the newest kept for people to look at. No process ever runs one."""

from __future__ import annotations

import json
import logging
import math
import time
from typing import Any

import redis

from runner.store import Ledger

logger = logging.getLogger(__name__)

# Owned here: a list of JSON, newest first. The counts by reason are the ledger's.
KEY = "runner:refused"
# Enough to see what is going on; 100 of 4 kB are nothing to the server, however many are refused.
KEPT = 100
SHOWN_CHARS = 4096
# A flood of messages must not become a flood of lines in the log.
LOG_EVERY_S = 10.0


class Quarantine:
    """Where one worker process puts what it refuses.

    Args:
        ledger: of the deployment.
        worker: who refuses.
    """

    def __init__(self, ledger: Ledger, worker: str) -> None:
        self._ledger = ledger
        self._worker = worker
        self._said_at = -math.inf
        self._unsaid = 0

    def put(self, reason: str, raw: bytes, *, queue: str, words: str) -> None:
        """Count a message and keep it aside; a server that is away or full loses the copy, not the refusal."""
        self._say(reason, queue, words)
        entry = {
            "at_ms": round(time.time() * 1000),
            "reason": reason,
            "words": words[:SHOWN_CHARS],
            "queue": queue,
            "worker": self._worker,
            "size_bytes": len(raw),
            "message": raw[:SHOWN_CHARS].decode("ascii", "backslashreplace")[:SHOWN_CHARS],
        }
        try:
            self._ledger.reject(reason)
            with self._ledger.server.pipeline(transaction=True) as pipe:
                pipe.lpush(KEY, json.dumps(entry))
                pipe.ltrim(KEY, 0, KEPT - 1)
                pipe.execute()
        except (redis.RedisError, OSError) as error:
            logger.warning("a refused message was not kept: %s", error)

    def _say(self, reason: str, queue: str, words: str) -> None:
        self._unsaid += 1
        now = time.monotonic()
        if now - self._said_at >= LOG_EVERY_S:
            logger.warning(
                "refused %d messages; the last, on %s, as %s: %s (a copy is in the list %s)",
                self._unsaid, queue, reason, words, KEY,
            )  # fmt: skip
            self._said_at, self._unsaid = now, 0


def refused(ledger: Ledger) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """How many messages were refused by reason, since the server was set up, and the newest of them, newest first."""
    counts = {name.decode(): int(count) for name, count in ledger.server.hgetall("runner:rejected").items()}
    return counts, [json.loads(text) for text in ledger.server.lrange(KEY, 0, KEPT - 1)]
