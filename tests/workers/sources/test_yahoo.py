"""The real yfinance package, its plain `requests` session led to a server on loopback that answers as Yahoo does."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import requests
import yfinance  # type: ignore[import-untyped]  # no types are published
from aiohttp import web
from yfinance.data import SingletonMeta, YfData  # type: ignore[import-untyped]  # likewise

import runner
from runner.errors import BadAnswer, NoData, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Trouble, html, serving, status, wrong_json
from tests.workers.sources.asking import ask, dates, load, ns
from workers.sources.yahoo import Yfinance, from_frame
from workers.standin.shares import events

# yfinance's own, with pandas 3.1.
pytestmark = pytest.mark.filterwarnings("ignore:The inplace keyword:DeprecationWarning")

NEW_YORK = ZoneInfo("America/New_York")
CHART = "/v8/finance/chart/AAPL"


class Led(requests.adapters.HTTPAdapter):
    """Sends what is meant for any host to one on loopback."""

    def __init__(self, base_url: str) -> None:
        super().__init__()
        self._base_url = base_url

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        parts = urlsplit(request.url or "")
        request.url = f"{self._base_url}{parts.path}?{parts.query}"
        return super().send(request, *args, **{**options, "verify": False})


async def chart(request: web.Request) -> web.Response:
    """Yahoo's v8 chart: prices, volumes and dividends adjusted for the splits, days stamped 09:30 in New York."""
    if request.match_info["symbol"] != "AAPL":
        said = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
        return web.json_response({"chart": {"result": None, "error": said}}, status=404)
    bars = runner.sample_data("AAPL")
    days = bars.time.view("datetime64[ns]").astype("datetime64[D]").tolist()
    opens = [int(datetime(day.year, day.month, day.day, 9, 30, tzinfo=NEW_YORK).timestamp()) for day in days]
    stamps = dict(zip(days, opens, strict=True))
    splits = {event.day: event.split for event in events("AAPL") if event.split != 1}
    later = np.array([np.prod([factor for when, factor in splits.items() if when > day]) for day in days])
    quote = {name: (getattr(bars, name) / later).tolist() for name in ("open", "high", "low", "close")}
    actions = {
        "splits": {
            str(stamps[day]): {"date": stamps[day], "numerator": factor, "denominator": 1, "splitRatio": f"{factor}:1"}
            for day, factor in splits.items()
        },
        "dividends": {
            str(stamps[event.day]): {"amount": event.dividend, "date": stamps[event.day]}
            for event in events("AAPL")
            if event.dividend
        },
    }
    assert bars.volume is not None
    indicators = {
        "quote": [{**quote, "volume": (bars.volume * later).astype(int).tolist()}],
        "adjclose": [{"adjclose": bars.extra["adj_close"].tolist()}],
    }
    meta = {
        "currency": "USD",
        "symbol": "AAPL",
        "instrumentType": "EQUITY",
        "exchangeTimezoneName": "America/New_York",
        "gmtoffset": -18000,
        "timezone": "EST",
        "dataGranularity": "1d",
        "range": "",
        "validRanges": ["1d", "max"],
        "regularMarketTime": opens[-1] + 23_400,
        "priceHint": 2,
        "currentTradingPeriod": {
            name: {"timezone": "EST", "start": opens[-1], "end": opens[-1] + 23_400, "gmtoffset": -18000}
            for name in ("pre", "regular", "post")
        },
    }
    result = {"meta": meta, "timestamp": opens, "events": actions, "indicators": indicators}
    return web.json_response({"chart": {"result": [result], "error": None}})


async def cookie_or_crumb(request: web.Request) -> web.Response:
    return web.Response(text="crumb")


async def summary(request: web.Request) -> web.Response:
    said = {"code": "Not Found", "description": "Quote not found for symbol: NOSUCH"}
    return web.json_response({"quoteSummary": {"result": None, "error": said}}, status=404)


@pytest.fixture
def yahoo(tmp_path: Path) -> Iterator[Trouble]:
    app = web.Application()
    trouble = Trouble(app)
    app.router.add_get("/v8/finance/chart/{symbol}", chart)
    app.router.add_get("/v10/finance/quoteSummary/{symbol}", summary)
    app.router.add_get("/{path:.*}", cookie_or_crumb)
    yfinance.set_tz_cache_location(str(tmp_path))
    with serving(app) as base_url, requests.Session() as session:
        session.mount("https://", Led(base_url))
        SingletonMeta._instances.clear()
        YfData(session=session)
        yield trouble
        SingletonMeta._instances.clear()


def test_prices_are_put_back_to_what_was_quoted(yahoo: Trouble) -> None:
    table, bars = load(Yfinance(), ask("AAPL", "2000-01-01", "2014-01-01")), runner.sample_data("AAPL")
    assert table.time.tolist() == bars.time.tolist()
    for name in ("open", "high", "low", "close", "volume"):
        assert table.columns[name].tolist() == getattr(bars, name).tolist()
    days, split, dividend = np.array(dates(table)), table.columns["split"], table.columns["dividend"]
    assert dict(zip(days[split != 1], split[split != 1], strict=True)) == {"2000-06-21": 2.0, "2005-02-28": 2.0}
    paid = dict(zip(days[dividend != 0], dividend[dividend != 0], strict=True))
    assert paid == {"2012-08-09": 2.65, "2012-11-07": 2.65, "2013-02-07": 2.65}


