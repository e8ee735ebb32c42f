import contextlib
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from runner.engine import deadline as module
from runner.engine.deadline import deadline
from runner.errors import RunTimeoutError


def in_this_thread(function: Callable[[], Any]) -> Any:
    return function()


def in_another_thread(function: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()


either_thread = pytest.mark.parametrize("somewhere", [in_this_thread, in_another_thread])


def for_ever() -> None:
    while True:
        pass


def after_a_while(k: int) -> int:
    time.sleep(0.02)
    return k


def swallowing_for(seconds: float) -> str:
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        with contextlib.suppress(Exception):  # what a careless user writes
            for_ever()
    return "done"


@either_thread
def test_an_endless_loop_is_interrupted(somewhere: Callable[..., Any]) -> None:
    def work() -> float:
        started = time.monotonic()
        with deadline(0.1) as limit, pytest.raises(RunTimeoutError, match=r"longer than run_timeout_s=0\.1"):
            limit.call(for_ever)
        return time.monotonic() - started

    assert 0.1 <= somewhere(work) < 2


@either_thread
def test_swallowing_the_interruption_does_not_help(somewhere: Callable[..., Any]) -> None:
    def work() -> None:
        with deadline(0.05) as limit, pytest.raises(RunTimeoutError):
            limit.call(swallowing_for, 0.3)

    somewhere(work)


@either_thread
def test_each_call_has_the_whole_limit_and_results_pass(somewhere: Callable[..., Any]) -> None:
    def work() -> list[int]:
        with deadline(0.2) as limit:
            return [limit.call(after_a_while, k) for k in range(30)]

    assert somewhere(work) == list(range(30))


@either_thread
def test_the_calls_own_error_passes(somewhere: Callable[..., Any]) -> None:
    def work() -> None:
        with deadline(1.0) as limit, pytest.raises(ZeroDivisionError):
            limit.call(lambda: 1 / 0)

    somewhere(work)


@either_thread
def test_nothing_arrives_after_calls_that_end_near_the_limit(somewhere: Callable[..., Any]) -> None:
    def work() -> int:
        late = 0
        with deadline(0.002) as limit:
            for k in range(300):
                ends = time.monotonic() + 0.002 + (k % 21 - 10) * 1e-5
                try:
                    limit.call(lambda ends=ends: [None for _ in iter(lambda: time.monotonic() < ends, False)])
                except RunTimeoutError:
                    late += 1
        for _ in range(20_000):  # bytecode for a late delivery to hit
            pass
        return late

    assert 0 < somewhere(work) <= 300


def test_the_main_thread_is_woken_from_sleep() -> None:
    started = time.monotonic()
    with deadline(0.1) as limit, pytest.raises(RunTimeoutError):
        limit.call(lambda: time.sleep(30))
    assert time.monotonic() - started < 5


def test_the_previous_handler_and_timer_come_back() -> None:
    rung = threading.Event()
    handler = signal.signal(signal.SIGALRM, lambda *_: rung.set())
    timer = signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with deadline(5.0) as limit:
            limit.call(time.sleep, 0.1)
            assert not rung.is_set()
        assert rung.wait(2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, handler)


def test_no_thread_is_left() -> None:
    before = threading.active_count()

    def work() -> None:
        with deadline(1.0) as limit:
            limit.call(int)

    in_another_thread(work)
    assert threading.active_count() == before


def test_no_limit_calls_straight_through() -> None:
    with deadline(None) as limit:
        assert type(limit) is module.NoDeadline
        assert limit.call(int, "7") == 7
