from __future__ import annotations

import math

import pytest

from runner.pulse import Health
from runner.store import Ledger


@pytest.fixture
def counted(ledger: Ledger) -> Ledger:
    ledger.beat("w@here", {"name": "w@here", "queues": ["fetch"], "concurrency": 8})
    ledger.server.hset("runner:health", mapping={"http_requests": 100, "http_requests_ok": 98, "tasks_ok": 10})
    ledger.server.hset("runner:health:w@here", mapping={"http_requests": 10, "http_requests_ok": 10})
    return ledger


def test_a_row_for_all_and_one_for_each_live_worker(counted: Ledger) -> None:
    frame = Health.of(counted).frame
    assert list(frame.index) == ["all", "w@here"]
    assert frame["http_requests"].to_dict() == {"all": 0.98, "w@here": 1.0}
    assert math.isnan(frame["tasks"]["w@here"])


def test_what_is_below_its_target_is_named(counted: Ledger) -> None:
    health = Health.of(counted)
    assert health.missed == ("http_requests",)
    assert not health.ok
    assert "below target: http_requests" in repr(health)
    assert health.targets == {"cache": 0.8, "http_requests": 0.99, "http_attempts": 0.99, "tasks": 0.99}


def test_a_deployment_that_has_done_nothing_misses_nothing(ledger: Ledger) -> None:
    health = Health.of(ledger)
    assert health.ok
    assert "every target is reached" in repr(health)
    assert health.queues["messages"].to_dict() == {"backtest": 0, "fetch": 0}
