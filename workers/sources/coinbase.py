"""Coinbase Exchange's public candles. Format: docs.cdp.coinbase.com, Exchange, "Get product candles"."""

from __future__ import annotations

import re

import numpy as np

from runner.errors import BadAnswer, FetchError, SymbolUnknown
from workers.session import HttpClient, Rate, Request, Response
from workers.sources import parse
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual

BASE_URL = "https://api.exchange.coinbase.com"
# A request for more is refused. Whether both ends count is not documented: pages of 299 steps, each of which ends where
# the next one starts, hold at most 300 either way and lose nothing; what comes twice is dropped.
MAX_CANDLES = 300
PAGE_STEPS = MAX_CANDLES - 1
# Public endpoints: 10 a second, bursts to 15 (docs.cdp.coinbase.com, Exchange, "Rate limits").
RATE = Rate("coinbase", weight_per_period=10, period_s=1.0, burst=5)

GRANULARITY_S = {"1m": 60, "5m": 300, "15m": 900, "1h": 3600, "6h": 21_600, "1d": 86_400}
# One entry is at most some 30 pages.
UNITS: dict[str, Unit] = {"1m": "day", "5m": "month", "15m": "month", "1h": "year", "6h": "year", "1d": "year"}

# Low and high stand before open and close.
FIELDS = {"low": 1, "high": 2, "open": 3, "close": 4, "volume": 5}
ROW_FIELDS = 6

SYMBOL = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)+")


class Coinbase(Usual):
    """Candles of one product; buckets without a trade are missing and stay so."""

    name = "coinbase"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = tuple(GRANULARITY_S)
    options: tuple[str, ...] = ()

    def unit(self, interval: str) -> Unit:
        """The calendar unit of one cached entry."""
        return UNITS[interval]

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """The span's bars; see `workers.sources.protocol.Source.load`."""
        label = parse.where(self.name, ask)
        if not SYMBOL.fullmatch(ask.symbol):
            raise _unknown(label)
        base, private = parse.base_url(ask, BASE_URL)
        end_ns = min(ask.end_ns, ask.now_ns)
        step_ns = PAGE_STEPS * GRANULARITY_S[ask.interval] * parse.SECOND_NS
        requests = [
            Request(
                f"{base}/products/{ask.symbol}/candles",
                params={
                    "granularity": str(GRANULARITY_S[ask.interval]),
                    "start": _iso(start_ns),
                    "end": _iso(min(start_ns + step_ns, end_ns)),
                },
                deadline_s=parse.DEADLINE_S,
                rate=parse.rate_of(RATE, ask),
                cache_ttl_s=0,  # an answer kept for later would show as closed a bar that was running
                private=private,
            )
            for start_ns in range(ask.start_ns, end_ns, step_ns)
        ]
        pages = await parse.pages(http, requests, _refusal, label)
        rows = parse.rows_of(pages, ROW_FIELDS, label)
        time = parse.stamps(parse.column(rows, 0, label), label)
        columns = {name: parse.floats(parse.column(rows, at, label), name, label) for name, at in FIELDS.items()}
        return parse.table(ask, time, columns, label)


def _iso(ns: int) -> str:
    return f"{np.datetime64(ns, 'ns').astype('datetime64[s]')}Z"


def _refusal(page: Response, label: str) -> FetchError:
    if page.status not in (400, 404):
        return parse.status_error(page, label)
    said = parse.json_of(page, label)
    message = said.get("message") if isinstance(said, dict) else said
    if page.status == 404 and message == "NotFound":
        return _unknown(label)
    return BadAnswer(f"{label}: HTTP {page.status}: {parse.quoted(message)}.")


def _unknown(label: str) -> SymbolUnknown:
    return SymbolUnknown(f"{label}: no such product. Coinbase spells them with a hyphen, such as BTC-USD.")
