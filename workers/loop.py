"""One asyncio loop a process, in a thread of its own: the only door from synchronous code to asynchronous code."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# Cancelled tasks get this long to close their connections before `close` stops waiting for the thread.
CLOSE_TIMEOUT_S = 10.0


class LoopThread:
    """A daemon thread that runs one asyncio loop, started by the first ``run``.

    Connections, their pool and the DNS cache belong to a loop; with one loop for all tasks of a process they live on
    from task to task. ``run`` also works where a loop already runs in the calling thread, as in a notebook cell.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._thread: threading.Thread | None = None

    def run(self, coro: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """The coroutine's result, or its exception.

        Args:
            coro: runs on this thread's loop.
            timeout_s: seconds until it is cancelled; None waits as long as the coroutine's own deadlines allow.

        Raises:
            TimeoutError: the time is over; the coroutine has been cancelled.
            RuntimeError: called from the loop's own thread, where waiting would stand still for ever.
        """
        loop = self._started()
        if threading.current_thread() is self._thread:
            coro.close()
            raise RuntimeError("run() was called from inside the loop's own thread: await the coroutine there instead.")
        future = asyncio.run_coroutine_threadsafe(coro, loop)
        try:
            return future.result(timeout_s)
        except TimeoutError:
            if future.done():  # the coroutine's own TimeoutError
                raise
            raise TimeoutError(f"not done within {timeout_s:g} s: cancelled.") from None
        finally:
            # After a timeout, KeyboardInterrupt or SystemExit; nothing happens when it is done.
            future.cancel()

    def close(self) -> None:
        """Cancel what still runs and end the thread; the next ``run`` starts a new one."""
        with self._lock:
            loop, stop, thread = self._loop, self._stop, self._thread
            self._loop = self._stop = self._thread = None
        if loop is None or stop is None or thread is None:
            return
        loop.call_soon_threadsafe(stop.set)
        if threading.current_thread() is not thread:
            thread.join(CLOSE_TIMEOUT_S)

    def _started(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                ready = threading.Event()
                self._thread = threading.Thread(target=self._work, args=(ready,), name="asyncio loop", daemon=True)
                self._thread.start()
                ready.wait()
            if self._loop is None:
                raise RuntimeError(
                    "the event loop could not be started: see the traceback of the thread 'asyncio loop'."
                )
            return self._loop

    def _work(self, ready: threading.Event) -> None:
        async def until_stopped() -> None:
            self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
            stop = self._stop
            ready.set()
            await stop.wait()

        try:
            asyncio.run(until_stopped())  # cancels and awaits what is left, and closes the default executor
        finally:
            ready.set()


_of_this_process = LoopThread()


def loop_thread() -> LoopThread:
    """This process's loop thread."""
    return _of_this_process


def _forget() -> None:
    """A forked child has its parent's object, but not its thread."""
    global _of_this_process  # noqa: PLW0603 - one a process is the point
    _of_this_process = LoopThread()


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_forget)
