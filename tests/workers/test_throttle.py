"""How fast, by all workers together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SourceUnavailable
from workers.throttle import KEY, LONGEST_BLOCK_S, MICRO, SCRIPT, Ask, Rate, Throttle, gcra
from workers.wire import Wire

FIVE_A_SECOND = Rate("five", weight_per_period=5, period_s=1.0, burst=5)
ONE_A_MINUTE = Rate("slow:account", weight_per_period=1, period_s=60.0, burst=1)
FAST = Rate("fast", weight_per_period=200, period_s=1.0, burst=2)


# What the clocks of these tests show, the server's too: what is asserted are computed waits and no elapsed times.
NOW_S = 1000.0


async def alone(script: str, key: str, arguments: list[str | int]) -> None:
    """No server."""


@asynccontextmanager
async def workers_of(url: str, count: int) -> AsyncIterator[list[Ask]]:
    """What so many workers ask the server by, whose script finds `NOW_S` on its clock."""
    server = redis.asyncio.Redis.from_url(url)
    wires = [Wire(server, agent="", at_once=1) for _ in range(count)]

    def frozen(wire: Wire) -> Ask:
        async def ask(script: str, key: str, arguments: list[str | int]) -> list[int] | None:
            return await wire.ask(at(NOW_S, script), key, arguments)

        return ask

    try:
        yield [frozen(wire) for wire in wires]
        assert not any(wire.counts.http_shared_errors for wire in wires)
    finally:
        for wire in wires:
            await wire.close()
        await server.aclose()


def at(now_s: float, script: str = SCRIPT) -> str:
    """The script at that time of the server's clock."""
    clock = "redis.call('TIME')"
    assert script.count(clock) == 1
    return script.replace(clock, f"{{{now_s // 1:.0f}, {now_s % 1 * MICRO:.0f}}}")


def clock() -> float:
    return NOW_S


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 4)), min_size=1, max_size=60),
    st.integers(1, 20),
    st.integers(4, 10),
)
def test_no_window_ever_holds_more_than_the_burst_and_what_was_earned(
    asks: list[tuple[float, int]], per_second: int, burst: int
) -> None:
    tat, now, sent = 0.0, 1000.0, []
    for pause, weight in asks:
        now += pause
        tat, wait = gcra(tat, 0.0, now, weight=weight, interval=1 / per_second, burst=burst)
        assert wait >= 0.0
        sent.append((now + wait, weight))
    for first in range(len(sent)):
        for last in range(first, len(sent)):
            earned = (sent[last][0] - sent[first][0]) * per_second
            assert sum(weight for _, weight in sent[first : last + 1]) <= burst + earned + 1e-6


