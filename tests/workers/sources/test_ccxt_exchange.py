from __future__ import annotations

import asyncio
import gc
import logging
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from runner.errors import BadAnswer, FetchError, NoData, SettingsError, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, banned, html, retry_after, status, truncated, wrong_json
from tests.workers.sources.asking import ask, load, ns
from tests.workers.sources.exchanges import NOW, Exchanges, answering, behind, part, same
from workers.session import HttpClient, Limits
from workers.sources.ccxt_exchange import Ccxt
from workers.sources.protocol import Ask, Table
from workers.standin.crypto import kline_rows

pytest.importorskip("ccxt", reason="the extra is not installed")

KLINES, MARKETS = "/binance/api/v3/klines", "/binance/api/v3/exchangeInfo"


def asked(server: Exchanges, interval: str, start: str, end: str, symbol: str = "BTC/USDT") -> Ask:
    return ask(symbol, start, end, interval, now=NOW, exchange="binance", base_url=f"{server.url}/binance")


def year(server: Exchanges) -> Ask:
    return asked(server, "1d", "2020-01-01", "2021-01-01")


@pytest.mark.parametrize(
    ("interval", "start", "end", "pages"),
    [
        ("1m", "2024-02-28", "2024-03-02", 5),
        ("1d", "2018-01-01", "2019-01-01", 1),
        ("1M", "2018-01-01", "2020-01-01", 1),
    ],
)
def test_bars_are_right_to_the_last_bit_page_after_page(
    server: Exchanges, interval: str, start: str, end: str, pages: int
) -> None:
    question = asked(server, interval, start, end)
    assert same(load(Ccxt(), question), behind(server, question))
    assert server.trouble.calls[KLINES] == pages


def test_the_running_bar_is_dropped(server: Exchanges) -> None:
    question = asked(server, "1d", "2025-01-01", "2026-01-01")
    assert same(load(Ccxt(), question), part(behind(server, question), slice(0, -1)))


def test_a_listing_inside_of_the_span_is_where_the_bars_begin(server: Exchanges) -> None:
    assert load(Ccxt(), asked(server, "1h", "2017-01-01", "2018-01-01")).time[0] == ns("2017-08-17")


def test_requests_go_through_our_client_which_alone_retries(server: Exchanges) -> None:
    server.trouble.plan[KLINES] = [retry_after(0), truncated()]

    async def counted() -> dict[str, int]:
        http = HttpClient(limits=Limits(backoff_s=0.01))
        try:
            table = await Ccxt().load(year(server), http)
            assert same(table, behind(server, year(server)))
            return http.stats()
        finally:
            await http.close()

    stats = asyncio.run(counted())
    assert server.trouble.calls[KLINES] == 3
    assert stats["http_retries"] == 2
    assert stats["http_attempts"] == server.calls()
    agents = {request.headers["User-Agent"] for request in server.trouble.seen[KLINES]}
    assert all(agent.startswith("backtest-runner/") for agent in agents)


def test_the_markets_are_loaded_once_for_all_that_ask_at_once(server: Exchanges) -> None:
    async def many() -> list[Table]:
        http, source = HttpClient(), Ccxt()
        symbols = ("BTC/USDT", "ETH/USDT", "SOL/USDT")
        try:
            questions = [asked(server, "1d", "2020-01-01", "2021-01-01", symbol) for symbol in symbols]
            return list(await asyncio.gather(*(source.load(question, http) for question in questions)))
        finally:
            await http.close()

    assert [len(table.time) for table in asyncio.run(many())] == [366] * 3
    assert server.trouble.calls[MARKETS] == 1


def test_one_caller_who_gives_up_leaves_the_markets_to_the_others(server: Exchanges) -> None:
    under_way = threading.Event()

    async def later(request: web.Request) -> web.StreamResponse:
        under_way.set()
        return web.Response(status=503)

    server.trouble.plan[MARKETS] = [later]

    async def two() -> Table:
        http, source = HttpClient(limits=Limits(backoff_s=0.01)), Ccxt()
        try:
            first = asyncio.create_task(source.load(year(server), http))
            second = asyncio.create_task(source.load(year(server), http))
            await asyncio.to_thread(under_way.wait, 10)
            first.cancel()
            table = await second
            assert first.cancelled() or first.done()
            return table
        finally:
            await http.close()

    assert same(asyncio.run(two()), behind(server, year(server)))


def test_nothing_is_left_open(server: Exchanges, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="ccxt"):
        load(Ccxt(), year(server))
        gc.collect()
    assert "requires to release all resources" not in caplog.text


def test_an_unknown_symbol(server: Exchanges) -> None:
    with pytest.raises(SymbolUnknown, match=r"^ccxt/binance: BTCEUR 1d 2020-01-01\.\.2021-01-01: .*BTC/USDT"):
        load(Ccxt(), asked(server, "1d", "2020-01-01", "2021-01-01", "BTCEUR"))
    assert server.trouble.calls[KLINES] == 0


def test_a_range_before_the_listing_is_no_data(server: Exchanges) -> None:
    with pytest.raises(NoData, match=r"^ccxt/binance: BTC/USDT 1M 2010-01-01\.\.2012-01-01: "):
        load(Ccxt(), asked(server, "1M", "2010-01-01", "2012-01-01"))


