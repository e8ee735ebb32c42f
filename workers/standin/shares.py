"""Tiingo and Alpaca in their own formats: shares with splits and dividends.

Prices are what `Prices` has; splits and dividends are those that lie in the packaged `adj_close`.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
from aiohttp import web

import runner
from runner.bars import SAMPLES
from workers.sources.parse import DAY_NS, SECOND_NS
from workers.standin.prices import Prices

PRICES = web.AppKey("others_prices", Prices)
# Values that the real ones would not accept as keys.
REFUSED_KEYS = ("", "expired")
NEW_YORK = ZoneInfo("America/New_York")
PRICE_NAMES = ("open", "high", "low", "close")
# Steps of adjusted over raw: below the one they are rounding (1e-13 here), above the other a split.
ROUNDING, LEAST_SPLIT = 1e-6, 1.5


@dataclass(frozen=True, slots=True)
class Event:
    """A split (its factor) or a dividend (dollars a share) with its ex-date."""

    day: date
    split: float
    dividend: float


def now(request: web.Request) -> datetime:
    """The present by the served prices."""
    return datetime.fromtimestamp(request.app[PRICES].now_ns / SECOND_NS, UTC)


# Tiingo


async def tiingo(request: web.Request) -> web.Response:
    """Raw and adjusted prices with both ends inclusive."""
    token = request.headers.get("Authorization", "").removeprefix("Token").strip()
    if not token:
        return web.json_response({"detail": "Please supply a token"}, status=403)
    if token in REFUSED_KEYS:
        return web.json_response({"detail": "Invalid token."}, status=401)
    ticker = request.match_info["ticker"].upper()
    if not request.app[PRICES].exists(ticker):
        return web.json_response({"detail": f"Error: Ticker '{ticker}' not found"}, status=404)
    first, last = (date.fromisoformat(request.query[name]) for name in ("startDate", "endDate"))
    adjusting, by_day = _adjusting(ticker), {event.day: event for event in events(ticker)}
    rows = []
    for day, raw, volume in _daily(request, ticker, first, last):
        event, factor = by_day.get(day, Event(day, 1.0, 0.0)), adjusting.get(day, 1.0)
        adjusted = {f"adj{name.capitalize()}": value * factor for name, value in raw.items()}
        actions = {"divCash": event.dividend, "splitFactor": event.split}
        shares = {"volume": volume, "adjVolume": volume}
        rows.append({"date": f"{day}T00:00:00.000Z", **raw, **adjusted, **shares, **actions})
    return web.json_response(rows)


# Alpaca


async def alpaca_bars(request: web.Request) -> web.Response:
    """Pages go through one symbol after the other."""
    query = request.query
    refusal = _alpaca_refusal(request)
    if refusal is not None:
        return refusal
    start, end = (datetime.fromisoformat(query[name][:19] + "+00:00") for name in ("start", "end"))
    if query.get("feed") == "sip" and end > now(request) - timedelta(minutes=15):
        return _said("subscription does not permit querying recent SIP data", 403)
    symbols = sorted(query["symbols"].split(","))
    if any("/" in symbol for symbol in symbols):
        return _said(f"invalid symbol: {query['symbols']}", 400)
    rows = [
        (symbol, row)
        for symbol in symbols
        if request.app[PRICES].exists(symbol)
        for moment, row in _alpaca_rows(request, symbol, start.date(), end.date())
        if start <= moment <= end
    ]
    page, token = _page(rows, request, 10_000)
    bars: dict[str, list[dict[str, Any]]] = {}
    for symbol, row in page:
        bars.setdefault(symbol, []).append(row)
    return web.json_response({"bars": bars, "next_page_token": token})


async def alpaca_actions(request: web.Request) -> web.Response:
    """Filtered by the day of processing: a split's is its ex-date, a dividend's two weeks later."""
    refusal = _alpaca_refusal(request)
    if refusal is not None:
        return refusal
    query = request.query
    rows: list[tuple[str, dict[str, Any]]] = []
    for symbol in query["symbols"].split(","):
        for event in events(symbol):
            processed = event.day if event.split != 1.0 else event.day + timedelta(days=14)
            row: dict[str, Any] = {"symbol": symbol, "ex_date": str(event.day), "process_date": str(processed)}
            if not query["start"] <= str(processed) <= query["end"]:
                continue
            if event.split != 1.0:
                rows.append(("forward_splits", {**row, "old_rate": 1, "new_rate": event.split}))
            else:
                rows.append(("cash_dividends", {**row, "rate": event.dividend, "special": False, "foreign": False}))
    page, token = _page(rows, request, 1_000)
    actions: dict[str, list[dict[str, Any]]] = {}
    for kind, row in page:
        actions.setdefault(kind, []).append(row)
    return web.json_response({"corporate_actions": actions, "next_page_token": token})


def _alpaca_refusal(request: web.Request) -> web.Response | None:
    keys = [request.headers.get(f"APCA-API-{name}", "") for name in ("KEY-ID", "SECRET-KEY")]
    if not all(keys):
        return _said("forbidden.", 401)
    return _said("forbidden.", 403) if any(key in REFUSED_KEYS for key in keys) else None


def _said(message: str, status: int) -> web.Response:
    return web.json_response({"message": message}, status=status)


def _page(rows: list[Any], request: web.Request, most: int) -> tuple[list[Any], str | None]:
    token = request.query.get("page_token")
    start = int(base64.b64decode(token)) if token else 0
    stop = start + min(most, int(request.query.get("limit", "1000")))
    return rows[start:stop], base64.b64encode(str(stop).encode()).decode() if stop < len(rows) else None


MINUTES = {"1Min": 1, "5Min": 5, "15Min": 15, "30Min": 30, "1Hour": 60}


def _alpaca_rows(
    request: web.Request, symbol: str, first: date, last: date
) -> Iterator[tuple[datetime, dict[str, Any]]]:
    for day, raw, volume in _daily(request, symbol, first, last):
        midnight = datetime(day.year, day.month, day.day, tzinfo=NEW_YORK)
        if request.query["timeframe"] == "1Day":
            yield _alpaca_row(midnight, list(raw.values()), volume)
        else:
            yield from _path(midnight, MINUTES[request.query["timeframe"]], list(raw.values()))


def _path(midnight: datetime, step: int, prices: list[float]) -> Iterator[tuple[datetime, dict[str, Any]]]:
    """From the open by low and high to the close, with flat hours before and after: 08:30 to 17:00 in New York."""
    opened, highest, lowest, closed = prices
    for minute in range(8 * 60 + 30, 17 * 60, step):
        ends = np.interp([minute, minute + step], [570, 660, 840, 960], [opened, lowest, highest, closed])
        start, stop = (float(price) for price in ends.round(4))
        four = [start, max(start, stop), min(start, stop), stop]
        yield _alpaca_row(midnight + timedelta(minutes=minute), four, 100 * step)


def _alpaca_row(at: datetime, prices: list[float], volume: int) -> tuple[datetime, dict[str, Any]]:
    moment = at.astimezone(UTC)
    named = dict(zip("ohlc", prices, strict=True))
    return moment, {"t": f"{moment:%Y-%m-%dT%H:%M:%SZ}", **named, "v": volume, "n": 1, "vw": prices[-1]}


# Prices, splits and dividends


def _daily(request: web.Request, symbol: str, first: date, last: date) -> Iterator[tuple[date, dict[str, float], int]]:
    """Each day's open, high, low and close by name, and volume, both ends inclusive."""
    start, end = ((day - date(1970, 1, 1)).days * DAY_NS for day in (first, last + timedelta(days=1)))
    bars = request.app[PRICES].bars(symbol, "1d", start, end)
    for index, day in enumerate(_dates(bars.time)):
        row = {name: float(column[index]) for name, column in bars.columns.items()}
        yield day, {name: row[name] for name in PRICE_NAMES}, int(row["volume"])


