"""One child process of the executor, seen from both ends of its pipes.

It is ``python -c``, not a `multiprocessing` process: it never runs the user's main script again, needs no ``__main__``
guard, and may be started from anywhere, a Celery worker included. When its parent is gone it reads the end of its pipe
and exits.
"""

from __future__ import annotations

import io
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Final

from runner.errors import ExecutorError, StrategyError
from runner.strategy import dump_by_value

Reply = tuple[bool, Any]  # (True, value) or (False, exception)
# What a child holds: one chunk's payload in, an answer for each of its numbers out. It may end early.
Handler = Callable[[Any], Iterator[Reply]]
Write = Callable[[bytes | memoryview], int | None]

READ_BYTES = 1 << 20
PR_SET_PDEATHSIG = 1

# One thread in each child: N children of N BLAS threads each are slower than N children of one.
ONE_THREAD = dict.fromkeys(
    (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "BLIS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "POLARS_MAX_THREADS",
    ),
    "1",
)

# The parent's import path first, so that the child finds this module wherever the parent did.
BOOT = (
    "import sys; sys.path[:] = eval(sys.argv[1]); sys.argv[:] = sys.argv[2:]; from runner.child import serve; serve()"
)

# Packages that both sides have; numbers, strings and containers never even ask.
PLAIN = frozenset({"builtins", "collections", "datetime", "numpy", "pandas", "pyarrow", "runner"})

# A frame is its kind, the length of its body, and the body.
HEADER = struct.Struct("<BQ")
SECONDS = struct.Struct("<d")
REQUEST: Final = 0  # from the parent: the handler, then one payload a chunk
READY: Final = 1  # the handler is loaded
VALUE: Final = 2  # one answer of a chunk: a value
ERROR: Final = 3  # ... or an exception
END: Final = 4  # the chunk is done, in so many seconds
REFUSED: Final = 5  # its payload cannot be loaded
BROKEN: Final = 6  # the handler cannot be loaded, or is at fault itself: no chunk will do better


def start_child() -> subprocess.Popen[bytes]:
    """A process that waits for its handler; OSError when the system gives none."""
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]  # noqa: SLF001 -- as multiprocessing does
    path = ascii([entry for entry in sys.path if isinstance(entry, str)])
    return subprocess.Popen(
        [sys.executable, *flags, "-c", BOOT, path, *sys.argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env={**os.environ, **ONE_THREAD},
        # The terminal's Ctrl-C reaches the parent alone, which kills the children.
        start_new_session=True,
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
    )


def ending(code: int) -> str:
    """How a process ended, in words."""
    if code >= 0:
        return f"exit status {code if code < 256 else hex(code)}"  # Windows: a crash is a large number known by its hex
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    hint = " (the system does this when memory runs out: use fewer processes)" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


class _PlainPickler(pickle.Pickler):
    """For what holds no code of the user's: a tenth of cloudpickle's cost, and no search for local modules."""

    def reducer_override(self, thing: Any) -> Any:
        home = thing if hasattr(thing, "__qualname__") else type(thing)
        if str(getattr(home, "__module__", "")).partition(".")[0] in PLAIN:
            return NotImplemented
        raise pickle.PicklingError


def _dump_plain(thing: Any) -> bytes | None:
    file = io.BytesIO()
    try:
        _PlainPickler(file, protocol=5).dump(thing)
    except Exception:  # noqa: BLE001 -- cloudpickle may know better, and says what is wrong if it does not
        return None
    return file.getvalue()


def dump(thing: Any, what: str) -> bytes:
    """With all code that no installed package holds. Raises ExecutorError."""
    plain = _dump_plain(thing)
    if plain is not None:
        return plain
    try:
        return dump_by_value(thing)
    except StrategyError as error:
        raise ExecutorError(
            f"{what} cannot be sent to another process: {error.__cause__}. "
            "Create what cannot be pickled (a file, lock, connection) inside the function, or use threads=."
        ) from error.__cause__


def write_frame(write: Write, kind: int, body: bytes) -> None:
    """One frame, written whole: a write to a pipe may take a part only."""
    rest = memoryview(HEADER.pack(kind, len(body)) + body)
    while rest:
        rest = rest[write(rest) :]


def read_frames(stream: Any) -> Iterator[list[tuple[int, bytes]]]:
    """The frames as they come, as many at once as have come, until the other side closes the pipe."""
    buffer = bytearray()
    while data := stream.read(READ_BYTES):
        buffer += data
        frames, at = [], 0
        while len(buffer) >= at + HEADER.size:
            kind, size = HEADER.unpack_from(buffer, at)
            end = at + HEADER.size + size
            if len(buffer) < end:
                break
            frames.append((kind, bytes(buffer[at + HEADER.size : end])))
            at = end
        del buffer[:at]
        if frames:
            yield frames


def answer(kind: int, body: bytes) -> Reply:
    """What the child said, as objects of this process."""
    try:
        if kind == VALUE:
            return True, pickle.loads(body)  # noqa: S301 -- from our own child, through a pipe nobody else holds
        blob, told = pickle.loads(body)  # noqa: S301 -- as above
        error: Exception = pickle.loads(blob)  # noqa: S301 -- as above
    except Exception as problem:  # noqa: BLE001 -- a class whose unpickling fails raises anything
        return False, ExecutorError(
            f"the child's answer cannot be loaded here: {problem!r}. Return numbers, strings, arrays or frames."
        )
    error.__cause__ = ExecutorError(told)
    return False, error


def serve() -> None:
    """The life of a child: the handler first, then chunks, until the parent kills it or is gone."""
    import faulthandler

    requests, write = _take_pipes()
    _die_with_parent()
    with suppress(ValueError, OSError, RuntimeError):  # no usable stderr
        faulthandler.enable()  # a crash tells its line of Python
    inbox: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests, inbox), daemon=True).start()
    try:
        handler: Handler = pickle.loads(inbox.get())  # noqa: S301 -- from our own parent, through a pipe nobody else holds
    except BaseException as error:  # noqa: BLE001 -- an import may even exit
        cure = "Its imports must work in a new process started from this folder; or use threads=."
        told = f"the function cannot be loaded in a child process: {error!r}. {cure}"
        write_frame(write, BROKEN, _pack_error(error, told))
        return
    last_word = READY, b""
    while True:
        with suppress(OSError, ValueError, AttributeError):  # closed by the function, or None
            sys.stdout.flush()
        write_frame(write, *last_word)
        last_word = _serve_chunk(handler, inbox.get(), write)


