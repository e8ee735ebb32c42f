"""A time limit for calls of a user's function, in whatever thread they run."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable
from time import monotonic
from types import FrameType, TracebackType
from typing import Any, Self

from runner.errors import RunTimeoutError

# After the first interruption the next one comes this much later, again and again: a user's `except Exception` may
# swallow one, and a loop around it must not live for ever.
REFIRE_S = 0.05


def deadline(limit_s: float | None) -> NoDeadline:
    """A context for many calls, each of which may last ``limit_s`` seconds; None sets no limit.

    In the main thread of a POSIX process a timer signal interrupts, even a sleeping call; elsewhere a watchdog thread
    raises in the calling thread, which notices at its next Python instruction.
    """
    if limit_s is None:
        return NoDeadline()
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _SignalDeadline(limit_s)
    return _ThreadDeadline(limit_s)


class NoDeadline:
    """Calls without a limit, and the interface of the others."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """The function's result; raises RunTimeoutError when it took longer than the limit."""
        return function(*args)


class _Deadline(NoDeadline):
    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.ends = float("inf")

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        ends = monotonic() + self.limit_s
        try:
            try:
                self.ends = ends
                result = function(*args)
            finally:
                self._disarm()
        except Exception as error:
            self._disarm()  # an interruption may have hit the line above before it was done
            if monotonic() < ends:
                raise
            self._fail(error)
        if monotonic() >= ends:  # finished late, or swallowed the interruption
            self._fail(None)
        return result

    def _fail(self, error: Exception | None) -> None:
        message = f"the run took longer than run_timeout_s={self.limit_s:g}: give it more time, or find what loops."
        raise RunTimeoutError(message).with_traceback(error.__traceback__ if error else None) from None

    def _disarm(self) -> None:
        self.ends = float("inf")

    def _wait_s(self) -> float:
        """Seconds until the call now running is over its limit; 0 when it is."""
        return min(max(self.ends - monotonic(), 0.0), self.limit_s)


class _SignalDeadline(_Deadline):
    """One timer for all calls: when it rings early for the call now running, it is set again for the rest."""

    def __enter__(self) -> Self:
        self._entered = monotonic()
        self._handler = signal.signal(signal.SIGALRM, self._ring)
        self._timer = signal.setitimer(signal.ITIMER_REAL, self.limit_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._handler)
        remaining, interval = self._timer
        if remaining:  # someone else's timer: it rings when it would have, at once if that is past
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (monotonic() - self._entered), 1e-6), interval)

    def _ring(self, _signum: int, frame: FrameType | None) -> None:
        wait_s = self._wait_s()
        signal.setitimer(signal.ITIMER_REAL, wait_s or REFIRE_S)
        ours = frame is not None and frame.f_globals is globals()
        if not wait_s and not ours:  # never in the middle of our own bookkeeping
            raise RunTimeoutError


class _ThreadDeadline(_Deadline):
    """A watchdog thread that raises in the thread that entered."""

    def __enter__(self) -> Self:
        self._caller = ctypes.c_ulong(threading.get_ident())
        self._lock = threading.Lock()
        self._sent = False
        self._stopped = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, name="runner-deadline", daemon=True)
        self._watchdog.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._disarm()
        self._stopped.set()
        self._watchdog.join()

    def _watch(self) -> None:
        pause_s = self.limit_s
        while not self._stopped.wait(pause_s):
            with self._lock:
                pause_s = self._wait_s()
                if not pause_s:
                    pause_s = REFIRE_S
                    self._sent = True
                    self._raise(ctypes.py_object(RunTimeoutError))

    def _disarm(self) -> None:
        """End the call's limit, and take back an interruption that was sent but has not arrived."""
        while True:
            try:
                with self._lock:
                    self.ends = float("inf")
                    if self._sent:
                        self._raise(None)
                        self._sent = False
                    return
            except RunTimeoutError:  # it arrived right here
                continue

    def _raise(self, error: ctypes.py_object[type[BaseException]] | None) -> None:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(self._caller, error)