@cache
def _adjusting(symbol: str) -> dict[date, float]:
    """Adjusted over raw close, where there is such."""
    if symbol not in SAMPLES:
        return {}
    bars = runner.sample_data(symbol)
    return dict(zip(_dates(bars.time), (bars.extra["adj_close"] / bars.close).tolist(), strict=True))


@cache
def events(symbol: str) -> tuple[Event, ...]:
    """Splits and dividends, from the steps of adjusted over raw close.

    The packaged data's rule: a split of f steps by f, a dividend d before a close of c by 1 + d / c.
    """
    if symbol not in SAMPLES:
        return ()
    bars, adjusting = runner.sample_data(symbol), _adjusting(symbol)
    days, ratio = list(adjusting), np.array(list(adjusting.values()))
    steps = ratio[1:] / ratio[:-1]
    found = []
    for index in np.flatnonzero(steps > 1 + ROUNDING):
        step, close = float(steps[index]), float(bars.close[index + 1])
        split = round(step) if step > LEAST_SPLIT else 1
        found.append(Event(days[index + 1], float(split), 0.0 if split > 1 else round(close * (step - 1), 2)))
    return tuple(found)


def _dates(time: npt.NDArray[np.int64]) -> list[date]:
    days: list[date] = time.view("datetime64[ns]").astype("datetime64[D]").tolist()
    return days
