"""Faults for real processes: a server that is killed, paused and filled, a link that swallows, workers that die."""

from __future__ import annotations

import json
import os
import secrets
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import pandas as pd
import psutil
import pytest
import redis

import runner
from runner import outcomes, valkey
from runner.store import Ledger, connect
from tests.support import ROOT, SECRET, Worker, lives, running_worker, wait_until

SP500 = runner.sample_data("SP500")


class Server:
    """A Valkey server of a test's own, with an append-only file.

    Attributes:
        url: where it answers, before and after a restart.
    """

    def __init__(self, folder: Path, options: str = "") -> None:
        self._port, password = valkey.free_port(), secrets.token_hex(16)
        self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self._file = folder / "valkey.conf"
        text = valkey.configuration(port=self._port, password=password, folder=folder)
        self._file.write_text(f"{text}{options}\n")
        self._log = folder / "valkey.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self._log.open("ab") as log:
            process = subprocess.Popen([str(valkey.find_server()), str(self._file)], stdout=log, stderr=log)
        self.process = process
        wait_until(lambda: valkey.answers(self.url, process.pid), "Valkey answers", process=process, log=self._log)

    def kill(self) -> None:
        """As kill -9 does, also when it is paused."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Accepts connections, as the system does that for it, and answers nothing."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)


@contextmanager
def serving(folder: Path, options: str = "") -> Iterator[Server]:
    """A running server; gone at the end, however often it was killed meanwhile."""
    server = Server(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def crew(url: str, folder: Path, *concurrencies: int, queue: str = "backtest") -> Iterator[list[Worker]]:
    """Workers that start at the same time, one a number of children."""

    def start(concurrency: int) -> Worker:
        return stack.enter_context(running_worker(url, SECRET, concurrency, folder, sys.executable, queue=queue))

    with ExitStack() as stack, ThreadPoolExecutor() as starters:
        yield list(starters.map(start, concurrencies))


@contextmanager
def command(url: str, folder: Path, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python command of ours in the deployment's environment; its whole family is gone at the end."""
    environment = {**os.environ, "RUNNER_URL": url, "RUNNER_SECRET": SECRET, "PYTHONPATH": str(ROOT)}
    seen: list[psutil.Process] = []
    with (
        (folder / "command.log").open("ab") as log,
        subprocess.Popen([sys.executable, *words], env=environment, stdout=log, stderr=log, cwd=ROOT) as process,
    ):
        try:
            yield process
        finally:
            with suppress(psutil.NoSuchProcess):
                seen = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            for member in seen:
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            wait_until(lambda: not any(map(lives, seen)), "the command's family is gone")