def test_reservations_are_in_order_and_at_the_rate() -> None:
    async def main() -> list[float]:
        throttle = Throttle(clock)
        return [throttle._reserve_here(FIVE_A_SECOND, 1, 60.0)[1] for _ in range(10)]

    assert asyncio.run(main()) == pytest.approx([0.0] * 5 + [0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_turn_after_the_deadline_is_refused_at_once_and_uses_nothing_up() -> None:
    async def main() -> None:
        throttle = Throttle(clock)
        assert await throttle.wait(ONE_A_MINUTE, 1, 10.0, alone) == 0.0
        for _ in range(3):
            with pytest.raises(SourceUnavailable) as caught:
                await throttle.wait(ONE_A_MINUTE, 1, 10.0, alone)
            assert str(caught.value) == (
                "the rate limit of slow leaves room in 60.0 s, and the deadline is in 10.0 s: "
                "ask for fewer at once, or again later."
            )

    asyncio.run(main())


def test_the_servers_rule_is_the_local_rule(url: str) -> None:
    """Same requests at the same times, once by Lua and once by Python."""

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(url) as server:
            for rate in (FIVE_A_SECOND, Rate("weights", 6000, 60.0, 100)):
                now_s = NOW_S
                interval_us = round(rate.interval_s * MICRO)
                here = Throttle(lambda: now_s)  # noqa: B023 - the clock of this very round
                for weight, pause_s in ((1, 0.0), (2, 0.25), (5, 0.5), (40, 3.0), (1, 0.0), (100, 20.0), (1, 100.0)):
                    now_s += pause_s
                    allowed, wait = await server.eval(
                        at(now_s), 1, KEY + rate.key, "reserve", weight, interval_us, rate.burst, 3600 * MICRO
                    )
                    assert allowed == 1
                    assert wait / MICRO == pytest.approx(here._reserve_here(rate, weight, 3600.0)[1], abs=2 / MICRO)

    asyncio.run(main())


def test_the_servers_clock_is_the_one_that_the_script_reads(url: str) -> None:
    arguments = ["reserve", 1, 60 * MICRO, 1, 3600 * MICRO]
    with redis.Redis.from_url(url) as server:
        server.eval(SCRIPT, 1, KEY + "real", *arguments)
        now = server.time()[0] * MICRO
        assert float(server.hget(KEY + "real", "tat")) > now  # a minute ahead, of which this took less


def test_two_workers_share_one_rate(url: str) -> None:
    async def main() -> list[float]:
        async with workers_of(url, 2) as asks:
            workers = [(Throttle(clock), ask) for ask in asks] * 5
            return await asyncio.gather(
                *(throttle._reserve(FIVE_A_SECOND, 1, 60.0, ask) for throttle, ask in workers),
            )

    # Apart each would have had five at once.
    assert sorted(asyncio.run(main())) == pytest.approx([0.0] * 5 + [0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_429_to_one_stops_the_other_and_the_key_expires(url: str) -> None:
    async def main() -> None:
        async with workers_of(url, 2) as (one, other):
            await Throttle(clock).learn(FAST, 429, {}, 30.0, one)
            with pytest.raises(SourceUnavailable, match=r"room in 30\.0 s"):
                await Throttle(clock).wait(FAST, 1, 5.0, other)

    asyncio.run(main())
    with redis.Redis.from_url(url) as server:
        assert 0 < server.pttl(KEY + FAST.key) <= 31_000


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("status", [429, 503])
def test_nobody_is_stopped_for_longer_than_an_hour(url: str, status: int, *, shared: bool) -> None:
    async def main() -> None:
        async with workers_of(url, 1) as (reached,):
            ask = reached if shared else alone
            throttle = Throttle(clock)
            await throttle.learn(FAST, status, {}, 3 * 86_400.0, ask)
            with pytest.raises(SourceUnavailable, match=rf"room in {LONGEST_BLOCK_S:.1f} s"):
                await (Throttle(clock) if shared else throttle).wait(FAST, 1, 5.0, ask)

    asyncio.run(main())


def test_a_stop_counts_for_those_too_who_had_their_moment(url: str) -> None:
    commands: list[str | int] = []

    async def main() -> None:
        async with workers_of(url, 2) as (one, other):

            async def stopped_meanwhile(script: str, key: str, arguments: list[str | int]) -> list[int] | None:
                commands.append(arguments[0])
                if arguments[0] == "look":  # its moment has come, and just before it this
                    await Throttle(clock).learn(rate, 429, {}, 30.0, other)
                return await one(script, key, arguments)

            throttle, rate = Throttle(clock), Rate("hundred", 100, 1.0, 1)
            assert await throttle.wait(rate, 1, 5.0, stopped_meanwhile) == 0.0
            with pytest.raises(SourceUnavailable, match=r"room in 30\.0 s"):
                await throttle.wait(rate, 1, 5.0, stopped_meanwhile)

    asyncio.run(main())
    assert commands == ["reserve", "reserve", "look", "reserve"]


def test_a_429_that_names_no_time_stops_for_the_period() -> None:
    async def main() -> None:
        throttle = Throttle(clock)
        await throttle.learn(Rate("k", 5, 2.0, 5), 429, {}, None, alone)
        with pytest.raises(SourceUnavailable, match=r"room in 2\.0 s"):
            await throttle.wait(Rate("k", 5, 2.0, 5), 1, 0.5, alone)

    asyncio.run(main())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("full", ["5400", "9" * 5000])
def test_the_servers_own_count_near_the_full_weight_stops_until_the_period_ends(
    url: str, full: str, *, shared: bool
) -> None:
    rate = Rate("binance", 6000, 600.0, 6000, used_header="X-MBX-USED-WEIGHT-1M")

    async def main() -> None:
        async with workers_of(url, 1) as (reached,):
            ask = reached if shared else alone
            throttle = Throttle(clock)
            await throttle.learn(rate, 200, {"X-MBX-USED-WEIGHT-1M": "5399"}, None, ask)
            assert await throttle.wait(rate, 1, 0.5, ask) == 0.0
            await throttle.learn(rate, 200, {"X-MBX-USED-WEIGHT-1M": full}, None, ask)
            # At 1000 s the second period of 600 s has 200 s to go.
            with pytest.raises(SourceUnavailable, match=r"room in 200\.0 s"):
                await (Throttle(clock) if shared else throttle).wait(rate, 1, 0.5, ask)

    asyncio.run(main())
