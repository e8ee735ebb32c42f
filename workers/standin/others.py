"""The providers of macroeconomic and alternative data and of files, in their own formats; `shares` has the brokers.

FRED has the VIX, the files have what `Prices` has. Page views and Fear & Greed are made up, by a hash of the day: there
are none under a free licence.
"""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from functools import cache

import numpy as np
import pandas as pd
from aiohttp import web

import runner
from workers.sources.protocol import Table
from workers.standin import shares
from workers.standin.prices import Prices
from workers.standin.shares import PRICES, REFUSED_KEYS, now

FIRST_VIEWS, FIRST_FNG = date(2015, 7, 1), date(2018, 2, 1)
NO_SUCH_DAYS = (
    "The date(s) you used are valid, but we either do not have data for those date(s), or the project you asked for is "
    "not loaded yet. Please check documentation for more information."
)
EMPTY_DAY = 97  # one day in so many has no views
FILES_CHANGED = "Fri, 01 Mar 2013 21:00:00 GMT"


def add_routes(app: web.Application, prices: Prices) -> None:
    """Put all of them on the application, below /fred, /wikipedia, /fear_greed, /tiingo, /alpaca and /files."""
    app[PRICES] = prices
    get = app.router.add_get
    get("/fred/graph/fredgraph.csv", fred_csv)
    get("/fred/fred/series/observations", fred_api)
    views = "/wikipedia/metrics/pageviews/per-article/{project}/{access}/{agent}/{article}/daily/{start}/{end}"
    get(views, wikipedia)
    get("/fear_greed/fng/", fear_greed)
    get("/tiingo/tiingo/daily/{ticker}/prices", shares.tiingo)
    get("/alpaca/v2/stocks/bars", shares.alpaca_bars)
    get("/alpaca/v1/corporate-actions", shares.alpaca_actions)
    get("/files/{name}", files)


# FRED


async def fred_csv(request: web.Request) -> web.Response:
    """fredgraph.csv: weekdays without a value are there, with an empty one."""
    series = _series(request.query.get("id", ""))
    if series is None:
        return web.Response(
            status=404, text="<!DOCTYPE html><title>Error - St. Louis Fed</title>", content_type="text/html"
        )
    first, last = request.query.get("cosd", "1776-07-04"), request.query.get("coed", "9999-12-31")
    lines = [f"{day},{_text(value)}" for day, value in series if first <= day <= last]
    return web.Response(
        text="\n".join([f"observation_date,{request.query['id']}", *lines]) + "\n", content_type="application/csv"
    )


async def fred_api(request: web.Request) -> web.Response:
    """Observations as they were known on realtime_end: a day's value the day after."""
    query = request.query
    if query.get("api_key", "") in REFUSED_KEYS:
        return _fred_error("The value for variable api_key is not registered.")
    series = _series(query.get("series_id", ""))
    if series is None:
        return _fred_error("The series does not exist.")
    known = query.get("realtime_end", "9999-12-31")
    first, last = query.get("observation_start", "1776-07-04"), query.get("observation_end", "9999-12-31")
    realtime = {"realtime_start": query.get("realtime_start", ""), "realtime_end": known}
    rows = [
        {**realtime, "date": day, "value": _text(value) or "."}
        for day, value in series
        if first <= day <= last and day < known
    ]
    return web.json_response({**realtime, "count": len(rows), "offset": 0, "limit": 100_000, "observations": rows})


@cache
def _series(symbol: str) -> tuple[tuple[str, float], ...] | None:
    if symbol != "VIXCLS":
        return None
    vix = runner.sample_series("VIX")
    weekdays = pd.bdate_range(vix.index[0], vix.index[-1])
    values = vix.reindex(weekdays).to_numpy()
    return tuple((str(day.date()), float(value)) for day, value in zip(weekdays, values, strict=True))


def _text(value: float) -> str:
    return "" if np.isnan(value) else repr(value)


def _fred_error(said: str) -> web.Response:
    return web.json_response({"error_code": 400, "error_message": f"Bad Request.  {said}"}, status=400)


# Wikipedia and Fear & Greed


async def wikipedia(request: web.Request) -> web.Response:
    """Views from July 2015 to yesterday, on most days."""
    asked = request.match_info
    days = _days(request, _day(asked["start"]), _day(asked["end"]), FIRST_VIEWS)
    same = {"project": asked["project"], "article": asked["article"], "granularity": "daily"}
    items = [
        {
            **same,
            "timestamp": f"{day:%Y%m%d}00",
            "access": asked["access"],
            "agent": asked["agent"],
            "views": made_up(asked["article"], day, 20_000),
        }
        for day in days
        if request.app[PRICES].exists(asked["article"]) and day.toordinal() % EMPTY_DAY
    ]
    if not items:
        return web.json_response(
            {"type": "about:blank", "title": "Not Found", "method": "get", "status": 404, "detail": NO_SUCH_DAYS},
            status=404,
            content_type="application/problem+json",
        )
    return web.json_response({"items": items})


async def fear_greed(request: web.Request) -> web.Response:
    """All days, or the newest ``limit``, newest first; numbers are text."""
    days = list(_days(request, FIRST_FNG, date.max, FIRST_FNG, published_days=0))[::-1]
    limit = int(request.query.get("limit", "1"))
    rows: list[dict[str, str]] = []
    for day in days[:limit] if limit else days:
        value = made_up("fng", day, 101)
        stamp = int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp())
        rows.append(
            {"value": str(value), "value_classification": "Fear" if value < 50 else "Greed", "timestamp": str(stamp)}
        )
    rows[0]["time_until_update"] = "3600"
    return web.json_response({"name": "Fear and Greed Index", "data": rows, "metadata": {"error": None}})


def made_up(what: str, day: date, below: int) -> int:
    """A number from 0 to below ``below`` that is the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{what} {day}".encode()).digest()[:4]) % below


def _days(request: web.Request, first: date, last: date, earliest: date, published_days: int = 1) -> Iterator[date]:
    """Those from first to last of which there can be data, the newest so many days old."""
    last = min(last, now(request).date() - timedelta(days=published_days))
    return map(date.fromordinal, range(max(first, earliest).toordinal(), last.toordinal() + 1))


def _day(stamp: str) -> date:
    return date(int(stamp[:4]), int(stamp[4:6]), int(stamp[6:8]))


# Files


async def files(request: web.Request) -> web.Response:
    """AAPL.csv, IBM.parquet, SP500.csv.gz and the like, with validators."""
    symbol, _, kind = request.match_info["name"].partition(".")
    prices = request.app[PRICES]
    if not prices.exists(symbol) or kind not in ("csv", "csv.gz", "parquet"):
        return web.Response(status=404, text="not found")
    body = _file(prices.bars(symbol, "1d", 0, prices.now_ns), kind)
    validators = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"', "Last-Modified": FILES_CHANGED}
    matches = request.headers.get("If-None-Match")
    same = matches == validators["ETag"] if matches else request.headers.get("If-Modified-Since") == FILES_CHANGED
    if same:
        return web.Response(status=304, headers=validators)
    return web.Response(body=body, headers=validators, content_type="application/octet-stream")


def _file(bars: Table, kind: str) -> bytes:
    named = {name.capitalize(): column for name, column in bars.columns.items()}
    frame = pd.DataFrame(named, index=pd.DatetimeIndex(bars.time.view("datetime64[ns]"), name="Date"))
    if kind == "parquet":
        buffer = io.BytesIO()
        frame.reset_index().to_parquet(buffer)
        return buffer.getvalue()
    text = frame.to_csv().encode()
    return gzip.compress(text, mtime=0) if kind == "csv.gz" else text
