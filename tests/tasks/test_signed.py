from __future__ import annotations

import os
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from runner import signing
from runner.app import RUN_CHUNK, make_app
from runner.store import Ledger
from tasks.signed import perform
from tests.support import SECRET
from workers import resources
from workers.chunks import Following
from workers.quarantine import refused


class Performed:
    """One task's process: what it ran, and what it published."""

    def __init__(self, url: str) -> None:
        self.app = make_app(url)
        self.ran: list[tuple[str, int]] = []

    def perform(self, envelope: Any, task_id: str = "sweep:0") -> None:
        request = SimpleNamespace(id=task_id, hostname="w@host", delivery_info={"routing_key": "backtest"})
        task: Any = SimpleNamespace(name=RUN_CHUNK, request=request, app=self.app)

        def run_chunk(held: resources.Resources, batch: str, start: int, worker: str) -> list[Following]:
            self.ran.append((batch, start))
            return [Following(batch, start + 16, "backtest", "normal")]

        perform(task, envelope, run_chunk)


@pytest.fixture
def process(url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Performed]:
    monkeypatch.setattr(resources, "_opened", {os.getpid(): resources.Resources(url, SECRET)})
    process = Performed(url)
    yield process
    process.app.close()


def sealed(secret: str = SECRET) -> dict[str, Any]:
    body = {"batch": "sweep", "start": 0}
    return signing.seal(secret, task=RUN_CHUNK, task_id="sweep:0", now_s=time.time(), body=body)


def test_a_signed_message_is_done_and_the_next_one_published(process: Performed, ledger: Ledger) -> None:
    process.perform(sealed())
    assert process.ran == [("sweep", 0)]
    assert ledger.waiting("backtest") == 1
    assert refused(ledger) == ({}, [])


@pytest.mark.parametrize(
    ("envelope", "task_id", "reason"),
    [
        ({"batch": "sweep", "start": 0}, "sweep:0", "malformed"),
        (None, "sweep:0", "malformed"),
        (sealed("another-secret-altogether"), "sweep:0", "foreign-key"),
        ({**sealed(), "body": {"batch": "other", "start": 0}}, "sweep:0", "altered"),
        (sealed(), "sweep:16", "misplaced"),
    ],
)
def test_anything_else_is_not_done_but_counted_and_kept(
    process: Performed, ledger: Ledger, envelope: Any, task_id: str, reason: str
) -> None:
    process.perform(envelope, task_id)
    assert process.ran == []
    assert ledger.waiting("backtest") == 0
    counts, kept = refused(ledger)
    assert counts == {reason: 1}
    assert [entry["queue"] for entry in kept] == ["backtest"]
