"""The one task of the backtest queue."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task, signals

from runner.app import RUN_CHUNK
from tasks.signed import perform
from workers import backtests


@signals.worker_process_init.connect
def warm_up(**_: Any) -> None:
    """A child is ready only when it is fast."""
    backtests.warm_up()


@shared_task(name=RUN_CHUNK, bind=True)
def run_chunk(self: Task, envelope: Any) -> None:
    """Run a chunk of a sweep."""
    perform(self, envelope, backtests.run_chunk)
