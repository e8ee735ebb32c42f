"""Work in numbered chunks, and those who do it: this thread, several threads, or child processes.

The work is told everything from the thread that called the driver, so it needs no lock. A child answers number by
number: when it dies, the number that killed it is known and the answers before it are kept.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from runner.child import (
    BROKEN,
    END,
    ERROR,
    READY,
    REFUSED,
    REQUEST,
    SECONDS,
    VALUE,
    Handler,
    Reply,
    answer,
    dump,
    ending,
    read_frames,
    start_child,
    write_frame,
)
from runner.errors import ExecutorError, RunTimeoutError

CHUNK_GROWTH = 16  # a number that costs less than the pipe reaches full chunks in four steps
LEAST_SHARE = 16  # of a full chunk: the workers end that much of chunk_s apart
POLL_S = 0.05  # how late a timeout may be noticed; and Windows cannot interrupt a wait for Ctrl-C, so it is short
CLOSE_S = 2.0  # for a child that has closed its pipe to end by itself; one that was killed needs none of it
START_LIMIT_S = 60.0  # on top of timeout_s, for a child to start and import what the function needs


@dataclass(slots=True)
class Chunk:
    """Numbers start..stop-1 of some work, and what is sent for them; ``at`` is the first without an answer."""

    start: int
    stop: int
    payload: Any
    at: int = field(init=False)

    def __post_init__(self) -> None:
        self.at = self.start


class Work(Protocol):
    """Chunks to hand out, and a place for what comes back."""

    @property
    def finished(self) -> bool:
        """Nothing is left to hand out or to wait for."""

    def take(self) -> Chunk | None:
        """The next chunk for an idle worker; None when every number is handed out."""

    def reply(self, chunk: Chunk, reply: Reply) -> None:
        """One answer, for ``chunk.at`` and perhaps more: the work moves it on."""

    def done(self, chunk: Chunk, seconds: float) -> None:
        """The worker has ended the chunk, perhaps before its last number."""

    def refused(self, chunk: Chunk, error: ExecutorError) -> None:
        """The payload cannot be pickled, or not be loaded by the child."""

    def lost(self, chunk: Chunk, error: ExecutorError | RunTimeoutError) -> None:
        """The child died, or was killed for time."""


class Ranges:
    """The numbers not handed out yet, and how many of them make a chunk of about ``chunk_s``."""

    def __init__(self, ranges: Iterable[tuple[int, int]], workers: int, *, chunk_s: float, first: int = 1) -> None:
        self._pending = deque((start, stop) for start, stop in ranges if stop > start)
        self._left = sum(stop - start for start, stop in self._pending)
        self._workers = workers
        self._chunk_s = chunk_s
        self._size = first

    def take(self) -> tuple[int, int] | None:
        """The next range, of one of the ranges given or put back; None when nothing is left."""
        if not self._pending:
            return None
        start, stop = self._pending.popleft()
        # Half of an even share, so that the last chunks end at about the same time; but no crumbs.
        share = self._left // (2 * self._workers)
        size = max(1, self._size // LEAST_SHARE, min(self._size, share))
        if stop - start > size:
            self._pending.appendleft((start + size, stop))
            stop = start + size
        self._left -= stop - start
        return start, stop

    def put_back(self, start: int, stop: int) -> None:
        """These come next, as a range of their own."""
        if stop > start:
            self._pending.appendleft((start, stop))
            self._left += stop - start

    def measured(self, count: int, seconds: float) -> None:
        """A chunk of ``count`` numbers took this long."""
        if count:
            fitting = count * self._chunk_s / max(seconds, 1e-9)
            self._size = max(1, int(min(fitting, count * CHUNK_GROWTH)))


def run_here(handler: Handler, work: Work) -> None:
    """All of the work in the calling thread."""
    while not work.finished:
        chunk = work.take()
        assert chunk is not None, "work that is not finished has a chunk to take when none is out"  # noqa: S101 -- states it
        began = time.perf_counter()
        for reply in handler(chunk.payload):
            work.reply(chunk, reply)
        work.done(chunk, time.perf_counter() - began)


def run_in_threads(handler: Handler, work: Work, *, threads: int) -> None:
    """All of the work in threads. After an error or Ctrl-C they end with the item they are at."""
    _run(work, lambda events: _Thread(events, handler), threads)


def run_in_processes(
    handler: Handler, work: Work, *, processes: int, timeout_s: float | None = None, name: str = "the function"
) -> None:
    """All of the work in child processes, which are gone on return, however it returns.

    Args:
        handler: sent once to each child, by value.
        work: the chunks; their payloads are pickled.
        processes: how many children.
        timeout_s: a child that gives no answer for so long is killed. None waits for ever.
        name: of the user's function, for messages.

    Raises:
        ExecutorError: the handler cannot be pickled, or not be loaded by the child, or no child can be started.
    """
    if work.finished:
        return
    if not sys.executable:
        raise ExecutorError(
            "this program embeds Python, so no child can be started: use threads= instead of processes=."
        )
    blob = dump(handler, f"function {name}")
    _run(work, lambda events: _Child(events, blob, name), processes, timeout_s)


def _run(
    work: Work, make: Callable[[queue.SimpleQueue[_Event]], _Worker], count: int, timeout_s: float | None = None
) -> None:
    events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
    crew = [make(events) for _ in range(count)]
    try:
        for worker in crew:
            worker.start()
        while not work.finished:
            _hand_out(work, crew)
            if (event := _next(events)) is not None:
                _take_in(event, work)
                if event.kind == "dead" and not work.finished:
                    crew.remove(event.worker)
                    crew.append(make(events))  # before it starts: Ctrl-C finds it in the crew
                    crew[-1].start()
            for worker in crew:
                worker.kill_if_silent(timeout_s)
    finally:
        for worker in crew:
            worker.kill()
        for worker in crew:
            worker.see_off()


def _next(events: queue.SimpleQueue[_Event]) -> _Event | None:
    try:
        return events.get(timeout=POLL_S)
    except queue.Empty:
        return None


def _hand_out(work: Work, crew: list[_Worker]) -> None:
    for worker in crew:
        if worker.ready and worker.chunk is None and not worker.late:
            chunk = work.take()
            if chunk is None:
                return
            worker.hand(chunk)


def _take_in(event: _Event, work: Work) -> None:
    worker, chunk = event.worker, event.worker.chunk
    if event.kind == "broken":
        raise event.data
    if event.kind == "ready":
        worker.ready = True
    elif event.kind == "dead" and not worker.ready:
        raise ExecutorError(f"{worker.title} did not start: {event.data}. What it wrote to stderr says more.")
    elif chunk is not None and event.kind == "replies":
        for reply in event.data:
            work.reply(chunk, reply)
    elif chunk is not None:
        worker.chunk = None  # before the work is told: it may raise
        if event.kind == "end":
            work.done(chunk, event.data)
        elif event.kind == "refused":
            work.refused(chunk, event.data)
        else:
            work.lost(chunk, RunTimeoutError("no answer in time") if worker.late else ExecutorError(event.data))


@dataclass(frozen=True, slots=True)
class _Event:
    """What a worker's thread tells the driver: ready, replies, end, refused, dead or broken."""

    worker: _Worker
    kind: str
    data: Any = None


