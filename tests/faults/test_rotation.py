"""A secret is replaced while workers and notebooks go on, step by step as docs/security.md says."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

import pytest

import runner
from runner.errors import SecretMismatch
from runner.store import Ledger
from tests.support import Worker

OLD, NEW = "the-old-secret-of-the-tests", "the-new-secret-of-the-tests"
POINTS = runner.grid(n=range(2, 30))
PRICES = runner.sample_data("SP500")


def works(url: str, secret: str) -> bool:
    """Whether a sweep of a client with that secret comes back whole."""
    with runner.Client(url, secret) as client:
        sweep = client.sweep(lambda bars, n: bars.close > bars.sma(n), PRICES, POINTS)
        return not len(sweep.result(timeout=30, progress=False).errors)


def test_a_secret_is_replaced_without_a_stop(url: str, ledger: Ledger, start_worker: Callable[..., Worker]) -> None:
    first = start_worker(1, secret=f"{OLD},{NEW}")
    assert works(url, OLD)
    assert works(url, NEW)
    with runner.Client(url, OLD) as client:
        client.sweep(lambda bars, n: bars.close > bars.sma(n), PRICES, POINTS, name="of-old").result(progress=False)

    second = start_worker(1, secret=f"{NEW},{OLD}")  # while the first is still there, as in a rolling deploy
    assert works(url, OLD)
    assert works(url, NEW)
    stop(first)
    assert works(url, OLD)
    with runner.Client(url, f"{NEW},{OLD}") as client:
        assert len(client.attach("of-old").result(timeout=10, progress=False).frame) == len(POINTS)

    start_worker(1, secret=NEW)
    stop(second)
    assert works(url, NEW)
    with pytest.raises(SecretMismatch, match="RUNNER_SECRET"), closing(runner.Client(url, OLD)):
        pass
    assert not ledger.server.hgetall("runner:rejected")


def test_a_worker_of_another_secret_does_not_start_and_changes_nothing(
    url: str, ledger: Ledger, start_worker: Callable[..., Worker]
) -> None:
    start_worker(1, secret=OLD)
    with pytest.raises(SecretMismatch):
        ledger.check(url, NEW, verifies=True)
    with pytest.raises(SecretMismatch):
        ledger.check(url, f"{NEW},{OLD}")  # a client signs with the first, which no worker knows yet
    assert works(url, OLD)


def stop(worker: Worker) -> None:
    worker.process.terminate()
    worker.process.wait(timeout=30)
