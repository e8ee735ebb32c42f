"""The crypto exchanges' routes, in the formats that their sources name, with their limits on a page."""

from __future__ import annotations

import hashlib
import io
import time
import zipfile
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import lru_cache

import numpy as np
from aiohttp import web

from workers.sources.parse import SECOND_NS, closes_ns, interval_ns
from workers.sources.protocol import Table
from workers.standin.prices import Prices

PRICES = web.AppKey("crypto_prices", Prices)
WEIGHTS = web.AppKey("binance_weights", Counter[int])

MS_NS, US_NS = 10**6, 10**3
# The providers' limits and names stand here once more: taken from the sources, they could not contradict them.
KLINES_WEIGHT, INFO_WEIGHT, MOST_KLINES, DEFAULT_KLINES = 2, 20, 1000, 500
KLINE_INTERVALS = frozenset(
    {"1s", "1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M"}
)
MOST_CANDLES, NEWEST_OHLC = 300, 720
GRANULARITIES = {"60": "1m", "300": "5m", "900": "15m", "3600": "1h", "21600": "6h", "86400": "1d"}
# Kraken's weeks count from 1970, a Thursday.
MINUTES = {"1": "1m", "5": "5m", "15": "15m", "30": "30m", "60": "1h", "240": "4h"}
MINUTES |= {"1440": "1d", "10080": "7d", "21600": "15d"}
PERIODS = {"monthly": "%Y-%m", "daily": "%Y-%m-%d"}
# Since then the archive's times are in microseconds.
MICROSECONDS_FROM = "2025"
LAST_NS = 2**62

# For those who look markets up first, as ccxt does; klines there are of any symbol.
LISTED = (("BTC", "USDT"), ("ETH", "USDT"), ("SOL", "USDT"))


def add_routes(app: web.Application, prices: Prices) -> None:
    """Put the routes of Binance, its archive, Coinbase and Kraken on the application."""
    app[PRICES], app[WEIGHTS] = prices, Counter()
    app.router.add_get("/binance/api/v3/klines", klines)
    app.router.add_get("/binance/api/v3/exchangeInfo", exchange_info)
    for futures in ("fapi", "dapi"):
        app.router.add_get(f"/binance/{futures}/v1/exchangeInfo", no_futures)
    app.router.add_get("/binance_bulk/data/spot/{folder}/klines/{symbol}/{interval}/{file}", archive)
    app.router.add_get("/coinbase/products/{symbol}/candles", candles)
    app.router.add_get("/kraken/0/public/OHLC", ohlc)


def text(number: float) -> str:
    """A number as exchanges write it: eight decimals, or more where it has more."""
    usual = f"{number:.8f}"
    return usual if float(usual) == number else repr(float(number))


# Binance


