"""What the counters of a deployment say: shares of what went well, each against its target."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

Counts = Mapping[str, int]

# The targets that the project was asked for: more than 80 % cache hits, 99 % of HTTP requests and of tasks successful.
CACHE_TARGET, HTTP_TARGET, TASK_TARGET = 0.80, 0.99, 0.99


@dataclass(frozen=True, slots=True)
class Share:
    """So many of so many.

    Attributes:
        name: of what.
        good: how many went well.
        total: of how many.
        target: the share that is to be exceeded; None where there is none.
    """

    name: str
    good: int
    total: int
    target: float | None

    @property
    def value(self) -> float:
        """From 0 to 1; NaN of nothing."""
        return self.good / self.total if self.total else math.nan

    @property
    def reached(self) -> bool | None:
        """Whether the target is reached; None without a target, or while nothing was counted."""
        return None if self.target is None or not self.total else self.value >= self.target


def shares(counts: Counts) -> list[Share]:
    """Of the market data cache by tier and in all, of HTTP by request and by attempt, and of tasks.

    ``cache_l1`` are hits in the process's own memory among all questions, ``cache_l2`` those on the server among the
    rest; ``cache`` is every question that needed no call to a provider. A request is one question to the HTTP client,
    whatever it took; an attempt is one time on the wire. A task is lost when the process that did it was.
    """
    asked = questions(counts)
    l1, tasks = counts.get("cache_l1_hits", 0), counts.get("tasks_ok", 0)
    all_tasks = tasks + counts.get("tasks_failed", 0) + counts.get("tasks_lost", 0)
    return [
        Share("cache", calls_saved(counts), asked, CACHE_TARGET),
        Share("cache_l1", l1, asked, None),
        Share("cache_l2", counts.get("cache_l2_hits", 0), asked - l1, None),
        Share("http_requests", counts.get("http_requests_ok", 0), counts.get("http_requests", 0), HTTP_TARGET),
        Share("http_attempts", counts.get("http_attempts_ok", 0), counts.get("http_attempts", 0), HTTP_TARGET),
        Share("tasks", tasks, all_tasks, TASK_TARGET),
    ]


def questions(counts: Counts) -> int:
    """How often the market data cache was asked."""
    return counts.get("cache_requests", 0)


def calls_saved(counts: Counts) -> int:
    """Questions that a cache, or another's load of the same key, answered instead of a provider."""
    return max(0, questions(counts) - counts.get("cache_loads", 0))  # early refreshes are loads without a question
