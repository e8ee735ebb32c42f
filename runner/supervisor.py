"""The process that keeps a local stack running: starts it in order, watches it, stops it in reverse order."""

from __future__ import annotations

import json
import os
import platform
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import runner
from runner import monitor, signing, stack, valkey
from runner.app import QUEUE_BACKTEST, QUEUE_FETCH
from runner.errors import RunnerError, SettingsError, StackError
from runner.process import Child, ProcessId, Stopping

TICK_S = 0.2
LOG_CHECK_S = 10.0
# Another program may take a port between the moment it was found free and the moment the server binds it.
PORT_TRIES = 5
# `runner down` and Ctrl-C are waited for; a run that takes longer is handed back.
WORKER_GRACE_S = 5
# As workers.__main__ takes by default: what bounds requests is the HTTP client, not these.
FETCH_THREADS = 8


@dataclass(frozen=True, slots=True)
class Options:
    """What a stack consists of.

    Attributes:
        workers: worker processes of the queue backtest.
        fetch: whether a worker of the queue fetch runs.
        flower: whether Flower runs.
        port: of the server; 0 is any that is free.
        home: its folder.
    """

    workers: int
    fetch: bool
    flower: bool
    port: int
    home: Path


def options(*, workers: int | None, fetch: bool, flower: bool, port: int, home: Path) -> Options:
    """The options, checked.

    Raises:
        SettingsError: a number is out of range.
    """
    if workers is not None and not 1 <= workers <= 1024:
        raise SettingsError(f"workers={workers}: expected 1 to 1024; one a core is {available_cores()} here.")
    if not 0 <= port <= 65535:
        raise SettingsError(f"port={port}: expected 1 to 65535, or 0 for any that is free.")
    return Options(workers or available_cores(), fetch, flower, port, stack.make_home(home))


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Signals:
    """SIGINT, SIGTERM and SIGHUP, counted; the end of the parent's pipe counts as one."""

    def __init__(self, pipe: int | None) -> None:
        self.count = 0
        self._pipe = pipe
        self._parent = os.getppid()

    def stopping(self) -> bool:
        """True from the first order to stop on."""
        return self.count > 0 or self._abandoned()

    def hurry(self) -> bool:
        """True after a second signal: kill what has not ended."""
        return self.count > 1

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Count signals instead of dying of them."""
        names = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        # What is ignored stays so: nohup means it.
        heeded = [name for name in names if signal.getsignal(name) is not signal.SIG_IGN]
        before = {name: signal.signal(name, self._on_signal) for name in heeded}
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)

    def _on_signal(self, *_: object) -> None:
        self.count += 1

    def _abandoned(self) -> bool:
        """The starting process has gone: its end of the pipe is closed, or somebody it forked still holds it open."""
        if self._pipe is None:
            return False
        readable, _, _ = select.select([self._pipe], [], [], 0)
        return (bool(readable) and not os.read(self._pipe, 4096)) or os.getppid() != self._parent


class Supervisor:
    """Runs one stack. Single-threaded: on Linux a child dies with the thread that started it."""

    def __init__(self, wanted: Options, signals: Signals) -> None:
        self._wanted = wanted
        self._home = wanted.home
        self._signals = signals
        self._children: list[Child] = []
        self._secret = stack.the_secret(self._home)
        self._url = ""
        self._flower_port = 0
        self._versions = {"runner": runner.__version__, "python": platform.python_version()}
        self._started = time.time()

    def run(self, on_ready: Callable[[stack.StackInfo], None]) -> None:
        """Start, report, watch until told to stop, stop.

        Raises:
            StackError: something did not start; what had started is stopped.
        """
        try:
            self._start()
            on_ready(self._save(ready=True))
            self._watch()
        except Stopping:
            pass
        finally:
            for child in reversed(self._children):
                child.stop(self._signals.hurry)
            (self._home / stack.STATE_FILE).unlink(missing_ok=True)

    def _start(self) -> None:
        self._url = self._external_url() or self._start_server()
        worker = self._start_worker("worker", QUEUE_BACKTEST, self._wanted.workers)
        fetcher = self._start_worker("fetcher", QUEUE_FETCH, FETCH_THREADS) if self._wanted.fetch else None
        if self._wanted.flower:
            self._start_flower()
        self._wait(worker, partial(self._works, worker, self._wanted.workers))
        if fetcher is not None:
            self._wait(fetcher, partial(self._works, fetcher, FETCH_THREADS))

    def _external_url(self) -> str | None:
        """RUNNER_URL, checked, when it is set: then no server is started."""
        named = stack.named_deployment()
        if named is None:
            return None
        from runner.store import Ledger, connect

        url, _ = named
        Ledger(connect(url)).check(url, self._secret)
        self._versions["server"] = str(connect(url).info("server")["redis_version"])
        return url

    def _start_server(self) -> str:
        binary = valkey.find_server()
        password = signing.derive(self._secret, "server")
        # Data written under another secret is another deployment's.
        data = self._home / f"data-{signing.derive(self._secret, 'folder')[:8]}"
        data.mkdir(mode=0o700, exist_ok=True)
        file = self._home / "valkey.conf"
        server = self._child("server", [str(binary), str(file)], dict(os.environ), grace_s=10)
        if self._wanted.port and valkey.is_taken(self._wanted.port):
            raise StackError(
                f"port {self._wanted.port} is taken by another program: choose another, or 0 for any that is free."
            )

        def prepare(port: int) -> Callable[[], bool]:
            stack.write_private(file, valkey.configuration(port=port, password=password, folder=data))
            return lambda: valkey.answers(_local_url(password, port), server.pid)

        url = _local_url(password, self._listen(server, self._wanted.port, prepare))
        with valkey.connection(url) as client:
            about = client.info("server")
        self._versions["server"] = str(about.get("valkey_version") or about["redis_version"])
        return url

    def _start_worker(self, name: str, queue: str, concurrency: int) -> Child:
        command = [sys.executable, "-m", "workers", "--queues", queue, "--concurrency", str(concurrency)]
        command += ["--name", f"{'local' if queue == QUEUE_BACKTEST else 'fetch'}-{os.getpid()}"]
        environment = dict(os.environ) | {"RUNNER_URL": self._url, "RUNNER_SECRET": self._secret}
        command += ["--grace", str(WORKER_GRACE_S)]
        worker = self._child(name, command, environment, grace_s=2 * WORKER_GRACE_S)
        worker.start()
        self._save(ready=False)
        return worker

    def _works(self, worker: Child, concurrency: int) -> bool:
        """True when the worker's heartbeat has reached the ledger."""
        import redis

        from runner.store import Ledger

        with valkey.connection(self._url) as client:
            try:
                rows = [row for row in Ledger(client).workers() if row["pid"] == worker.pid]
                return [row["concurrency"] for row in rows] == [concurrency]
            except redis.RedisError:
                return False

    def _start_flower(self) -> None:
        flower = self._child("flower", monitor.command(), {}, grace_s=5)
        folder = self._home / "flower"
        folder.mkdir(mode=0o700, exist_ok=True)

        def prepare(port: int) -> Callable[[], bool]:
            flower.environment = monitor.environment(
                # Only ours: a login of the user's environment would not be the one in the state file.
                {name: value for name, value in os.environ.items() if name != "FLOWER_BASIC_AUTH"},
                url=self._url,
                secret=self._secret,
                address="127.0.0.1",
                port=port,
                folder=folder,
            )
            return lambda: monitor.answers(port, f"{monitor.USER}:{monitor.password(self._secret)}")

        usual = 0 if valkey.is_taken(monitor.FLOWER_PORT) else monitor.FLOWER_PORT
        self._flower_port = self._listen(flower, 0, prepare, first_choice=usual)

    def _listen(
        self, child: Child, port: int, prepare: Callable[[int], Callable[[], bool]], *, first_choice: int = 0
    ) -> int:
        """Start a child on the port, or on a free one when it is 0; returns the port on which it answers."""
        for attempt in range(1, PORT_TRIES + 1):
            chosen = port or (first_choice if attempt == 1 else 0) or valkey.free_port()
            ready = prepare(chosen)
            child.start()
            self._save(ready=False)
            try:
                self._wait(child, ready)
            except StackError:
                lost_the_race = child.exited() and valkey.is_taken(chosen) and not port
                if not lost_the_race or attempt == PORT_TRIES:
                    raise
            else:
                break
        return chosen

    def _wait(self, child: Child, ready: Callable[[], bool]) -> None:
        child.wait_ready(ready, timeout_s=stack.START_TIMEOUT_S, stopping=self._signals.stopping)

    def _child(self, name: str, command: list[str], environment: dict[str, str], *, grace_s: float) -> Child:
        child = Child(name, command, environment=environment, log=self._home / f"{name}.log", grace_s=grace_s)
        self._children.append(child)
        return child

    def _watch(self) -> None:
        """Start again what ends by itself, keep the logs short, until told to stop."""
        check_logs_at = 0.0
        while not self._signals.stopping():
            now = time.monotonic()
            revived = [child for child in self._children if child.revive(now)]
            if revived:
                self._save(ready=True)
            if now >= check_logs_at:
                check_logs_at = now + LOG_CHECK_S
                for child in self._children:
                    child.trim_log()
            time.sleep(TICK_S)

    def _save(self, *, ready: bool) -> stack.StackInfo:
        info = stack.StackInfo(
            url=self._url,
            secret=self._secret,
            flower_url=f"http://127.0.0.1:{self._flower_port}" if self._flower_port else None,
            flower_user=monitor.USER,
            flower_password=monitor.password(self._secret),
            workers=self._wanted.workers,
            supervisor=ProcessId.of("supervisor", os.getpid()),
            processes=tuple(child.id for child in self._children if child.id),
            versions=self._versions,
            started=self._started,
            ready=ready,
        )
        info.save(self._home)
        return info