def weighed(request: web.Request, weight: int) -> dict[str, str]:
    """Count the request's weight in the running minute, and say so as Binance does."""
    used, minute = request.app[WEIGHTS], int(time.time() // 60)
    used[minute] += weight
    return {"X-MBX-USED-WEIGHT-1M": str(used[minute])}


async def klines(request: web.Request) -> web.Response:
    """Rows of twelve fields, oldest first, the running bar included."""
    headers, prices, asked = weighed(request, KLINES_WEIGHT), request.app[PRICES], request.query
    try:
        limit = int(asked.get("limit", DEFAULT_KLINES))
        start_ns = int(asked["startTime"]) * MS_NS if "startTime" in asked else None
        end_ns = (int(asked["endTime"]) + 1) * MS_NS if "endTime" in asked else LAST_NS
    except ValueError:
        return _binance_error(-1100, "Illegal characters found in a parameter.", headers)
    if not 0 < limit <= MOST_KLINES:
        return _binance_error(-1130, "Data sent for parameter 'limit' is not valid.", headers)
    symbol, interval = asked.get("symbol", ""), asked.get("interval", "")
    if interval not in KLINE_INTERVALS:
        return _binance_error(-1120, "Invalid interval.", headers)
    if not prices.exists(symbol):
        return _binance_error(-1121, "Invalid symbol.", headers)
    if start_ns is None:  # then it is the newest ones that are sent
        rows = kline_rows(_newest(prices, symbol, interval, limit, end_ns), interval, MS_NS)
    else:
        rows = kline_rows(_oldest(prices, symbol, interval, limit, (start_ns, end_ns)), interval, MS_NS)
    return web.json_response(rows, headers=headers)


def _oldest(prices: Prices, symbol: str, interval: str, limit: int, span_ns: tuple[int, int]) -> Table:
    start_ns, end_ns = span_ns[0], min(span_ns[1], prices.now_ns + 1)
    length_ns = 2 * limit * interval_ns(interval)
    while True:  # ends, as the length grows beyond the span
        found = prices.bars(symbol, interval, start_ns, min(start_ns + length_ns, end_ns))
        if len(found.time) >= limit or start_ns + length_ns >= end_ns:
            return Table(found.time[:limit], {name: values[:limit] for name, values in found.columns.items()})
        length_ns *= 4


def _newest(prices: Prices, symbol: str, interval: str, limit: int, end_ns: int) -> Table:
    end_ns = min(end_ns, prices.now_ns + 1)
    span_ns = (limit + 1) * max(interval_ns(interval), closes_ns(np.zeros(1, np.int64), interval)[0])
    found = prices.bars(symbol, interval, end_ns - span_ns, end_ns)
    return Table(found.time[-limit:], {name: values[-limit:] for name, values in found.columns.items()})


def kline_rows(bars: Table, interval: str, unit_ns: int) -> list[list[int | str]]:
    """Binance's twelve fields, prices as text, times in the unit."""
    named = bars.columns
    opens, closes = bars.time // unit_ns, closes_ns(bars.time, interval) // unit_ns - 1
    five = zip(*(named[name].tolist() for name in ("open", "high", "low", "close", "volume")), strict=True)
    return [
        [opened, *map(text, row), closed, text(row[3] * row[4]), 100, text(row[4] / 2), text(row[3] * row[4] / 2), "0"]
        for opened, closed, row in zip(opens.tolist(), closes.tolist(), five, strict=True)
    ]


def _binance_error(code: int, message: str, headers: dict[str, str]) -> web.Response:
    return web.json_response({"code": code, "msg": message}, status=400, headers=headers)


async def exchange_info(request: web.Request) -> web.Response:
    """The limits, and a few markets."""
    limits = [{"rateLimitType": "REQUEST_WEIGHT", "interval": "MINUTE", "intervalNum": 1, "limit": 6000}]
    symbols = [
        {
            "symbol": base + quote,
            "status": "TRADING",
            "baseAsset": base,
            "baseAssetPrecision": 8,
            "quoteAsset": quote,
            "quotePrecision": 8,
            "isSpotTradingAllowed": True,
            "isMarginTradingAllowed": False,
            "permissions": [],
            "permissionSets": [["SPOT"]],
            "filters": [],
            "orderTypes": ["LIMIT", "MARKET"],
        }
        for base, quote in LISTED
    ]
    said = {"timezone": "UTC", "serverTime": time.time_ns() // MS_NS, "rateLimits": limits, "symbols": symbols}
    return web.json_response(said, headers=weighed(request, INFO_WEIGHT))


async def no_futures(_request: web.Request) -> web.Response:
    """Binance's futures, of which there are none here."""
    return web.json_response({"timezone": "UTC", "serverTime": time.time_ns() // MS_NS, "symbols": []})


# Binance's archive


async def archive(request: web.Request) -> web.Response:
    """A zip or its checksum, with S3's validators; 404 with XML where there is none."""
    part = request.match_info
    name, _, suffix = part["file"].partition(".zip")
    content = None
    if suffix in ("", ".CHECKSUM") and part["interval"] in KLINE_INTERVALS:
        content = _archived(request.app[PRICES], part["folder"], part["symbol"], part["interval"], name)
    if content is None:
        missing = '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>NoSuchKey</Code></Error>'
        return web.Response(status=404, text=missing, content_type="application/xml")
    body = f"{hashlib.sha256(content).hexdigest()}  {name}.zip\n".encode() if suffix else content
    etag = f'"{hashlib.md5(body, usedforsecurity=False).hexdigest()}"'
    if request.headers.get("If-None-Match") == etag:
        return web.Response(status=304, headers={"ETag": etag})
    return web.Response(body=body, content_type="application/zip", headers={"ETag": etag})


@lru_cache(maxsize=64)
def _archived(prices: Prices, folder: str, symbol: str, interval: str, name: str) -> bytes | None:
    period = name.removeprefix(f"{symbol}-{interval}-")
    try:
        first = datetime.strptime(period, PERIODS[folder]).replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return None
    over = (first + timedelta(days=31)).replace(day=1) if folder == "monthly" else first + timedelta(days=1)
    # A month is out on the first Monday of the next one, a day on the next day.
    published = over + timedelta(days=-over.weekday() % 7) if folder == "monthly" else over
    if name == period or not prices.exists(symbol) or _ns(published) > prices.now_ns:
        return None
    bars = prices.bars(symbol, interval, _ns(first), _ns(over))
    unit_ns = US_NS if period >= MICROSECONDS_FROM else MS_NS
    return packed(name, kline_rows(bars, interval, unit_ns)) if len(bars.time) else None


def packed(name: str, rows: list[list[int | str]]) -> bytes:
    """The zip of one period, always the same bytes."""
    lines = "".join(",".join(map(str, row)) + "\n" for row in rows)
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr(zipfile.ZipInfo(f"{name}.csv"), lines, zipfile.ZIP_DEFLATED)
    return whole.getvalue()


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_NS


# Coinbase


async def candles(request: web.Request) -> web.Response:
    """Rows [s, low, high, open, close, volume], newest first, one before the start, none where nothing was traded."""
    prices, symbol, asked = request.app[PRICES], request.match_info["symbol"], request.query
    interval = GRANULARITIES.get(asked.get("granularity", "60"))
    if not prices.exists(symbol):
        return web.json_response({"message": "NotFound"}, status=404)
    if interval is None:
        return web.json_response({"message": "Unsupported granularity"}, status=400)
    step_ns = interval_ns(interval)
    try:
        end_ns = _moment(asked["end"]) if "end" in asked else prices.now_ns
        start_ns = _moment(asked["start"]) if "start" in asked else end_ns - (MOST_CANDLES - 1) * step_ns
    except ValueError:
        return web.json_response({"message": "Invalid start or end"}, status=400)
    if (end_ns - start_ns) // step_ns + 1 > MOST_CANDLES:
        said = "granularity too small for the requested time range. Count of aggregations requested exceeds 300"
        return web.json_response({"message": said}, status=400)
    bars = prices.bars(symbol, interval, start_ns - step_ns, end_ns + 1)
    columns = [(bars.time // SECOND_NS).tolist()]
    columns += [bars.columns[name].tolist() for name in ("low", "high", "open", "close", "volume")]
    return web.json_response([row for row in zip(*columns, strict=True) if row[-1] > 0][::-1])


def _moment(iso: str) -> int:
    return _ns(datetime.fromisoformat(iso))


# Kraken


async def ohlc(request: web.Request) -> web.Response:
    """The newest 720 rows, the last one unfinished, under the pair's other name; errors with status 200."""
    prices, pair, asked = request.app[PRICES], request.query.get("pair", ""), request.query
    interval = MINUTES.get(asked.get("interval", "1"))
    if interval is None or not asked.get("since", "0").isdecimal():
        return web.json_response({"error": ["EGeneral:Invalid arguments"]})
    if not prices.exists(pair):
        return web.json_response({"error": ["EQuery:Unknown asset pair"]})
    bars = _newest(prices, pair, interval, NEWEST_OHLC, LAST_NS)
    columns = [(bars.time // SECOND_NS).tolist()]
    columns += [list(map(text, bars.columns[name].tolist())) for name in ("open", "high", "low", "close")]
    columns += [columns[4], list(map(text, bars.columns["volume"].tolist())), [100] * len(bars.time)]
    rows = [list(row) for row in zip(*columns, strict=True) if row[0] > int(asked.get("since", "0"))]
    closed = bars.time[closes_ns(bars.time, interval) <= prices.now_ns]
    last_s = int(closed[-1]) // SECOND_NS if len(closed) else 0
    name = f"X{pair[:3]}Z{pair[3:]}" if len(pair) == 6 else pair
    return web.json_response({"error": [], "result": {name: rows, "last": last_s}})
