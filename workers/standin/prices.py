"""The data behind the stand-in server: the packaged series, and for every other symbol a walk that its name seeds."""

from __future__ import annotations

import time
from functools import lru_cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt

from runner.bars import SAMPLES, sample_data
from workers.sources.parse import DAY_NS, closes_ns, interval_ns
from workers.sources.protocol import Table

Floats = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]

# A symbol that begins so is known to no provider.
UNKNOWN = "UNKNOWN"
# Walks begin when Binance opened, and reach to the year 2044.
LISTED_NS = int(np.datetime64("2017-08-17", "ns").astype(np.int64))
WALK_DAYS = 10_000
# A daily volatility of large coins, and the band from whose edges a walk is reflected, so that no price becomes zero.
DAILY_SIGMA = 0.03
LOWEST, HIGHEST = np.log(5.0), np.log(100_000.0)
# Share of intraday bars without a trade; Coinbase leaves such out.
QUIET_SHARE = 0.01
# What has been traded in a bar that has only just opened.
FIRST_TRADE = 0.001


class Prices:
    """Bars of any symbol at any interval; the same ones in every process.

    Args:
        now_ns: a fixed present; None is the clock's. Bars that open later do not exist yet, the last one is unfinished.
    """

    def __init__(self, now_ns: int | None = None) -> None:
        self._now_ns = now_ns

    @property
    def now_ns(self) -> int:
        """The present, nanoseconds since 1970 UTC."""
        return time.time_ns() if self._now_ns is None else self._now_ns

    def exists(self, symbol: str) -> bool:
        """Whether providers know the symbol."""
        return bool(symbol) and not symbol.upper().startswith(UNKNOWN)

    def bars(self, symbol: str, interval: str, start_ns: int, end_ns: int) -> Table:
        """Those that open in start_ns..end_ns (exclusive), the running one included; open, high, low, close, volume.

        The packaged series are daily: they have no shorter bars.
        """
        end_ns = min(end_ns, self.now_ns + 1)
        length_ns = interval_ns(interval)
        if length_ns > DAY_NS:
            days = _cut(_daily(symbol), start_ns, min(end_ns + 2 * length_ns, self.now_ns + 1))
            found = _cut(_grouped(days, interval), start_ns, end_ns)
        elif length_ns == DAY_NS:
            found = _cut(_daily(symbol), start_ns, end_ns)
        else:
            found = _intraday(symbol, interval, start_ns, end_ns)
        return self._last_one_open(found, interval)

    def _last_one_open(self, bars: Table, interval: str) -> Table:
        if not len(bars.time) or closes_ns(bars.time[-1:], interval)[0] <= self.now_ns:
            return bars
        columns = {name: values.copy() for name, values in bars.columns.items()}
        for name in ("high", "low", "close"):
            columns[name][-1] = columns["open"][-1]
        columns["volume"][-1] = FIRST_TRADE
        return Table(bars.time, columns)


def _cut(bars: Table, start_ns: int, end_ns: int) -> Table:
    first, last = np.searchsorted(bars.time, [start_ns, end_ns])
    return Table(bars.time[first:last], {name: values[first:last] for name, values in bars.columns.items()})


def _seed(symbol: str) -> int:
    return int.from_bytes(sha256(symbol.encode()).digest()[:8], "big")


@lru_cache(maxsize=256)
def _daily(symbol: str) -> Table:
    if symbol in SAMPLES:
        sample = sample_data(symbol)
        named = {name: np.asarray(getattr(sample, name)) for name in ("open", "high", "low", "close", "volume")}
        return Table(np.asarray(sample.time), named)
    rng = np.random.default_rng(_seed(symbol))
    walk = rng.uniform(LOWEST, HIGHEST) + np.cumsum(rng.normal(0.0, DAILY_SIGMA, WALK_DAYS + 1))
    width = HIGHEST - LOWEST
    reflected = width - np.abs((walk - LOWEST) % (2 * width) - width)
    time = LISTED_NS + DAY_NS * np.arange(WALK_DAYS, dtype=np.int64)
    return _shaped(time, _cents(np.exp(LOWEST + reflected)), rng, DAILY_SIGMA)


