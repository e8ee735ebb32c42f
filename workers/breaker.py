"""No requests to a host that fails: all workers stop together, and one of them looks whether it is well again.

closed ──half of at least 20 attempts in 30 s failed──► open ──15 s later──► half-open: one probe ──good──► closed
                                                          ▲──────────────────bad──────────────┘
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable

from runner.errors import SourceUnavailable

# Runs a Lua script on one key; None when the server did not answer, or there is none.
Ask = Callable[[str, str, list[str | int]], Awaitable[list[int] | None]]

KEY = "runner:http:breaker:"
MILLI = 1000
# Twenty attempts, so that two failures out of three are no verdict; thirty seconds, so that it is about now.
FAILED_SHARE, LEAST_ATTEMPTS, WINDOW_S = 0.5, 20, 30
# Half the window: a fault of seconds costs seconds.
OPEN_S = 15.0
# A probe that says nothing for so long is given up, and the next one may go: so long one attempt waits for a byte.
PROBE_S = 30.0
# How old the knowledge that the others see no reason to stop may be.
LOOK_S = 1.0

CLOSED, OPEN, PROBE = 0, 1, 2

# ARGV: "enter" probe_ms | "open" open_ms probe_ms | "close" | "release". Returns {state, milliseconds}.
# The key outlives the opening by a minute, in which a probe has to find the host well; then all is forgotten.
SCRIPT = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[1] == 'close' then
  redis.call('DEL', KEYS[1])
  return {0, 0}
elseif ARGV[1] == 'release' then
  redis.call('HDEL', KEYS[1], 'probe')
  return {0, 0}
end
local state = redis.call('HMGET', KEYS[1], 'until', 'probe')
local open, probe = tonumber(state[1]) or 0, tonumber(state[2]) or 0
if ARGV[1] == 'open' then
  open = math.max(open, now + ARGV[2])
  redis.call('HSET', KEYS[1], 'until', string.format('%.0f', open))
  redis.call('HDEL', KEYS[1], 'probe')
  redis.call('PEXPIRE', KEYS[1], math.ceil(open - now) + 60000)
  return {1, open - now}
end
if open == 0 then return {0, 0} end
local stop = math.max(open, probe)
if now < stop then return {1, stop - now} end
redis.call('HSET', KEYS[1], 'probe', string.format('%.0f', now + ARGV[2]))
return {2, 0}
"""


class Breaker:
    """One host, as seen from this process; with a server, opened and closed for all.

    Safe to use from several threads, of which an attempt may go uncounted.
    """

    def __init__(self, host: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.host = host
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[list[int]] = deque([[0, 0, 0]], WINDOW_S)  # [second, attempts, failures]
        self._open_until: float | None = None  # None: closed
        self._probe_until = 0.0
        self._looked_at = -LOOK_S

    @property
    def settled(self) -> bool:
        """Closed, and looked at a moment ago: nothing to wait for."""
        return self._open_until is None and self._clock() - self._looked_at < LOOK_S

    async def enter(self, ask: Ask) -> bool:
        """Return when the host may be asked; True when this attempt is the probe, on which the others wait.

        Raises:
            SourceUnavailable: it is open; says for how long.
        """
        now = self._clock()
        if self._open_until is not None and now < self._open_until:
            raise self._refusal(self._open_until - now)
        if self.settled:
            return False
        self._looked_at = now
        answer = await ask(SCRIPT, KEY + self.host, ["enter", round(PROBE_S * MILLI)])
        state, wait_s = (answer[0], answer[1] / MILLI) if answer else self._enter_here()
        if state == OPEN:
            if answer:
                self._open_until = self._clock() + wait_s
            raise self._refusal(wait_s)
        if state == CLOSED:
            self._close_here()
        return state == PROBE

    def count(self, *, good: bool) -> bool:
        """Count one attempt; whether the last 30 s are now reason to open."""
        now, second = int(self._clock()), self._seconds[-1]
        if good and second[0] == now:
            second[1] += 1
            return False
        with self._lock:
            if self._seconds[-1][0] != now:
                self._seconds.append([now, 0, 0])
            self._seconds[-1][1] += 1
            self._seconds[-1][2] += not good
            window = [second for second in self._seconds if second[0] > now - WINDOW_S]
            attempts, failures = sum(second[1] for second in window), sum(second[2] for second in window)
            enough = attempts >= LEAST_ATTEMPTS and failures >= FAILED_SHARE * attempts
            return enough and not good and self._open_until is None

    async def act(self, ask: Ask, *, good: bool | None, probe: bool) -> bool:
        """Do what ``count`` found reason for, or what the probe's outcome asks for; whether it is open now.

        Args:
            ask: reaches the other workers.
            good: the host answered in order; None when nothing can be told, as after a cancellation.
            probe: what ``enter`` said.
        """
        if probe and good:
            self._close_here()
            await ask(SCRIPT, KEY + self.host, ["close"])
        elif probe and good is None:
            self._probe_until = 0.0
            await ask(SCRIPT, KEY + self.host, ["release"])  # another one may go
        else:
            await self.open(OPEN_S, ask)
            return True
        return False

    async def open(self, seconds: float, ask: Ask) -> None:
        """No requests for so long, from any worker; also what a ban does."""
        with self._lock:
            self._open_until = max(self._open_until or 0.0, self._clock() + seconds)
            self._probe_until = 0.0
            self._start_over()
        await ask(SCRIPT, KEY + self.host, ["open", round(seconds * MILLI)])

    def _enter_here(self) -> tuple[int, float]:
        with self._lock:
            if self._open_until is None:
                return CLOSED, 0.0
            now = self._clock()
            wait_s = max(self._open_until, self._probe_until) - now
            if wait_s > 0.0:
                return OPEN, wait_s
            self._probe_until = now + PROBE_S
            return PROBE, 0.0

    def _close_here(self) -> None:
        with self._lock:
            if self._open_until is not None:
                self._open_until = None
                self._start_over()

    def _start_over(self) -> None:
        self._seconds.append([int(self._clock()), 0, 0])
        while len(self._seconds) > 1:
            self._seconds.popleft()

    def _refusal(self, wait_s: float) -> SourceUnavailable:
        return SourceUnavailable(
            f"{self.host} is not asked for another {wait_s:.1f} s: it banned us, or its last answers were errors."
        )