def _take_pipes() -> tuple[io.FileIO, Write]:
    """The pipes to the parent, moved away from stdin and stdout: what a function reads or prints never touches them."""
    requests, replies = os.dup(0), os.dup(1)  # not inheritable: no grandchild keeps them open
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2 if sys.stderr is not None else nothing, 1)
    os.close(nothing)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    if hasattr(os, "register_at_fork"):
        # A fork would keep the pipe open when this process dies, and so the parent waiting.
        os.register_at_fork(after_in_child=partial(os.close, replies))
    return io.FileIO(requests), partial(os.write, replies)


def _die_with_parent() -> None:
    """On Linux also when a function holds the GIL for ever, so that the end of the pipe is never seen."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _receive(requests: io.FileIO, inbox: queue.SimpleQueue[bytes]) -> None:
    """Runs in a thread: it hears what the parent sends, and its end, even while a function runs."""
    with suppress(OSError):  # Windows: a broken pipe
        for frames in read_frames(requests):
            for _, body in frames:
                inbox.put(body)
    os._exit(1)


def _serve_chunk(handler: Handler, request: bytes, write: Write) -> tuple[int, bytes]:
    """Send the answers; the frame that ends them is returned."""
    try:
        payload = pickle.loads(request)  # noqa: S301 -- from our own parent
    except Exception as error:  # noqa: BLE001 -- a class whose unpickling fails raises anything
        told = f"the item cannot be loaded in a child process: {error!r}. Pass numbers, strings, arrays or frames."
        return REFUSED, _pack_error(error, told)
    began = time.perf_counter()
    try:
        for ok, value in handler(payload):
            kind, body = _pack(value) if ok else (ERROR, _pack_error(value))
            write_frame(write, kind, body)
    except Exception as error:  # noqa: BLE001 -- a fault of the handler's own: the parent raises it
        return BROKEN, _pack_error(error)
    return END, SECONDS.pack(time.perf_counter() - began)


def _pack(value: Any) -> tuple[int, bytes]:
    plain = _dump_plain(value)
    if plain is not None:
        return VALUE, plain
    import cloudpickle

    try:
        return VALUE, cloudpickle.dumps(value)
    except Exception as error:  # noqa: BLE001 -- pickling calls the user's code, which raises anything
        told = f"the result, a {type(value).__name__}, cannot be sent back: {error}. Return numbers, arrays or frames."
        return ERROR, _pack_error(error, told)


def _pack_error(error: BaseException, told: str | None = None) -> bytes:
    """An exception and its traceback; as an ExecutorError when ``told`` is given or it does not survive the journey."""
    import cloudpickle

    text = "".join(traceback.format_exception(error))
    sent = error if told is None else ExecutorError(told)
    try:
        blob = cloudpickle.dumps(sent)
        pickle.loads(blob)  # noqa: S301 -- made in the line above: many exceptions pickle but do not load
    except Exception:  # noqa: BLE001 -- as for results
        line = "".join(traceback.format_exception_only(error)).strip()
        blob = pickle.dumps(ExecutorError(f"{line} (the exception itself cannot be sent between processes)"))
    return pickle.dumps((blob, f"in process {os.getpid()}:\n{text}"))