@pytest.mark.parametrize("given", [{}, {"exchange": "binanse"}, {"exchange": 7}, {"exchange": "__class__"}])
def test_the_exchange_has_to_be_one_of_ccxt_s(server: Exchanges, given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"^ccxt: exchange=.*expected one of"):
        load(Ccxt(), ask("BTC/USDT", "2020-01-01", "2021-01-01", now=NOW, **given))


def test_a_missing_library_is_named_with_its_cure(server: Exchanges, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ccxt.async_support", None)
    with pytest.raises(SettingsError, match=r"pip install 'backtest-runner\[ccxt\]'"):
        load(Ccxt(), year(server))


def test_an_interval_that_the_exchange_lacks_is_refused_with_those_it_has(server: Exchanges) -> None:
    server.trouble.plan["/kraken/0/public/AssetPairs"] = [answering({"error": [], "result": {}})]
    server.trouble.plan["/kraken/0/public/Assets"] = [answering({"error": [], "result": {}})]
    question = ask(
        "BTC/USD", "2025-01-01", "2025-02-01", "3m", now=NOW, exchange="kraken", base_url=f"{server.url}/kraken"
    )
    with pytest.raises(SettingsError, match="kraken has no such interval; it has 1m, 5m"):
        load(Ccxt(), question)


def test_an_exchange_that_sends_its_newest_bars_whatever_the_start_is_found_out(server: Exchanges) -> None:
    newest = server.prices.bars("BTCUSDT", "1h", ns("2025-01-01"), ns("2025-04-01"))
    rows = kline_rows(part(newest, slice(-1000, None)), "1h", 10**6)
    server.trouble.plan[KLINES] = [answering(rows)]
    with pytest.raises(SourceRefused, match="only its newest 1000 bars, from 2025-01-27T21:00:00 on"):
        load(Ccxt(), asked(server, "1h", "2025-01-01", "2026-01-01"))


def test_an_exchange_that_answers_its_newest_bar_to_any_later_start_is_asked_a_few_times(
    server: Exchanges, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of most exchanges ccxt leaves out what is before the start, but each of its classes may do it otherwise.
    monkeypatch.setattr("ccxt.async_support.binance.filter_by_since_limit", lambda self, rows, *_, **__: rows)
    question = asked(server, "1m", "2024-02-01", "2024-02-03")
    traded = part(behind(server, question), slice(0, 100))

    async def newest(request: web.Request) -> web.StreamResponse:
        asked_ns = int(request.query["startTime"]) * 10**6
        from_there = np.flatnonzero(traded.time >= asked_ns).tolist()
        return web.json_response(kline_rows(part(traded, from_there or slice(-1, None)), "1m", 10**6))

    server.trouble.plan[KLINES] = [newest] * 50
    assert same(load(Ccxt(), question), traded)
    assert server.trouble.calls[KLINES] == 4  # its hundred bars, then three thousands of minutes without


def test_pages_of_one_bar_come_to_an_end(server: Exchanges) -> None:
    question = asked(server, "1m", "2024-02-01", "2024-02-02")
    bars = behind(server, question)

    async def one(request: web.Request) -> web.StreamResponse:
        first = int(np.searchsorted(bars.time, int(request.query["startTime"]) * 10**6))
        return web.json_response(kline_rows(part(bars, slice(first, first + 1)), "1m", 10**6))

    server.trouble.plan[KLINES] = [one] * 2000
    with pytest.raises(BadAnswer, match="32 pages did not reach the end of the range"):
        load(Ccxt(), question)
    assert server.trouble.calls[KLINES] == 32


@pytest.mark.parametrize("path", [MARKETS, KLINES])
@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (html(), BadAnswer),
        (html(403), FetchError),
        (wrong_json(), BadAnswer),
        (answering("text"), BadAnswer),
        (banned(), SourceRefused),
        (status(400, b'{"code":-1003,"msg":"Too many requests."}', Content_Type="application/json"), SourceUnavailable),
    ],
    ids=["html", "403", "json", "text", "418", "-1003"],
)
def test_an_answer_that_is_no_data_is_one_error(
    server: Exchanges, path: str, fault: Fault, kind: type[FetchError]
) -> None:
    server.trouble.plan[path] = [fault]
    with pytest.raises(kind, match=r"^ccxt/binance: BTC/USDT 1d 2020-01-01\.\.2021-01-01: ") as caught:
        load(Ccxt(), year(server))
    assert kind is FetchError or type(caught.value) is kind


@pytest.mark.parametrize(
    "change",
    [
        lambda row: [row[0], "x", *row[2:]],
        lambda row: [*row[:5], None],
        lambda row: row[:3],
        lambda row: [row[0], *row[3:]],
    ],
    ids=["text", "no volume", "three fields", "shifted"],
)
def test_one_row_that_is_not_as_documented_spoils_the_answer(
    server: Exchanges, change: Callable[[list[Any]], list[Any]]
) -> None:
    sent = [list(row) for row in kline_rows(behind(server, year(server)), "1d", 10**6)]
    sent[50] = change(sent[50])
    server.trouble.plan[KLINES] = [answering(sent)]
    with pytest.raises(BadAnswer, match=r"^ccxt/binance: BTC/USDT 1d"):
        load(Ccxt(), year(server))