def test_an_unknown_ticker_is_named_however_often(yahoo: Trouble) -> None:
    for _ in range(4):  # yfinance looks it up in another place the first two times
        with pytest.raises(SymbolUnknown, match=r"yfinance: NOSUCH 1d 2000-01-01\.\.2014-01-01"):
            load(Yfinance(), ask("NOSUCH", "2000-01-01", "2014-01-01"))


def test_a_refused_client_is_unavailable(yahoo: Trouble) -> None:
    yahoo.plan[CHART] = [status(429)] * 9
    with pytest.raises(SourceUnavailable, match=r"yfinance: AAPL 1d .*too much was asked"):
        load(Yfinance(), ask("AAPL", "2000-01-01", "2014-01-01"))


@pytest.mark.parametrize("fault", [html(), wrong_json(), wrong_json(b'{"chart": {"result": [{}], "error": null}}')])
def test_another_format_is_an_error_with_the_symbol(yahoo: Trouble, fault: Any) -> None:
    yahoo.plan[CHART] = [fault] * 9
    with pytest.raises((SourceUnavailable, SymbolUnknown, BadAnswer), match="yfinance: AAPL 1d"):
        load(Yfinance(), ask("AAPL", "2000-01-01", "2014-01-01"))


def test_without_the_package_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yfinance", None)
    with pytest.raises(SourceRefused, match=r"yfinance: AAPL 1d .*backtest-runner\[yfinance\]"):
        load(Yfinance(), ask("AAPL", "2000-01-01", "2014-01-01"))


def frame(index: pd.DatetimeIndex, **columns: list[float]) -> pd.DataFrame:
    n = len(index)
    usual = {"Open": [2.0] * n, "High": [4.0] * n, "Low": [1.0] * n, "Close": [3.0] * n, "Volume": [8.0] * n}
    return pd.DataFrame({**usual, "Dividends": [0.0] * n, "Stock Splits": [0.0] * n, **columns}, index=index)


def test_days_are_the_exchanges_trading_dates() -> None:
    tokyo = pd.DatetimeIndex(["2020-01-06", "2020-01-07"], tz="Asia/Tokyo")
    assert dates(from_frame(frame(tokyo), ask("7203.T", "2020-01-01", "2021-01-01"))) == ["2020-01-06", "2020-01-07"]


def test_minutes_are_utc_and_the_running_one_is_left_out() -> None:
    minutes = pd.date_range("2020-01-06 09:30", periods=3, freq="min", tz="America/New_York")
    table = from_frame(frame(minutes), ask("AAPL", "2020-01-01", "2021-01-01", "1m", now="2020-01-06T14:32:30"))
    assert table.time.tolist() == [ns("2020-01-06T14:30"), ns("2020-01-06T14:31")]


def test_a_dividend_before_a_split_is_what_was_paid() -> None:
    days = pd.date_range("2020-01-06", periods=3, tz="America/New_York")
    given = frame(days, **{"Dividends": [0.25, 0.5, 0.0], "Stock Splits": [0.0, 4.0, 0.0]})
    table = from_frame(given, ask("AAPL", "2020-01-01", "2021-01-01"))
    assert table.columns["dividend"].tolist() == [1.0, 0.5, 0.0]
    assert table.columns["close"].tolist() == [12.0, 3.0, 3.0]
    assert table.columns["volume"].tolist() == [2.0, 8.0, 8.0]
    assert table.columns["split"].tolist() == [1.0, 4.0, 1.0]


def test_a_split_after_the_span_still_counts() -> None:
    days = pd.date_range("2020-01-06", periods=3, tz="America/New_York")
    given = frame(days, **{"Stock Splits": [0.0, 0.0, 2.0]})
    assert from_frame(given, ask("AAPL", "2020-01-01", "2020-01-07")).columns["close"].tolist() == [6.0]


def test_nulls_are_gaps_and_other_columns_an_error() -> None:
    days = pd.date_range("2020-01-06", periods=2, tz="America/New_York")
    with_gap = frame(days, Close=[np.nan, 3.0])
    assert len(from_frame(with_gap, ask("AAPL", "2020-01-01", "2021-01-01")).time) == 1
    with pytest.raises(BadAnswer, match=r"yfinance: AAPL 1d .*Stock Splits is missing"):
        from_frame(frame(days).drop(columns="Stock Splits"), ask("AAPL", "2020-01-01", "2021-01-01"))
    with pytest.raises(NoData, match="yfinance: AAPL"):
        from_frame(frame(days), ask("AAPL", "2021-01-01", "2022-01-01"))