class _Worker(threading.Thread):
    """One thread that works through the chunks it is handed, one at a time, and posts what comes of them."""

    title = "a thread"

    def __init__(self, events: queue.SimpleQueue[_Event]) -> None:
        super().__init__(daemon=True, name="runner-executor")
        self.ready = False
        self.late = False
        self.chunk: Chunk | None = None
        self.inbox: queue.SimpleQueue[Chunk | None] = queue.SimpleQueue()
        self._events = events

    def hand(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.inbox.put(chunk)

    def post(self, kind: str, data: Any = None) -> None:
        self._events.put(_Event(self, kind, data))

    def kill(self) -> None:
        """End it as soon as can be."""

    def kill_if_silent(self, timeout_s: float | None) -> None:
        """Kill it when it has not answered in time."""

    def see_off(self) -> None:
        """Wait for what `kill` ends at once."""


class _Thread(_Worker):
    """A worker that runs the handler itself."""

    def __init__(self, events: queue.SimpleQueue[_Event], handler: Handler) -> None:
        super().__init__(events)
        self.ready = True
        self._handler = handler
        self._stopped = False

    def run(self) -> None:
        try:
            while (chunk := self.inbox.get()) is not None:
                began = time.perf_counter()
                for reply in self._handler(chunk.payload):
                    self.post("replies", [reply])
                    if self._stopped:
                        return
                self.post("end", time.perf_counter() - began)
        except Exception as error:  # noqa: BLE001 -- the driver raises it
            self.post("broken", error)

    def kill(self) -> None:
        self._stopped = True
        self.inbox.put(None)

    def see_off(self) -> None:
        if self.ident is not None:
            self.join(None if self.chunk is None else POLL_S)  # the user's function may run for long yet


class _Child(_Worker):
    """A worker whose chunks run in a child process; the thread starts it, talks with it, and sees it off."""

    def __init__(self, events: queue.SimpleQueue[_Event], blob: bytes, name: str) -> None:
        super().__init__(events)
        self.title = f"the process for {name}"
        self._blob = blob
        self._process: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._starting = threading.Lock()
        self._heard = time.monotonic()

    def run(self) -> None:
        told = "it was not started"
        try:
            process = self._start_process()
            if process is not None:
                told = self._see_through(process)
        except OSError as error:
            told = str(error)
        except Exception as error:  # noqa: BLE001 -- a driver that hears nothing would wait for ever
            self.post("broken", error)
        self.post("dead", told)

    def kill(self) -> None:
        with self._starting:
            self._killed = True
            if self._process is not None:
                self._process.kill()
        self.inbox.put(None)

    def kill_if_silent(self, timeout_s: float | None) -> None:
        if timeout_s is None or (self.ready and self.chunk is None):
            return
        if time.monotonic() - self._heard > timeout_s + (0 if self.ready else START_LIMIT_S):
            self.late = True
            self.kill()

    def hand(self, chunk: Chunk) -> None:
        self._heard = time.monotonic()
        super().hand(chunk)

    def see_off(self) -> None:
        if self.ident is not None:
            self.join(CLOSE_S)

    def _start_process(self) -> subprocess.Popen[bytes] | None:
        # Not in the main thread: there Ctrl-C could come between the start and the first line that knows of it.
        with self._starting:
            if not self._killed:
                self._process = start_child()
            return self._process

    def _see_through(self, process: subprocess.Popen[bytes]) -> str:
        """Talk until there is nothing more to say or the child is gone; how it ended, in words."""
        with process:
            try:
                self._talk(process)
            except (OSError, EOFError):
                pass  # the child is gone; how it went, its exit status tells
            except BaseException:
                process.kill()
                raise
            with suppress(OSError):  # it is gone with unread bytes in its pipe
                process.stdin.close()  # type: ignore[union-attr]  # a pipe: start_child asks for one
            try:
                process.wait(CLOSE_S)
            except subprocess.TimeoutExpired:
                process.kill()
        return ending(process.returncode)

    def _talk(self, process: subprocess.Popen[bytes]) -> None:
        frames = read_frames(process.stdout)
        write = partial(write_frame, process.stdin.write, REQUEST)  # type: ignore[union-attr]
        write(self._blob)
        self._listen(frames)
        while (chunk := self.inbox.get()) is not None:
            try:
                payload = dump(chunk.payload, "the item")
            except ExecutorError as error:
                self.post("refused", error)
                continue
            self._heard = time.monotonic()
            write(payload)
            self._listen(frames)

    def _listen(self, frames: Iterator[list[tuple[int, bytes]]]) -> None:
        """Post what the child says until it has said the last word on what it was sent."""
        for batch in frames:
            self._heard = time.monotonic()
            replies = [answer(kind, body) for kind, body in batch if kind in (VALUE, ERROR)]
            if replies:
                self.post("replies", replies)
            kind, body = batch[-1]
            if kind == READY:
                self.post("ready")
            elif kind == END:
                self.post("end", SECONDS.unpack(body)[0])
            elif kind in (REFUSED, BROKEN):
                error = answer(ERROR, body)[1]
                self.post("refused" if kind == REFUSED else "broken", error)
            if kind not in (VALUE, ERROR):
                return
        raise EOFError
