"""Families of processes, and whether they are gone."""

from __future__ import annotations

import psutil

from tests.support import wait_until


def family(pid: int) -> list[psutil.Process]:
    """The process and everything below it."""
    top = psutil.Process(pid)
    return [top, *top.children(recursive=True)]


def wait_gone(processes: list[psutil.Process]) -> None:
    """Return when all have ended; one that only waits to be collected by init has."""
    wait_until(lambda: not any(lives(process) for process in processes), f"{processes} are gone", timeout_s=15)


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