def supervise(wanted: Options, on_ready: Callable[[stack.StackInfo], None], *, pipe: int | None = None) -> None:
    """Run a stack in this process until a signal, or the end of ``pipe``, stops it.

    Raises:
        StackError: something did not start, or a stack already runs in this folder.
    """
    stack.refuse_windows()
    os.umask(0o077)  # what server, worker and Flower write is for the owner alone
    signals = Signals(pipe)
    with signals.handled(), stack.only_one(wanted.home):
        stack.clear_up(wanted.home)
        Supervisor(wanted, signals).run(on_ready)


def main() -> int:
    """The supervisor of a `runner.stack.LocalStack`: options on standard input, then its end is the order to stop."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    asked: dict[str, Any] = json.loads(line)
    try:
        wanted = options(**{**asked, "home": Path(asked["home"])})
        supervise(wanted, lambda _: _answer(None), pipe=sys.stdin.fileno())
    except RunnerError as error:
        _answer(str(error))
        return 1
    return 0


def _answer(error: str | None) -> None:
    with suppress(BrokenPipeError):  # whoever asked is gone, which the other pipe tells too
        os.write(sys.stdout.fileno(), json.dumps({"error": error}).encode() + b"\n")


def _local_url(password: str, port: int) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


if __name__ == "__main__":
    sys.exit(main())
