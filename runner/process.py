"""One child process of a local stack: started, waited for, stopped; its output goes to a bounded log."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

import psutil

from runner.errors import StackError

logger = logging.getLogger(__name__)

# A log is cut to its newer half beyond this: enough for a day of warnings, too little to fill a disk.
MAX_LOG_BYTES = 4_000_000
POLL_S = 0.05
LONGEST_BACKOFF_S = 30
# A process that lived longer than this did not fail as it started: its back-off begins anew.
HEALTHY_AFTER_S = 60.0
PR_SET_PDEATHSIG = 1
# Linux tells the start of a process relative to the boot, whose own time moves with every correction of the clock.
CLOCK_SLACK_S = 5.0


class Stopping(Exception):
    """The stack was told to stop while it waited for a process."""


@dataclass(frozen=True, slots=True)
class ProcessId:
    """A process, told apart from a later one with the same number.

    Attributes:
        name: what it does in the stack.
        pid: its number.
        created: seconds since the epoch, as psutil's ``create_time``.
    """

    name: str
    pid: int
    created: float

    @classmethod
    def of(cls, name: str, pid: int) -> Self:
        """The process that has this number now; psutil.NoSuchProcess when there is none."""
        return cls(name, pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The living process, None when it is gone."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created) < CLOCK_SLACK_S
            same = same and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return None
        return process if same else None


class Child:
    """A command that the supervisor keeps running.

    Attributes:
        name: what it does in the stack.
        environment: its variables, from the next start on.
        restarts: how often it ended by itself and was started again.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], log: Path, grace_s: float
    ) -> None:
        self.name = name
        self.environment = dict(environment)
        self.restarts = 0
        self.log = log
        self._command = list(command)
        self._grace_s = grace_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0
        self._started_at = 0.0
        self._failures = 0
        self._revive_at: float | None = None

    @property
    def pid(self) -> int:
        """Its process number, 0 before the first start."""
        return self._process.pid if self._process else 0

    @property
    def id(self) -> ProcessId | None:
        """Its process, None when it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        with suppress(psutil.NoSuchProcess):
            return ProcessId.of(self.name, self.pid)
        return None

    def start(self) -> None:
        """Start it, in a session of its own: a terminal's Ctrl-C reaches the supervisor alone, which stops in order.

        Raises:
            StackError: the system cannot run the command.
        """
        try:
            self._start()
        except OSError as error:
            raise StackError(f"{self.name} cannot be started: {self._command[0]}: {error.strerror}.") from None

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self._started_at = time.monotonic()
            self._process = subprocess.Popen(
                self._command,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_parent(),  # noqa: PLW1509 -- the supervisor has one thread
            )

    def wait_ready(self, ready: Callable[[], bool], *, timeout_s: float, stopping: Callable[[], bool]) -> None:
        """Return when ``ready()`` is true.

        Raises:
            StackError: it ended, or did not answer in time; the message ends with the end of its log.
            Stopping: ``stopping()`` became true.
        """
        deadline = time.monotonic() + timeout_s
        while not ready():
            if stopping():
                raise Stopping
            if self.exited():
                raise StackError(f"{self.name} ended with exit code {self._code()} as it started.\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise StackError(f"{self.name} did not answer within {timeout_s:g} s.\n{self.log_tail()}")
            time.sleep(POLL_S)

    def exited(self) -> bool:
        """True when it was started and has ended."""
        return self._process is not None and self._process.poll() is not None

    def revive(self, now: float) -> bool:
        """Start it again if it ended by itself and its back-off is over by the monotonic clock; True when it did."""
        if not self.exited():
            return False
        if self._revive_at is None:
            self._failures = 1 if now - self._started_at > HEALTHY_AFTER_S else self._failures + 1
            wait_s = backoff_s(self._failures)
            self._revive_at = now + wait_s
            logger.warning(
                "%s ended with exit code %s: it starts again in %g s (%s)", self.name, self._code(), wait_s, self.log
            )
        if now < self._revive_at:
            return False
        self.stop()  # what it had started may have outlived it
        self._revive_at = None
        self.restarts += 1
        try:
            self.start()
        except StackError as error:
            logger.warning("%s", error)
            return False
        return True

    def stop(self, hurry: Callable[[], bool] = lambda: False) -> None:
        """End it and everything it started: asked first, killed after its grace or as soon as ``hurry()`` is true."""
        if self._process is None:
            return
        deadline = time.monotonic() + self._grace_s
        with suppress(ProcessLookupError):
            self._process.terminate()
        while self._process.poll() is None and time.monotonic() < deadline and not hurry():
            time.sleep(POLL_S)
        with suppress(ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def log_tail(self, lines: int = 10) -> str:
        """Where the log is and its last lines since the last start."""
        with self.log.open("rb") as file:
            file.seek(self._log_start if self._log_start <= self.log.stat().st_size else 0)
            text = file.read().decode(errors="replace")
        return "\n".join([f"The end of {self.log}:", *text.splitlines()[-lines:]])

    def trim_log(self) -> None:
        """Cut the log to its newer half when it has grown too long; lines written in that instant may be lost."""
        with suppress(FileNotFoundError), self.log.open("rb+") as file:
            if file.seek(0, os.SEEK_END) <= MAX_LOG_BYTES:
                return
            file.seek(-MAX_LOG_BYTES // 2, os.SEEK_END)
            newer = file.read()
            file.seek(0)
            file.truncate()
            file.write(newer)

    def _code(self) -> int | None:
        return self._process.returncode if self._process else None


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 1, 2, 4 ... LONGEST_BACKOFF_S."""
    return float(min(2 ** min(failures - 1, 10), LONGEST_BACKOFF_S))


def kill_leftovers(processes: Sequence[ProcessId]) -> None:
    """End what a supervisor left behind that was killed itself, with everything those processes had started."""
    for leftover in processes:
        process = leftover.find()
        if process is None:
            continue
        family = [process, *process.children(recursive=True)]
        for member in family:
            with suppress(psutil.NoSuchProcess):
                member.kill()
        psutil.wait_procs(family, timeout=5)


def _die_with_parent() -> Callable[[], None] | None:
    """What runs in the new process before its command does: on Linux it dies with the supervisor, however that ends."""
    if sys.platform != "linux":
        return None
    # Looked up before the fork: nothing is loaded between fork and exec.
    return partial(_set_death_signal, ctypes.CDLL(None).prctl, os.getpid())


def _set_death_signal(prctl: Callable[[int, int], int], parent: int) -> None:
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
