"""When an attempt is made again, and after how long. Pure rules; the client that reads the body owns the loop."""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC
from email.utils import parsedate_to_datetime

# Statuses that say "not now": RFC 9110 15.5.9 and 15.6, RFC 6585 section 4 (429), RFC 8470 (425).
RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# Binance's answer to whoever went on after a 429: the address is banned, and every further request makes it longer.
BANNED = 418
# Binance's longest ban. Whoever asks for more means it no better, or is broken.
LONGEST_BAN_S = 3 * 86_400.0
# What RFC 9110 allows, and the fraction that some send; float() would read "1e300" and "inf" too.
SECONDS = re.compile(r"[0-9]+(\.[0-9]+)?")

FACTOR = 2.0
# Three retries wait 1.75 s on average: long enough for a restart behind a balancer.
BASE_S = 0.5
# A wait beyond half a minute is the server's to ask for, by Retry-After.
MOST_S = 30.0

# Google's SRE book, "Handling Overload": with retries at 10 % a fault costs 1.1 times the load, not 4 times.
BUDGET_SHARE = 0.1
BUDGET_WINDOW_S = 60
# So that a handful of requests, of which 10 % are none, can still make their three retries each.
BUDGET_FLOOR = 10


def failed(status: int) -> bool:
    """Whether an answer with this status is none: the host's own trouble, or that it had enough of us."""
    return status >= 500 or status in RETRIED or status == BANNED


def backoff_s(retry: int, base_s: float = BASE_S) -> float:
    """Seconds before retry number ``retry`` (from 0): full jitter, ``uniform(0, min(30, base_s * 2**retry))``.

    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    return random.uniform(0.0, min(MOST_S, base_s * FACTOR**retry))  # noqa: S311 - spreads load, guards nothing


def retry_after_s(header: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header asks to wait, three days at most; None when there is none or it says nothing.

    Args:
        header: seconds or an HTTP-date (RFC 9110, 10.2.3).
        now_s: the present, seconds since 1970.
    """
    text = (header or "").strip()
    if SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        try:
            when = parsedate_to_datetime(text)
            seconds = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp() - now_s
        except (ValueError, OverflowError):
            return None
    return min(max(0.0, seconds), LONGEST_BAN_S)


class Budget:
    """Retries may be 10 % of the last minute's requests, or ten: a provider in trouble gets no storm on top.

    Safe to use from several threads, of which a request may go uncounted.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[list[int]] = deque([[0, 0, 0]], BUDGET_WINDOW_S)  # [second, requests, retries]

    def request(self) -> None:
        """One more request was made."""
        now, second = int(self._clock()), self._seconds[-1]
        if second[0] == now:
            second[1] += 1
            return
        with self._lock:
            self._seconds.append([now, 1, 0])

    def retry(self) -> bool:
        """Whether one more retry may be made; it then counts as made."""
        now = int(self._clock())
        with self._lock:
            window = [second for second in self._seconds if second[0] > now - BUDGET_WINDOW_S]
            requests, retries = sum(second[1] for second in window), sum(second[2] for second in window)
            if retries >= max(BUDGET_FLOOR, BUDGET_SHARE * requests):
                return False
            if not window or window[-1][0] != now:
                self._seconds.append([now, 0, 0])
            self._seconds[-1][2] += 1
            return True
