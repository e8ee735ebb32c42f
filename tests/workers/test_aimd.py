"""How many at once."""

from __future__ import annotations

import asyncio

import pytest

from workers.aimd import DECREASE, LEAST, MOST, Limiter, aimd


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_success_at_the_limit_adds_one_a_round() -> None:
    limit = 10.0
    for _ in range(10):
        limit = aimd(limit, dropped=False, in_use=True)
    assert 10.9 < limit < 11.0


def test_a_success_below_the_limit_says_nothing() -> None:
    assert aimd(10.0, dropped=False, in_use=False) == 10.0


def test_a_drop_takes_its_share_down_to_one() -> None:
    assert aimd(10.0, dropped=True, in_use=True) == 10.0 * DECREASE
    assert aimd(1.2, dropped=True, in_use=True) == LEAST


def test_it_never_leaves_its_bounds() -> None:
    assert aimd(MOST, dropped=False, in_use=True) == MOST
    assert aimd(3.9, dropped=False, in_use=True, most=4.0) == 4.0


def test_requests_of_one_round_trip_decrease_it_once() -> None:
    clock = Clock()
    limiter = Limiter(20.0, clock=clock)
    for _ in range(20):
        assert limiter.try_acquire()
    sent = clock.now
    clock.now += 0.1
    for _ in range(20):
        limiter.release(sent, dropped=True)
    assert limiter.limit == 20.0 * DECREASE
    assert limiter.try_acquire()
    limiter.release(clock.now, dropped=True)
    assert limiter.limit == pytest.approx(20.0 * DECREASE**2)


def test_an_unknown_outcome_changes_nothing() -> None:
    limiter = Limiter(1.0)
    assert limiter.try_acquire()
    limiter.release(limiter.clock(), dropped=None)
    assert limiter.limit == 1.0
    assert limiter.under_way == 0


def test_waiters_come_in_order_and_never_more_than_the_limit() -> None:
    async def main() -> None:
        limiter, order, most = Limiter(3.0, 3.0), [], 0

        async def work(number: int) -> None:
            nonlocal most
            await limiter.acquire()
            order.append(number)
            most = max(most, limiter.under_way)
            await asyncio.sleep(0)
            limiter.release(limiter.clock(), dropped=False)

        await asyncio.gather(*(work(number) for number in range(50)))
        assert order == list(range(50))
        assert most == 3
        assert limiter.under_way == 0

    asyncio.run(main())


def test_a_free_place_is_not_taken_past_those_who_wait() -> None:
    async def main() -> None:
        limiter = Limiter(1.0)
        await limiter.acquire()
        waiter = asyncio.create_task(limiter.acquire())
        await asyncio.sleep(0)
        limiter.release()
        assert not limiter.try_acquire()
        await waiter
        assert limiter.under_way == 1

    asyncio.run(main())


@pytest.mark.parametrize("woken", [False, True])
def test_a_cancelled_waiter_loses_no_place(*, woken: bool) -> None:
    async def main() -> None:
        limiter = Limiter(1.0, 1.0)
        await limiter.acquire()
        first, second = (asyncio.create_task(limiter.acquire()) for _ in range(2))
        await asyncio.sleep(0)
        if woken:
            limiter.release()  # the place is the first's, which is cancelled before it can take it
            first.cancel()
        else:
            first.cancel()
            await asyncio.sleep(0)
            limiter.release()
        await asyncio.wait_for(second, 10)
        assert first.cancelled()
        limiter.release()
        assert limiter.under_way == 0
        assert limiter.try_acquire()

    asyncio.run(main())