def _intraday(symbol: str, interval: str, start_ns: int, end_ns: int) -> Table:
    days = _cut(_daily(symbol), start_ns // DAY_NS * DAY_NS, end_ns) if symbol not in SAMPLES else None
    if days is None or not len(days.time):
        return _cut(_daily(symbol), 0, 0)
    parts = [
        _within(symbol, interval, int(day), float(first), float(last))
        for day, first, last in zip(days.time, days.columns["open"], days.columns["close"], strict=True)
    ]
    joined = {name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns}
    return _cut(Table(np.concatenate([part.time for part in parts]), joined), start_ns, end_ns)


@lru_cache(maxsize=256)
def _within(symbol: str, interval: str, day_ns: int, first: float, last: float) -> Table:
    """One day's bars: a Brownian bridge between the daily bar's open and close."""
    length_ns = interval_ns(interval)
    n = DAY_NS // length_ns
    rng = np.random.default_rng([_seed(symbol), day_ns // DAY_NS, length_ns])
    part = np.arange(n + 1) / n
    walk = np.concatenate([[0.0], np.cumsum(rng.normal(0.0, DAILY_SIGMA / np.sqrt(n), n))])
    levels = _cents(np.exp((1 - part) * np.log(first) + part * np.log(last) + walk - part * walk[-1]))
    levels[0], levels[-1] = first, last
    bars = _shaped(day_ns + length_ns * np.arange(n, dtype=np.int64), levels, rng, DAILY_SIGMA / np.sqrt(n))
    bars.columns["volume"][rng.random(n) < QUIET_SHARE] = 0.0
    return bars


def _shaped(time: Times, levels: Floats, rng: np.random.Generator, sigma: float) -> Table:
    """Bars that open and close at consecutive levels, with tails and a volume; to a cent and a thousandth."""
    n = len(time)
    opens, closes = levels[:-1], levels[1:]
    tails = np.minimum(np.abs(rng.normal(0.0, sigma / 2, (2, n))), 0.5)
    return Table(
        time,
        {
            "open": opens,
            "high": _cents(np.maximum(opens, closes) * (1 + tails[0])),
            "low": _cents(np.minimum(opens, closes) * (1 - tails[1])),
            "close": closes,
            "volume": np.rint(rng.lognormal(6.0, 1.0, n) * 1000) / 1000,
        },
    )


def _cents(prices: Floats) -> Floats:
    rounded: Floats = np.rint(prices * 100) / 100
    return rounded


def _grouped(days: Table, interval: str) -> Table:
    """Bars of several days from daily ones: weeks begin on Monday, months on the first, n days count from 1970."""
    if not len(days.time):
        return days
    date = days.time.view("datetime64[ns]").astype("datetime64[D]").astype(np.int64)
    count, unit = int(interval[:-1]), interval[-1]
    if unit == "M":
        months = days.time.view("datetime64[ns]").astype("datetime64[M]").astype(np.int64) // count * count
        opens = months.astype("datetime64[M]").astype("datetime64[ns]").view(np.int64)
    elif unit == "w":
        opens = ((date + 3) // (7 * count) * (7 * count) - 3) * DAY_NS  # 1970-01-01 was a Thursday
    else:
        opens = date // count * count * DAY_NS
    first = np.flatnonzero(np.append(True, opens[1:] != opens[:-1]))
    last = np.append(first[1:], len(opens)) - 1
    named = days.columns
    return Table(
        opens[first],
        {
            "open": named["open"][first],
            "high": np.maximum.reduceat(named["high"], first),
            "low": np.minimum.reduceat(named["low"], first),
            "close": named["close"][last],
            "volume": np.add.reduceat(named["volume"], first),
        },
    )
