"""What the tests start and wait for: real servers, real workers, and events instead of sleeps."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from runner import store, valkey

ROOT = Path(__file__).parent.parent
SECRET = "a-secret-of-the-tests"
# Of the providers that want one: found nowhere but in the worker's environment and in requests to the provider.
KEY = "valid-key-7c1e9f"


@dataclass(frozen=True)
class Worker:
    """A real `python -m workers` process."""

    process: subprocess.Popen[bytes]
    log: Path

    def children(self) -> list[psutil.Process]:
        return [
            child for child in psutil.Process(self.process.pid).children() if "spawn_main" in " ".join(child.cmdline())
        ]


@dataclass(frozen=True)
class Deployment:
    """A server and a worker that listens to it."""

    url: str
    worker: Worker


@contextmanager
def running_valkey(folder: Path, port: int = 0, password: str = "") -> Iterator[str]:
    port, password = port or valkey.free_port(), password or secrets.token_hex(16)
    (folder / "valkey.conf").write_text(valkey.configuration(port=port, password=password, folder=folder))
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    command = [str(valkey.find_server()), str(folder / "valkey.conf")]
    with (folder / "valkey.log").open("ab") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        try:
            wait_until(lambda: valkey.answers(url, process.pid), "Valkey answers")
            yield url
        finally:
            # More than once: while it rewrites its append-only file, as FLUSHALL makes it do, it refuses to stop.
            wait_until(lambda: _ended(process), "Valkey has stopped")


@contextmanager
def running_worker(
    url: str, secret: str, concurrency: int, folder: Path, python: str, *, queue: str = "backtest", **variables: str
) -> Iterator[Worker]:
    name = f"w{secrets.token_hex(3)}"
    path = folder / f"{name}.log"
    environment = {**os.environ, "RUNNER_URL": url, "RUNNER_SECRET": secret, "PYTHONPATH": str(ROOT), **variables}
    command = [python, "-m", "workers", "--queues", queue, "--concurrency", str(concurrency), "--name", name]
    command += ["--loglevel", "info"]
    ledger = store.Ledger(store.connect(url))
    with (
        path.open("wb") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=ROOT) as process,
    ):
        try:
            wait_until(lambda: _children_of(ledger, name) == concurrency, "it is up", log=path, process=process)
            yield Worker(process, path)
        finally:
            _end(process)


def _ended(process: subprocess.Popen[bytes]) -> bool:
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=0.5)
    return process.poll() is not None


def _children_of(ledger: store.Ledger, name: str) -> int:
    return sum(worker["concurrency"] for worker in ledger.workers() if worker["name"].startswith(f"{name}@"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill the whole family: how a worker stops in good order has a test of its own, and takes billiard seconds."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(timeout=5)
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        wait_until(lambda: not any(map(lives, family)), "the worker's children are gone")


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a zombie that its parent has not asked about is gone."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def wait_until(
    condition: Callable[[], bool],
    what: str,
    *,
    timeout_s: float = 30.0,
    log: Path | None = None,
    process: subprocess.Popen[bytes] | None = None,
) -> None:
    """Return when the condition holds; fail with what was waited for, and the end of the log."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        ended = process is not None and process.poll() is not None
        if ended or time.monotonic() > deadline:
            tail = log.read_text()[-3000:] if log else ""
            pytest.fail(f"waited {timeout_s:g} s in vain until {what}{' (its process ended)' if ended else ''}\n{tail}")
        time.sleep(0.02)
