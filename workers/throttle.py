"""How fast one provider's account may be asked, by all workers together: GCRA by weight, and a stop that all obey.

GCRA (ITU-T I.371) needs one number, the theoretical arrival time: when the allowance used so far will have been earned.
Each request moves it on by its weight and waits until it is at most a burst ahead. So a request *reserves* its moment:
a thousand waiting workers ask once each, and come in order.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from runner.errors import SourceUnavailable

# Runs a Lua script on one key; None when the server did not answer, or there is none.
Ask = Callable[[str, str, list[str | int]], Awaitable[list[int] | None]]

KEY = "runner:http:rate:"
MICRO = 1_000_000
# At 90 % of the period's weight by the server's own count everyone waits for the next period: the rest is for requests
# that are under way, and for others behind the same address.
FULL_SHARE = 0.9
# After a 429 that names no time: until the period is over, but no longer than a minute, in which most providers count.
BLOCK_S = 60.0
# However long an answer that is no ban asks to wait, after an hour somebody looks again: one strange answer must not
# stop all workers for days, and a provider that means it says so again, once an hour.
LONGEST_BLOCK_S = 3600.0

# ARGV: "reserve" weight interval_us burst most_us | "look" | "block" us | "period" period_us
# Returns {1 when allowed, microseconds to wait}. The clock is the server's: the workers' clocks differ.
SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local state = redis.call('HMGET', KEYS[1], 'tat', 'blocked')
local tat, blocked = tonumber(state[1]) or 0, tonumber(state[2]) or 0
if ARGV[1] == 'look' then
  return {1, math.max(0, blocked - now)}
elseif ARGV[1] == 'block' then
  blocked = math.max(blocked, now + ARGV[2])
elseif ARGV[1] == 'period' then
  blocked = math.max(blocked, now + ARGV[2] - now % ARGV[2])
else
  local after = math.max(tat, blocked, now) + ARGV[2] * ARGV[3]
  local wait = math.max(0, blocked - now, after - ARGV[4] * ARGV[3] - now)
  if wait > tonumber(ARGV[5]) then return {0, wait} end
  redis.call('HSET', KEYS[1], 'tat', string.format('%.0f', after))
  redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(after, blocked) - now) / 1000) + 1000)
  return {1, wait}
end
redis.call('HSET', KEYS[1], 'blocked', string.format('%.0f', blocked))
redis.call('PEXPIRE', KEYS[1], math.ceil((math.max(tat, blocked) - now) / 1000) + 1000)
return {1, blocked - now}
"""


@dataclass(frozen=True, slots=True)
class Rate:
    """What a provider allows one account or address.

    Attributes:
        key: whose allowance it is, "binance" or "tiingo:<8 hex digits of the key's sha256>"; never the key itself.
        weight_per_period: sum of the requests' weights that ``period_s`` may hold.
        period_s: seconds.
        burst: weight that may be used at once after a rest.
        used_header: header in which the server tells the weight used in the running period, "" when it tells none.
    """

    key: str
    weight_per_period: int
    period_s: float
    burst: int
    used_header: str = ""

    @property
    def interval_s(self) -> float:
        """Seconds in which a weight of one is earned."""
        return self.period_s / self.weight_per_period


def gcra(tat: float, blocked: float, now: float, *, weight: int, interval: float, burst: int) -> tuple[float, float]:
    """The theoretical arrival time after this request, and how long the request waits; any unit of time."""
    after = max(tat, blocked, now) + weight * interval
    return after, max(0.0, blocked - now, after - burst * interval - now)


class Throttle:
    """The allowances of all accounts; the shared ones when a server answers, else this process's own.

    Safe to use from several threads.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._tat: dict[str, float] = {}
        self._blocked: dict[str, float] = {}

    async def wait(self, rate: Rate, weight: int, most_s: float, ask: Ask) -> float:
        """Return when the request may go out; the seconds that it waited.

        Raises:
            SourceUnavailable: its turn comes later than ``most_s`` seconds from now; nothing was used up.
        """
        waited = 0.0
        while True:
            wait_s = await self._reserve(rate, weight, most_s - waited, ask)
            if wait_s <= 0.0:
                return waited
            await asyncio.sleep(wait_s)
            waited += wait_s
            # A stop that came meanwhile counts for those too who had their moment already.
            if await self._blocked_s(rate, ask) <= 0.0:
                return waited

    async def learn(
        self, rate: Rate, status: int, headers: Mapping[str, str], retry_after_s: float | None, ask: Ask
    ) -> None:
        """Take from one answer what the server says about the allowance, and tell all workers."""
        used = headers.get(rate.used_header, "") if rate.used_header else ""
        if status in (429, 503) and retry_after_s is not None:
            await self._block(rate, min(retry_after_s, LONGEST_BLOCK_S), ask)
        elif status == 429:
            await self._block(rate, min(rate.period_s, BLOCK_S), ask)
        elif used.isdecimal() and float(used) >= FULL_SHARE * rate.weight_per_period:
            period_us = round(rate.period_s * MICRO)
            answer = await ask(SCRIPT, KEY + rate.key, ["period", period_us])
            # Without the server the own clock has to do.
            left_s = answer[1] / MICRO if answer else rate.period_s - self._clock() % rate.period_s
            self._block_here(rate, left_s)

    async def _reserve(self, rate: Rate, weight: int, most_s: float, ask: Ask) -> float:
        interval_us = max(1, round(rate.interval_s * MICRO))
        arguments: list[str | int] = ["reserve", weight, interval_us, rate.burst, max(0, round(most_s * MICRO))]
        answer = await ask(SCRIPT, KEY + rate.key, arguments)
        if answer:
            allowed, wait_s = bool(answer[0]), answer[1] / MICRO
        else:
            allowed, wait_s = self._reserve_here(rate, weight, most_s)
        if not allowed:
            raise SourceUnavailable(
                f"the rate limit of {rate.key.partition(':')[0]} leaves room in {wait_s:.1f} s, and the deadline is in "
                f"{most_s:.1f} s: ask for fewer at once, or again later."
            )
        return wait_s

    def _reserve_here(self, rate: Rate, weight: int, most_s: float) -> tuple[bool, float]:
        with self._lock:
            tat, blocked = self._tat.get(rate.key, 0.0), self._blocked.get(rate.key, 0.0)
            after, wait_s = gcra(tat, blocked, self._clock(), weight=weight, interval=rate.interval_s, burst=rate.burst)
            if wait_s > most_s:
                return False, wait_s
            self._tat[rate.key] = after
            return True, wait_s

    async def _blocked_s(self, rate: Rate, ask: Ask) -> float:
        answer = await ask(SCRIPT, KEY + rate.key, ["look"])
        return answer[1] / MICRO if answer else self._blocked.get(rate.key, 0.0) - self._clock()

    async def _block(self, rate: Rate, seconds: float, ask: Ask) -> None:
        self._block_here(rate, seconds)
        await ask(SCRIPT, KEY + rate.key, ["block", round(seconds * MICRO)])

    def _block_here(self, rate: Rate, seconds: float) -> None:
        with self._lock:
            self._blocked[rate.key] = max(self._blocked.get(rate.key, 0.0), self._clock() + seconds)
