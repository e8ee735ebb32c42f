"""How fast, by all workers together."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
import redis
import redis.asyncio
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import SourceUnavailable
from workers.throttle import KEY, MICRO, SCRIPT, Rate, Throttle, gcra
from workers.wire import Wire

FIVE_A_SECOND = Rate("five", weight_per_period=5, period_s=1.0, burst=5)
ONE_A_MINUTE = Rate("slow:account", weight_per_period=1, period_s=60.0, burst=1)
FAST = Rate("fast", weight_per_period=200, period_s=1.0, burst=2)


async def alone(script: str, key: str, arguments: list[str | int]) -> None:
    """No server."""


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
        throttle = Throttle(clock=lambda: 1000.0)
        return [throttle._reserve_here(FIVE_A_SECOND, 1, 60.0)[1] for _ in range(10)]

    assert asyncio.run(main()) == pytest.approx([0.0] * 5 + [0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_turn_after_the_deadline_is_refused_at_once_and_uses_nothing_up() -> None:
    async def main() -> None:
        throttle = Throttle()
        assert await throttle.wait(ONE_A_MINUTE, 1, 10.0, alone) == 0.0
        for _ in range(3):
            with pytest.raises(SourceUnavailable, match=r"the rate limit of slow leaves room in (59\.\d|60\.0) s"):
                await throttle.wait(ONE_A_MINUTE, 1, 10.0, alone)

    asyncio.run(main())


def test_the_servers_rule_is_the_local_rule(url: str) -> None:
    """Same requests, once by Lua and once by Python."""

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(url) as server:
            for rate in (FIVE_A_SECOND, Rate("weights", 6000, 60.0, 100)):
                began = time.time()
                here = Throttle(clock=partial(float, began))
                for weight in (1, 2, 5, 40, 1, 100):
                    arguments = ["reserve", weight, round(rate.interval_s * MICRO), rate.burst, 3600 * MICRO]
                    allowed, wait = await server.eval(SCRIPT, 1, KEY + rate.key, *arguments)
                    assert allowed == 1
                    # What passed meanwhile on the server's clock shortens its waits.
                    mine = here._reserve_here(rate, weight, 3600.0)[1]
                    assert mine - (time.time() - began) - 0.01 <= wait / MICRO <= mine + 0.001

    asyncio.run(main())


def test_two_workers_share_one_rate(url: str) -> None:
    async def main() -> float:
        async with redis.asyncio.Redis.from_url(url) as server:
            wires = [Wire(server, agent="", at_once=1) for _ in range(2)]
            workers = [Throttle(), Throttle()]
            began = time.monotonic()
            await asyncio.gather(
                *(workers[number % 2].wait(FAST, 1, 60.0, wires[number % 2].ask) for number in range(102))
            )
            took_s = time.monotonic() - began
            for wire in wires:
                await wire.close()
            assert not any(wire.counts.http_shared_errors for wire in wires)
            return took_s

    # Two at once and a hundred at 200 a second: apart they would have needed half of it.
    assert asyncio.run(main()) >= 0.49


def test_a_429_to_one_stops_the_other_and_the_key_expires(url: str) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis.from_url(url) as server:
            one, other = (Wire(server, agent="", at_once=1) for _ in range(2))
            await Throttle().learn(FAST, 429, {}, 30.0, one.ask)
            with pytest.raises(SourceUnavailable, match=r"room in (29\.\d|30\.0) s"):
                await Throttle().wait(FAST, 1, 5.0, other.ask)
            await one.close()
            await other.close()

    asyncio.run(main())
    with redis.Redis.from_url(url) as server:
        assert 29_000 < server.pttl(KEY + FAST.key) < 32_000


def test_a_stop_counts_for_those_too_who_had_their_moment(url: str) -> None:
    async def main() -> float:
        async with redis.asyncio.Redis.from_url(url) as server:
            one, other = (Wire(server, agent="", at_once=1) for _ in range(2))
            throttle, rate = Throttle(), Rate("ten", 10, 1.0, 1)
            assert await throttle.wait(rate, 1, 5.0, one.ask) == 0.0
            began, began_at_s = time.monotonic(), time.time()
            waiting = asyncio.create_task(throttle.wait(rate, 1, 5.0, one.ask))  # its moment is in 0.1 s
            async with asyncio.timeout(10):
                while float(await server.hget(KEY + rate.key, "tat") or 0) < (began_at_s + 0.15) * MICRO:
                    pass  # until it is reserved
            await Throttle().learn(rate, 429, {}, 0.4, other.ask)
            await waiting
            await one.close()
            await other.close()
            return time.monotonic() - began

    assert asyncio.run(main()) >= 0.4


def test_a_429_that_names_no_time_stops_for_the_period() -> None:
    async def main() -> None:
        throttle = Throttle()
        await throttle.learn(Rate("k", 5, 2.0, 5), 429, {}, None, alone)
        with pytest.raises(SourceUnavailable, match=r"room in (1\.9|2\.0) s"):
            await throttle.wait(Rate("k", 5, 2.0, 5), 1, 0.5, alone)

    asyncio.run(main())


@pytest.mark.parametrize("shared", [False, True])
def test_the_servers_own_count_near_the_full_weight_stops_until_the_period_ends(url: str, *, shared: bool) -> None:
    rate = Rate("binance", 6000, 600.0, 6000, used_header="X-MBX-USED-WEIGHT-1M")

    async def main() -> None:
        async with redis.asyncio.Redis.from_url(url) as server:
            wire = Wire(server if shared else None, agent="", at_once=1)
            throttle = Throttle()
            await throttle.learn(rate, 200, {"X-MBX-USED-WEIGHT-1M": "5399"}, None, wire.ask)
            assert await throttle.wait(rate, 1, 0.5, wire.ask) == 0.0
            await throttle.learn(rate, 200, {"X-MBX-USED-WEIGHT-1M": "5400"}, None, wire.ask)
            left_s = 600 - time.time() % 600
            if left_s > 1.0:  # at the very end of a period there is nothing to wait for
                with pytest.raises(SourceUnavailable) as caught:
                    await (Throttle() if shared else throttle).wait(rate, 1, 0.5, wire.ask)
                assert abs(float(str(caught.value).split("room in ")[1].split(" s")[0]) - left_s) < 1.0
            await wire.close()

    asyncio.run(main())
