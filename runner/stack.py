"""LocalStack: server, workers and Flower on this machine, and what other processes need to find them."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from runner import settings
from runner.errors import BrokerUnreachable, SettingsError, StackError
from runner.process import POLL_S, ProcessId, kill_leftovers

STATE_FILE = "stack.json"
LOCK_FILE = "lock"
SECRET_FILE = "secret"  # noqa: S105 -- a file's name
# Server, worker and Flower start within about 5 s on two cores; a laptop that just woke up takes its time.
START_TIMEOUT_S = 60.0
# Flower, worker and server have 5, 10 and 10 s to end by themselves.
STOP_TIMEOUT_S = 30.0
# `supervised` holds the lock for microseconds; a supervisor that holds it for longer is there to stay.
LOCK_PATIENCE_S = 0.5


@dataclass(frozen=True, slots=True)
class StackInfo:
    """A running stack. Its file is readable by the owner alone and goes when the stack stops.

    Attributes:
        url: the server, password included.
        secret: signs messages and code.
        flower_url: Flower's page, None when the stack runs without it.
        flower_user, flower_password: its login.
        workers: worker processes, one run at a time each.
        supervisor: the process whose end is the end of the stack.
        processes: the processes it keeps running.
        versions: of this package, Python and the server.
        started: seconds since the epoch.
        ready: everything answered at least once.
    """

    url: str
    secret: str
    flower_url: str | None
    flower_user: str
    flower_password: str
    workers: int
    supervisor: ProcessId
    processes: tuple[ProcessId, ...]
    versions: dict[str, str]
    started: float
    ready: bool

    def __repr__(self) -> str:
        flower = f", flower={self.flower_url}" if self.flower_url else ""
        return f"<stack {settings.starred(self.url)}, {self.workers} worker processes{flower}>"

    def save(self, home: Path) -> None:
        """Write the state file."""
        write_private(home / STATE_FILE, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, home: Path) -> Self | None:
        """Read the state file, None when there is none or another version wrote it."""
        try:
            state = json.loads((home / STATE_FILE).read_text())
            state["supervisor"] = ProcessId(**state["supervisor"])
            state["processes"] = tuple(ProcessId(**process) for process in state["processes"])
            return cls(**state)
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None


def running(home: Path | None = None) -> StackInfo | None:
    """The stack of this user that runs now, None when there is none: its supervisor is looked up, not believed."""
    info = StackInfo.load(home or settings.load().home)
    return info if info and info.ready and supervised(home or settings.load().home) else None


def deployment() -> tuple[str, str]:
    """URL and secret of the deployment: RUNNER_URL and RUNNER_SECRET, else those of the stack that runs here.

    Raises:
        BrokerUnreachable: neither is there.
        SettingsError: RUNNER_URL without RUNNER_SECRET.
    """
    named = named_deployment()
    if named:
        return named
    info = running()
    if info is None:
        raise BrokerUnreachable(
            "no stack runs here: start one with `runner up`, or set RUNNER_URL and RUNNER_SECRET to your deployment's."
        )
    return info.url, info.secret


def named_deployment() -> tuple[str, str] | None:
    """RUNNER_URL and RUNNER_SECRET, None without a URL; SettingsError without a secret."""
    known = settings.load()
    if known.url is None:
        return None
    if known.secret is None:
        raise SettingsError("RUNNER_URL is set but RUNNER_SECRET is not: set it to the secret of that deployment.")
    return known.url.get_secret_value(), known.secret.get_secret_value()


def stop(home: Path | None = None) -> bool:
    """Stop this user's stack and whatever a killed one left behind; False when none ran.

    Raises:
        StackError: its supervisor did not end in time.
    """
    home = home or settings.load().home
    info = StackInfo.load(home)
    if info is None:
        return False
    alive = supervised(home)
    if alive:
        with suppress(ProcessLookupError):
            os.kill(info.supervisor.pid, signal.SIGTERM)
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while supervised(home):
        if time.monotonic() > deadline:
            raise StackError(
                f"the stack's supervisor (process {info.supervisor.pid}) did not end within {STOP_TIMEOUT_S:g} s: "
                f"kill it with `kill -9 {info.supervisor.pid}`, then `runner down` again clears up."
            )
        time.sleep(POLL_S)
    with suppress(StackError), only_one(home):  # unless another stack has just taken its place
        clear_up(home)
    return alive


def clear_up(home: Path) -> None:
    """End the processes of a stack whose supervisor is gone, and remove its state file. Call it in `only_one`."""
    info = StackInfo.load(home)
    if info:
        kill_leftovers(info.processes)
    (home / STATE_FILE).unlink(missing_ok=True)


def supervised(home: Path) -> bool:
    """True while a supervisor holds the folder: a lock, unlike a process number, ends with its owner."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        with (home / LOCK_FILE).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the folder for one supervisor; the system lets go of it however the process ends.

    Raises:
        StackError: another supervisor holds it; the message says how to use or stop that stack.
    """
    import fcntl

    deadline = time.monotonic() + LOCK_PATIENCE_S
    with (home / LOCK_FILE).open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise StackError(_already(home)) from None
            time.sleep(POLL_S)
        yield


def _already(home: Path) -> str:
    info = running(home)
    if info is None:
        return f"a stack is just being started or stopped in {home}: try again in a few seconds."
    return (
        f"a stack already runs here (process {info.supervisor.pid}, {info.workers} worker processes): use it with "
        "runner.connect(), see it with `runner status`, stop it with `runner down`."
    )


def the_secret(home: Path) -> str:
    """RUNNER_SECRET when it is set, else the one made for this folder on first use and kept for the owner alone."""
    given = settings.load().secret
    if given:
        return given.get_secret_value()
    file = home / SECRET_FILE
    if not file.exists():
        write_private(file, secrets.token_urlsafe(32))
    return file.read_text().strip()


def make_home(home: Path) -> Path:
    """The folder, made for the owner alone when it is not there.

    Raises:
        StackError: it cannot be made or written.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(home, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
    except OSError as error:
        raise StackError(
            f"the stack's folder {home} cannot be used ({error.strerror}): set RUNNER_HOME to another."
        ) from None
    return home.resolve()


def write_private(file: Path, text: str) -> None:
    """Replace the file at once, readable by the owner alone."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")  # made with mode 0600
    try:
        with os.fdopen(handle, "w") as temporary:
            temporary.write(text)
        os.replace(name, file)  # noqa: PTH105 -- mkstemp gives a name
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(name)  # noqa: PTH108 -- mkstemp gives a name
        raise


class LocalStack:
    """A server, workers and Flower on this machine that end with this process, however it ends.

    Use it in ``with``, or keep a reference: it stops when it is collected. A supervisor process starts everything and
    holds a pipe to this one; the pipe's end is its order to stop.

    Args:
        workers: worker processes; None is one a core.
        fetch: whether to start a worker that fetches prices.
        flower: whether to start Flower.
        port: of the server; 0 is any that is free.
        home: folder for state, logs and the server's data; None is RUNNER_HOME or the user's state folder.

    Raises:
        StackError: something did not start, a stack already runs in this folder, or the system is Windows.

    Attributes:
        info: addresses and secrets, as ``runner.connect()`` of another process finds them.
    """

    info: StackInfo

    def __init__(
        self,
        *,
        workers: int | None = None,
        fetch: bool = True,
        flower: bool = True,
        port: int = 0,
        home: Path | str | None = None,
    ) -> None:
        refuse_windows()
        self.home = make_home(Path(home) if home else settings.load().home)
        options = {"workers": workers, "fetch": fetch, "flower": flower, "port": port, "home": str(self.home)}
        write_private(self.home / "supervisor.log", "")
        with (self.home / "supervisor.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "runner.supervisor"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C in this process's terminal is not its order to stop
            )
        self._stop = weakref.finalize(self, _end, process, self.home)
        try:
            self.info = self._started(process, options)
        except BaseException:
            self._stop()
            raise

    def stop(self) -> None:
        """Stop everything and wait until it is gone; a second call does nothing."""
        self._stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def __repr__(self) -> str:
        return repr(self.info) if self._stop.alive else "<stack, stopped>"

    def _started(self, process: subprocess.Popen[bytes], options: dict[str, Any]) -> StackInfo:
        """What the supervisor says once everything answers. It watches its own deadlines; the timer watches it."""
        timer = threading.Timer(3 * START_TIMEOUT_S, process.kill)
        timer.start()
        try:
            assert process.stdin is not None  # noqa: S101 -- asked for above
            assert process.stdout is not None  # noqa: S101 -- asked for above
            with suppress(BrokenPipeError):
                process.stdin.write(json.dumps(options).encode() + b"\n")
                process.stdin.flush()
            answer = process.stdout.readline()
        finally:
            timer.cancel()
        problem = json.loads(answer)["error"] if answer else "the supervisor ended:\n" + self._log()
        info = None if problem else StackInfo.load(self.home)
        if info is None:
            raise StackError(problem or "the stack ended as soon as it had started.")
        return info

    def _log(self) -> str:
        return "\n".join((self.home / "supervisor.log").read_text(errors="replace").splitlines()[-10:])


def refuse_windows() -> None:
    """StackError on Windows, where neither Celery's workers nor a server run."""
    if sys.platform == "win32":
        raise StackError(
            "a local stack needs Linux or macOS. On Windows run `runner up` inside WSL, or point RUNNER_URL and "
            "RUNNER_SECRET at a server and workers that run elsewhere; runner.sweep(...) needs neither."
        )


def _end(process: subprocess.Popen[bytes], home: Path) -> None:
    """Close the pipe and wait for the supervisor; kill it, and then what it left, when it does not end."""
    assert process.stdin is not None  # noqa: S101 -- started with a pipe
    assert process.stdout is not None  # noqa: S101 -- started with a pipe
    with suppress(BrokenPipeError):
        process.stdin.close()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        with suppress(StackError), only_one(home):
            clear_up(home)
    process.stdout.close()
