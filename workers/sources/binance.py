"""Binance spot prices, over the public market-data host that needs no key.

Format: github.com/binance/binance-spot-api-docs, rest-api.md, "Kline/Candlestick data".
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence

from runner.errors import BadAnswer, FetchError, SymbolUnknown
from workers.session import HttpClient, Rate, Request, Response
from workers.sources import parse
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual

BASE_URL = "https://data-api.binance.vision"
PAGE_BARS = 1000
PAGE_WEIGHT = 2
# 6,000 a minute for each address (exchangeInfo, rateLimits, REQUEST_WEIGHT) is a full burst and a minute's refill.
RATE = Rate("binance", weight_per_period=5_000, period_s=60.0, burst=1_000, used_header="X-MBX-USED-WEIGHT-1M")
MS_NS = 10**6

# Errors: "Invalid symbol." and "Illegal characters found in parameter 'symbol'" (errors.md of the same repository).
INVALID_SYMBOL, ILLEGAL_CHARACTERS = -1121, -1100

# Fields of a row; 6 to 11 are close time, quote volume, trades, taker volumes, and one that is unused.
FIELDS = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 5}
ROW_FIELDS = 12

INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M")
# At most 86,400 rows an entry: a few MB decoded, well below 1 MB as stored.
UNITS: dict[str, Unit] = {"s": "day", "m": "month", "h": "year", "d": "year", "w": "decade", "M": "decade"}


class Binance(Usual):
    """REST klines: a page is 1,000 bars, and its borders can be computed, so pages are asked for at once."""

    name = "binance"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = INTERVALS
    options: tuple[str, ...] = ()

    def unit(self, interval: str) -> Unit:
        """The calendar unit of one cached entry."""
        return UNITS[interval[-1]]

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """The span's bars; see `workers.sources.protocol.Source.load`."""
        label = parse.where(self.name, ask)
        base, private = parse.base_url(ask, BASE_URL)
        end_ns, step_ns = min(ask.end_ns, ask.now_ns), PAGE_BARS * parse.interval_ns(ask.interval)
        requests = [
            Request(
                f"{base}/api/v3/klines",
                params={
                    "symbol": ask.symbol,
                    "interval": ask.interval,
                    "startTime": str(start_ns // MS_NS),
                    "endTime": str((min(start_ns + step_ns, end_ns) - 1) // MS_NS),  # a bar that opens then is sent too
                    "limit": str(PAGE_BARS),
                },
                deadline_s=parse.DEADLINE_S,
                rate=parse.rate_of(RATE, ask),
                weight=PAGE_WEIGHT,
                cache_ttl_s=0,  # an answer kept for later would show as closed a bar that was running
                private=private,
            )
            for start_ns in range(ask.start_ns, end_ns, step_ns)
        ]
        pages = await parse.pages(http, requests, _refusal, label)
        # A month of minutes takes 0.15 s to read: too long for the loop, on which all other requests wait.
        return await asyncio.to_thread(_table, pages, ask, label)


def _table(pages: Sequence[Response], ask: Ask, label: str) -> Table:
    rows = parse.rows_of(pages, ROW_FIELDS, label, most=PAGE_BARS)
    time = parse.stamps(parse.column(rows, 0, label), label)
    parse.check_inside(time, ask.start_ns, ask.end_ns, label)
    columns = {name: parse.floats(parse.column(rows, at, label), name, label) for name, at in FIELDS.items()}
    return parse.table(ask, time, columns, label)


def _refusal(page: Response, label: str) -> FetchError:
    if page.status != 400:
        return parse.status_error(page, label)
    said = parse.json_of(page, label)
    code, message = (said.get("code"), said.get("msg")) if isinstance(said, dict) else (None, said)
    if code == INVALID_SYMBOL or (code == ILLEGAL_CHARACTERS and re.search(r"\bsymbol\b", str(message))):
        return SymbolUnknown(f"{label}: no such symbol. Binance spells them without a separator, such as BTCUSDT.")
    return BadAnswer(f"{label}: HTTP 400 with code {code}: {parse.quoted(message)}.")
