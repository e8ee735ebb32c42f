"""The one task of the fetch queue."""

from __future__ import annotations

from typing import Any

from celery import Task, shared_task

from runner.app import FETCH_CHUNK
from tasks.signed import perform
from workers import fetching


@shared_task(name=FETCH_CHUNK, bind=True)
def fetch_chunk(self: Task, envelope: Any) -> None:
    """Fetch a chunk of the symbols of a source."""
    perform(self, envelope, fetching.run_chunk)
