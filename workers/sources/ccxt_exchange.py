"""Any of the exchanges that ccxt knows, over our own HTTP client: its limits, retries and deadlines, not ccxt's.

Needs the extra: pip install 'backtest-runner[ccxt]'.
"""

from __future__ import annotations

import asyncio
import importlib
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary, ref

import numpy as np

from runner.columns import shown_time
from runner.errors import (
    BadAnswer,
    FetchError,
    InputError,
    SettingsError,
    SourceRefused,
    SourceUnavailable,
    SymbolUnknown,
)
from workers.session import HttpClient, Rate
from workers.sources import parse
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual

# An object of one of ccxt's classes; the library is imported on first use and has no types.
Exchange = Any

MS_NS = 10**6
# Where ccxt does not say how many rows an exchange sends: the smallest page of those that it does say.
LEAST_PAGE = 100
# Lists of markets: of the large exchanges they are some 10 MB.
MAX_BYTES = 64 * 2**20

COLUMNS = ("open", "high", "low", "close", "volume")
INTERVALS = ("1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M")
UNITS: dict[str, Unit] = {"s": "day", "m": "month", "h": "year", "d": "year", "w": "decade", "M": "decade"}


class Ccxt(Usual):
    """Symbols are ccxt's: "BTC/USDT", "BTC/USDT:USDT". Option ``exchange``: ccxt's id of it, such as "okx"."""

    name = "ccxt"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = INTERVALS
    options: tuple[str, ...] = ("exchange",)

    def __init__(self) -> None:
        # With their lists of markets, which ccxt loads once an object, however many ask at once.
        self._made: WeakKeyDictionary[HttpClient, dict[tuple[str, str], Exchange]] = WeakKeyDictionary()

    def unit(self, interval: str) -> Unit:
        """The calendar unit of one cached entry."""
        return UNITS[interval[-1]]

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """The span's bars; see `workers.sources.protocol.Source.load`.

        Raises:
            SettingsError: ccxt is missing, or has no such exchange.
        """
        label = parse.where(f"{self.name}/{ask.options.get('exchange')}", ask)
        library = await asyncio.to_thread(_library)  # hundreds of modules, most of a second
        exchange = self._exchange(library, ask, http)
        try:
            await asyncio.shield(exchange.load_markets())  # others wait for the same, so a caller must not cancel it
            rows = await _rows(exchange, ask, label)
        except FetchError as error:
            raise error if str(error).startswith(label) else type(error)(f"{label}: {error}") from error
        except library.BaseError as error:
            raise _translated(library, error, label) from error
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            if isinstance(error, InputError):
                raise
            raise BadAnswer(f"{label}: ccxt cannot read the answer ({type(error).__name__}: {error}).") from error
        time = parse.stamps(parse.column(rows, 0, label), label)
        columns = {
            name: parse.floats(parse.column(rows, at, label), name, label) for at, name in enumerate(COLUMNS, start=1)
        }
        unread = [name for name, values in columns.items() if np.isnan(values).any()]
        if unread:  # what ccxt cannot read becomes None, as a missing price does
            raise BadAnswer(f"{label}: rows without a number in {', '.join(unread)}. Nothing of this answer was kept.")
        return parse.table(ask, time, columns, label)

    def _exchange(self, library: Any, ask: Ask, http: HttpClient) -> Exchange:
        given = ask.options.get("exchange")
        if given not in library.exchanges:
            close = get_close_matches(str(given).lower(), library.exchanges, n=3)
            raise SettingsError(
                f"ccxt: exchange={given!r}: expected one of ccxt's {len(library.exchanges)} ids, such as "
                f"{', '.join(map(repr, close or ('okx', 'bybit', 'bitstamp')))}."
            )
        base, private = parse.base_url(ask, "")
        made = self._made.setdefault(http, {})
        key = (str(given), base)
        if key not in made:
            made[key] = _over(getattr(library, str(given)), ask, http, base, private=private)
        return made[key]


def _library() -> Any:
    try:
        return importlib.import_module("ccxt.async_support")
    except ImportError as error:
        raise SettingsError(f"source 'ccxt' needs ccxt ({error}): pip install 'backtest-runner[ccxt]'.") from error


