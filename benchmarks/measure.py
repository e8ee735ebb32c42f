"""What every benchmark needs: a real deployment of its own, repetition, a row of the table."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import runner
from runner.stack import LocalStack

WORKERS = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: what, how much, what was aimed at, and what it was made of."""

    claim: str
    figure: str
    target: str
    reached: bool
    made_of: str


@contextmanager
def deployment(*, fetch: bool = False) -> Iterator[runner.Client]:
    """Valkey and two worker processes that end with the block; no Flower, which would take a share of two cores."""
    with (
        tempfile.TemporaryDirectory() as home,
        LocalStack(workers=WORKERS, fetch=fetch, flower=False, home=home) as stack,
        runner.Client(stack.info.url, stack.info.secret) as client,
    ):
        yield client


def timed(call: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def spread(values: list[float]) -> str:
    """The middle and the two ends."""
    low, middle, high = min(values), sorted(values)[len(values) // 2], max(values)
    return f"{middle:,.2f} ({low:,.2f}-{high:,.2f})"


def median(values: list[float]) -> float:
    """The upper of the middle values."""
    return sorted(values)[len(values) // 2]


def machine() -> str:
    """Cores and load, to judge the noise by."""
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.2f} when the run began"
