"""The one loop thread of a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from tests.support import ROOT, wait_until
from workers.loop import LoopThread, loop_thread


@pytest.fixture
def thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


async def here() -> tuple[asyncio.AbstractEventLoop, int]:
    return asyncio.get_running_loop(), threading.get_ident()


def test_every_run_uses_the_same_loop_in_another_thread(thread: LoopThread) -> None:
    loop, ident = thread.run(here())
    assert thread.run(here()) == (loop, ident)
    assert ident != threading.get_ident()


def test_the_coroutines_exception_is_the_callers(thread: LoopThread) -> None:
    async def fails() -> None:
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        thread.run(fails())


def test_its_own_timeout_error_is_not_taken_for_ours(thread: LoopThread) -> None:
    async def fails() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine"):
        thread.run(fails(), timeout_s=10)


def test_a_timeout_cancels_the_coroutine(thread: LoopThread) -> None:
    cancelled = threading.Event()

    async def sleeps() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(TimeoutError, match=r"0\.05 s: cancelled"):
        thread.run(sleeps(), timeout_s=0.05)
    assert cancelled.wait(10)


def test_run_from_its_own_thread_is_refused_instead_of_standing_still(thread: LoopThread) -> None:
    async def nested() -> None:
        thread.run(here())

    with pytest.raises(RuntimeError, match="await the coroutine there instead"):
        thread.run(nested(), timeout_s=10)


def test_it_works_where_a_loop_already_runs_as_in_a_notebook(thread: LoopThread) -> None:
    async def cell() -> bool:
        return thread.run(here())[0] is not asyncio.get_running_loop()

    assert asyncio.run(cell())


def test_many_threads_start_one_loop_together(thread: LoopThread) -> None:
    loops: list[asyncio.AbstractEventLoop] = []
    starters = [threading.Thread(target=lambda: loops.append(thread.run(here())[0])) for _ in range(8)]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join(10)
    assert len(loops) == 8
    assert len(set(loops)) == 1


def test_close_cancels_what_runs_and_ends_the_thread_and_the_next_run_starts_anew() -> None:
    thread, running, cancelled = LoopThread(), threading.Event(), threading.Event()

    async def sleeps() -> None:
        running.set()
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()

    _, ident = thread.run(here())
    worker = thread._thread
    assert worker is not None
    assert worker.ident == ident

    def wait() -> None:
        with pytest.raises(CancelledError):
            thread.run(sleeps())

    waiter = threading.Thread(target=wait)
    waiter.start()
    assert running.wait(10)
    thread.close()
    waiter.join(10)
    assert cancelled.is_set()
    assert not worker.is_alive()
    assert not waiter.is_alive()
    assert thread.run(here())[1] != 0
    thread.close()
    thread.close()


def test_one_a_process() -> None:
    assert loop_thread() is loop_thread()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")
def test_a_forked_child_has_a_loop_of_its_own() -> None:
    code = """
import os
from workers.loop import loop_thread
async def pid(): return os.getpid()
parents = loop_thread()
assert parents.run(pid(), 10) == os.getpid()
child = os.fork()
if child == 0:
    os._exit(0 if loop_thread() is not parents and loop_thread().run(pid(), 10) == os.getpid() else 1)
status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
loop_thread().close()
raise SystemExit(status)
"""
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False)
    assert ended.returncode == 0


def test_ctrl_c_in_the_caller_cancels_the_coroutine() -> None:
    code = """
import asyncio, sys, threading
from workers.loop import loop_thread
over = threading.Event()
async def sleeps():
    print("running", flush=True)
    try: await asyncio.sleep(60)
    finally: over.set()
try: loop_thread().run(sleeps())
except KeyboardInterrupt: sys.exit(7 if over.wait(10) else 1)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            time.sleep(0.05)  # the main thread has to be inside result(), of which nothing tells
            process.send_signal(2)
            wait_until(lambda: process.poll() is not None, "it ended", process=None)
        finally:
            process.kill()
    assert process.returncode == 7