def _over(kind: Any, ask: Ask, http: HttpClient, base: str, *, private: bool) -> Exchange:
    """An object of ccxt's class whose requests go through ``http``; it opens no session of its own."""
    exchange: Exchange = kind({"enableRateLimit": False})
    if base:
        exchange.urls["api"] = _moved(exchange.urls["api"], base)
    # ccxt's pause between two requests of weight one, as an allowance.
    per_minute = max(1, int(60_000 / exchange.rateLimit))
    usual = Rate(f"ccxt_{exchange.id}", weight_per_period=per_minute, period_s=60.0, burst=max(1, per_minute // 60))
    wire = _Wire(exchange, ref(http), parse.rate_of(usual, ask), private)
    exchange.fetch = wire.fetch  # the one place in which ccxt touches the network
    return exchange


def _moved(urls: Any, base: str) -> Any:
    """The tree of an exchange's URLs, each with ``base`` before its path."""
    if isinstance(urls, dict):
        return {name: _moved(url, base) for name, url in urls.items()}
    return base + urlsplit(urls).path


@dataclass(frozen=True, slots=True)
class _Wire:
    """Stands in the place of ccxt's own session. It holds no client alive, for the client holds the exchange."""

    exchange: Exchange
    http: ref[HttpClient]
    rate: Rate | None
    private: bool

    async def fetch(
        self, url: str, method: str = "GET", headers: dict[str, str] | None = None, body: object = None
    ) -> Any:
        """As ccxt's own, from the answer on."""
        exchange, http = self.exchange, self.http()
        if http is None or method != "GET" or body:
            raise SettingsError(f"ccxt: {exchange.id} answers {method} requests here, and this client sends GET only.")
        answer = await http.get(
            url,
            headers=headers,
            deadline_s=parse.DEADLINE_S,
            rate=self.rate,
            max_bytes=MAX_BYTES,
            cache_ttl_s=0,  # an answer kept for later would show as closed a bar that was running
            private=self.private,
        )
        text = answer.body.decode("utf-8", "replace")
        data = exchange.parse_json(text)
        exchange.handle_errors(answer.status, "", url, method, dict(answer.headers), text, data, headers, body)
        exchange.handle_http_status_code(answer.status, "", url, method, text)
        if data is None:
            raise BadAnswer(f"expected JSON from {answer.url}, got {parse.quoted(text)}.")
        return data


async def _rows(exchange: Any, ask: Ask, label: str) -> list[Any]:
    """All rows of the span, page after page: how much a page holds, only its last row tells."""
    if ask.interval not in (exchange.timeframes or ()):
        has = ", ".join(exchange.timeframes or ()) or "none"
        raise SettingsError(f"{label}: {exchange.id} has no such interval; it has {has}.")
    limit = int(exchange.feature_value(ask.symbol, "fetchOHLCV", "limit", None) or LEAST_PAGE)
    bar_ns = parse.interval_ns(ask.interval)
    end_ns = min(ask.end_ns, ask.now_ns)
    rows: list[Any] = []
    from_ns = ask.start_ns
    most = _most_pages((end_ns - from_ns) // bar_ns + 1, limit)
    for _ in range(most):
        if from_ns >= end_ns:
            return rows
        page = await exchange.fetch_ohlcv(ask.symbol, ask.interval, from_ns // MS_NS, limit)
        time = parse.stamps(parse.column(page, 0, label), label)
        first_ns, last_ns = (int(time.min()), int(time.max())) if len(time) else (from_ns, from_ns - 1)
        if last_ns < from_ns:  # a gap longer than a page, or not listed yet; some then send the newest bar before it
            from_ns += limit * bar_ns
            continue
        if len(time) >= limit and first_ns >= from_ns + bar_ns and last_ns + bar_ns > ask.now_ns:
            raise SourceRefused(
                f"{label}: the exchange sends only its newest {len(time)} bars, from {shown_time(first_ns)} on, "
                "whatever the start. Ask for a later start or a longer interval, or take another source."
            )
        rows += page
        from_ns = last_ns + bar_ns
    if from_ns < end_ns:
        raise BadAnswer(
            f"{label}: {most} pages did not reach the end of the range, which is more than it has. Ask for a shorter "
            "range, or take another source."
        )
    return rows


def _most_pages(bars: int, limit: int) -> int:
    """Pages that so many bars can take.

    Of an exchange that answers a window of time, in which bars may be missing, two pages together reach a window
    further: the second holds bars beyond the first one's window, or is empty and skipped. At both ends one is cut.
    """
    return 2 * (bars // min(limit, LEAST_PAGE) + 1) + 2


def _translated(library: Any, error: Exception, label: str) -> FetchError:
    said = parse.quoted(error)
    if isinstance(error, library.BadSymbol):
        return SymbolUnknown(f"{label}: no such symbol. ccxt spells them like BTC/USDT.")
    if isinstance(error, library.AuthenticationError):
        return SourceRefused(f"{label}: {said}. Does the exchange serve this address and country?")
    if isinstance(error, library.OperationFailed) and not isinstance(
        error, library.BadResponse
    ):  # rate limits, maintenance, time-outs
        return SourceUnavailable(f"{label}: {said}. Ask again later.")
    return BadAnswer(f"{label}: {said}.")
