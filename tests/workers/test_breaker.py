"""No requests to a host that fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
import redis.asyncio

from runner.errors import SourceUnavailable
from workers.breaker import KEY, LEAST_ATTEMPTS, LOOK_S, OPEN_S, PROBE_S, WINDOW_S, Breaker
from workers.wire import Wire


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def alone(script: str, key: str, arguments: list[str | int]) -> None:
    """No server."""


def fail(breaker: Breaker, times: int) -> bool:
    return sum(breaker.count(good=False) for _ in range(times)) > 0


def test_nineteen_failures_are_no_verdict_and_the_twentieth_is() -> None:
    breaker = Breaker("host", Clock())
    assert not fail(breaker, LEAST_ATTEMPTS - 1)
    assert breaker.count(good=False)


def test_it_takes_half_of_the_attempts() -> None:
    breaker = Breaker("host", Clock())
    for _ in range(30):
        assert not breaker.count(good=True)
    assert not fail(breaker, 29)
    assert breaker.count(good=False)


def test_what_was_longer_ago_than_the_window_does_not_count() -> None:
    clock = Clock()
    breaker = Breaker("host", clock)
    assert not fail(breaker, 19)
    clock.now += WINDOW_S
    assert not fail(breaker, 19)


def test_alone_it_opens_lets_one_probe_through_and_closes() -> None:
    async def main() -> None:
        clock = Clock()
        breaker = Breaker("host:443", clock)
        assert not await breaker.enter(alone)
        assert fail(breaker, 20)
        assert await breaker.act(alone, good=False, probe=False)
        with pytest.raises(SourceUnavailable, match=r"host:443 is not asked for another 15\.0 s"):
            await breaker.enter(alone)
        clock.now += OPEN_S
        assert await breaker.enter(alone)
        with pytest.raises(SourceUnavailable):
            await breaker.enter(alone)
        assert not await breaker.act(alone, good=True, probe=True)
        assert not await breaker.enter(alone)
        assert not fail(breaker, 19)

    asyncio.run(main())


def test_a_bad_probe_opens_it_again() -> None:
    async def main() -> None:
        clock = Clock()
        breaker = Breaker("host", clock)
        await breaker.open(OPEN_S, alone)
        clock.now += OPEN_S
        assert await breaker.enter(alone)
        assert await breaker.act(alone, good=False, probe=True)
        clock.now += OPEN_S - 0.1
        with pytest.raises(SourceUnavailable):
            await breaker.enter(alone)

    asyncio.run(main())


@pytest.mark.parametrize("lost", [False, True])
def test_a_probe_that_says_nothing_makes_room_for_another(*, lost: bool) -> None:
    async def main() -> None:
        clock = Clock()
        breaker = Breaker("host", clock)
        await breaker.open(OPEN_S, alone)
        clock.now += OPEN_S
        assert await breaker.enter(alone)
        if lost:
            clock.now += PROBE_S
        else:
            await breaker.act(alone, good=None, probe=True)
        assert await breaker.enter(alone)

    asyncio.run(main())


def test_it_asks_the_others_once_a_second_and_not_for_every_request() -> None:
    asked = 0

    async def ask(script: str, key: str, arguments: list[str | int]) -> list[int]:
        nonlocal asked
        asked += 1
        return [0, 0]

    async def main() -> None:
        clock = Clock()
        breaker = Breaker("host", clock)
        for _ in range(10):
            if not breaker.settled:
                await breaker.enter(ask)
        assert asked == 1
        clock.now += LOOK_S
        assert not breaker.settled

    asyncio.run(main())


@asynccontextmanager
async def two_workers(url: str) -> AsyncIterator[tuple[Wire, Wire]]:
    async with redis.asyncio.Redis.from_url(url) as server:
        wires = Wire(server, agent="", at_once=1), Wire(server, agent="", at_once=1)
        try:
            yield wires
        finally:
            for wire in wires:
                await wire.close()


def test_opened_by_one_worker_it_is_open_for_the_other_and_expires_with_the_key(url: str) -> None:
    async def main() -> None:
        async with two_workers(url) as (one, other):
            await Breaker("host", Clock()).open(OPEN_S, one.ask)
            theirs = Breaker("host", Clock())
            with pytest.raises(SourceUnavailable):
                await theirs.enter(other.ask)
            assert not await Breaker("another", Clock()).enter(other.ask)

    asyncio.run(main())
    with redis.Redis.from_url(url) as server:
        assert [key.decode() for key in server.keys("*")] == [f"{KEY}host"]
        assert 60_000 < server.pttl(f"{KEY}host") <= 1000 * OPEN_S + 60_000


def test_of_all_workers_one_makes_the_probe_and_closes_it_for_all(url: str) -> None:
    async def main() -> None:
        async with two_workers(url) as (one, other):
            mine, theirs, clock = Breaker("host", Clock()), Breaker("host", Clock()), Clock()
            await Breaker("host", clock).open(0.0, one.ask)  # open, and over at once
            assert await mine.enter(one.ask)
            with pytest.raises(SourceUnavailable):
                await theirs.enter(other.ask)
            await mine.act(one.ask, good=True, probe=True)
            third = Breaker("host", Clock())
            assert not await third.enter(other.ask)

    asyncio.run(main())


def test_a_longer_opening_is_not_cut_short_by_a_later_one(url: str) -> None:
    async def main() -> None:
        async with two_workers(url) as (one, other):
            await Breaker("host", Clock()).open(120.0, one.ask)  # a ban
            await Breaker("host", Clock()).open(OPEN_S, other.ask)
            with pytest.raises(SourceUnavailable, match=r"another 1\d\d\.\d s"):
                await Breaker("host", Clock()).enter(other.ask)

    asyncio.run(main())