class Link:
    """A TCP link to the server that can go half-open: what its connections carry from then on vanishes.

    Connections made afterwards work. Attributes: ``url``, the server as seen through the link.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._target = (str(parts.hostname), int(parts.port or 0))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.url = parts._replace(netloc=f":{parts.password}@127.0.0.1:{self._door.getsockname()[1]}").geturl()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._door, selectors.EVENT_READ)
        self._peers: dict[socket.socket, socket.socket] = {}
        self._swallowed: set[socket.socket] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._carry, name="link", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(10)
        for each in [self._door, *self._peers]:
            each.close()
        self._selector.close()

    def swallow(self) -> int:
        """From now on the connections that exist carry nothing; returns how many those are."""
        self._swallowed |= set(self._peers)
        return len(self._swallowed) // 2

    def _carry(self) -> None:
        while not self._stopping.is_set():
            for key, _ in self._selector.select(timeout=0.1):
                if key.fileobj is self._door:
                    self._open()
                else:
                    self._pass_on(key.fileobj)

    def _open(self) -> None:
        near, _ = self._door.accept()
        try:
            far = socket.create_connection(self._target, timeout=5)
        except OSError:
            near.close()
            return
        self._peers[near], self._peers[far] = far, near
        for each in (near, far):
            self._selector.register(each, selectors.EVENT_READ)

    def _pass_on(self, end: Any) -> None:
        if end not in self._peers:
            return  # closed a moment ago with its other end
        try:
            data = end.recv(65536)
            if end in self._swallowed:
                # Read so that the sender notices nothing; its end is kept from the other side as well.
                if not data:
                    self._selector.unregister(end)
                return
            if data:
                self._peers[end].sendall(data)
                return
        except OSError:
            pass
        self._close(end)

    def _close(self, end: socket.socket) -> None:
        for each in (end, self._peers[end]):
            with suppress(KeyError):
                self._selector.unregister(each)
            self._peers.pop(each, None)
            each.close()


def slow(bars: Any, point: int, seconds: float = 0.0, gate: str = "") -> Any:
    """Lasts so many seconds, and then until the file ``gate`` is there."""
    time.sleep(seconds)
    while gate and not Path(gate).exists():
        time.sleep(0.02)
    return bars.close > bars.sma(10 + point)


def sweep_of(client: runner.Client, runs: int, seconds: float = 0.0, gate: Path | None = None) -> runner.SweepHandle:
    """A sweep of equal runs that last so many seconds, and as long as the gate is closed."""
    space = runner.grid(point=range(runs), seconds=[seconds], gate=[str(gate or "")])
    return client.sweep(slow, SP500, space, run_timeout_s=120.0)


def check_whole(sweep: runner.SweepHandle, ledger: Ledger, runs: int, *, timeout_s: float = 100.0) -> None:
    """Every run is exactly one row in the ledger, and the table equals the undisturbed one to the last bit."""
    wait_until(lambda: ended(sweep), "the sweep has ended", timeout_s=timeout_s)
    check_rows(ledger, sweep.id, runs)
    space = runner.grid(point=range(runs), seconds=[0.0], gate=[""])
    undisturbed = runner.sweep(slow, SP500, space, progress=False).frame
    table = sweep.result(timeout=30, progress=False).frame
    undisturbed.index = table.index  # but for the time they took, which changes nothing
    pd.testing.assert_frame_equal(table, undisturbed, check_exact=True)


def check_rows(ledger: Ledger, batch: str, runs: int) -> None:
    """Every run of the batch has exactly one row in the ledger, counted from the outcomes themselves."""
    found = sorted(run for part in parts(ledger, batch) for run in range(part.start, part.stop))
    assert found == list(range(runs))


def parts(ledger: Ledger, batch: str) -> list[outcomes.Outcome]:
    return [outcomes.decode(blob) for blob in ledger.server.hgetall(f"runner:batch:{batch}:outcomes").values()]


def ended(sweep: runner.SweepHandle) -> bool:
    """Whether it is done; a server that is away has not said so."""
    try:
        return sweep.progress().ended
    except redis.RedisError:
        return False


def owners(ledger: Ledger, batch: str) -> dict[int, str]:
    """First run of each running chunk → who has it."""
    return {start: entry["owner"] for start, entry in _chunks(ledger, batch).items() if entry["state"] == "running"}


def waiting_chunks(ledger: Ledger, batch: str) -> set[int]:
    """First runs of the chunks that wait for somebody."""
    return {start for start, entry in _chunks(ledger, batch).items() if entry["state"] == "queued"}


def _chunks(ledger: Ledger, batch: str) -> dict[int, dict[str, Any]]:
    found = ledger.server.hgetall(f"runner:batch:{batch}:chunks")
    return {int(start): json.loads(entry) for start, entry in found.items()}


def counter(ledger: Ledger, name: str) -> int:
    """Of the whole deployment."""
    return int(ledger.server.hget("runner:health", name) or 0)


def timed_until(condition: Callable[[], bool], what: str, *, timeout_s: float = 60.0) -> float:
    """Seconds until the condition holds."""
    began = time.monotonic()
    wait_until(condition, what, timeout_s=timeout_s)
    return time.monotonic() - began


@contextmanager
def client_of(url: str) -> Iterator[tuple[runner.Client, Ledger]]:
    """A client and a ledger of a server."""
    ledger = Ledger(connect(url))
    with runner.Client(url, SECRET) as client:
        try:
            yield client, ledger
        finally:
            ledger.server.close()


@contextmanager
def side_by_side(
    request: pytest.FixtureRequest, folders: pytest.TempPathFactory, scenarios: Mapping[str, Callable[[Path], None]]
) -> Iterator[dict[str, Future[None]]]:
    """Begin those of the file's scenarios whose tests are asked for, by the test's name; each in a folder of its own.

    They mostly wait, for time-outs and for processes to start: three at a time take little longer than the longest.
    """
    asked_for = [item.name for item in request.session.items if item.name in scenarios]
    with ThreadPoolExecutor(max_workers=3) as pool:
        yield {name: pool.submit(scenarios[name], folders.mktemp("scenario")) for name in asked_for}
