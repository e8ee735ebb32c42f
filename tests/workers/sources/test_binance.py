from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web

from runner.errors import BadAnswer, FetchError, NoData, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import (
    Fault,
    banned,
    dropped,
    gzip_bomb,
    html,
    large_error,
    redirect,
    retry_after,
    serving,
    status,
    truncated,
    wrong_json,
)
from tests.workers.sources.asking import ask, load, ns
from tests.workers.sources.exchanges import NOW, Exchanges, answering, behind, part, same
from workers.sources.binance import Binance
from workers.sources.protocol import Ask
from workers.standin import Prices, make_app
from workers.standin.crypto import kline_rows

KLINES = "/binance/api/v3/klines"
MS_NS = 10**6


def asked(server: Exchanges, symbol: str, interval: str, start: str, end: str) -> Ask:
    return ask(symbol, start, end, interval, now=NOW, base_url=f"{server.url}/binance")


def year(server: Exchanges, symbol: str = "BTCUSDT") -> Ask:
    return asked(server, symbol, "1d", "2020-01-01", "2021-01-01")


def rows(server: Exchanges) -> list[list[Any]]:
    """The year's rows as Binance sends them."""
    return [list(row) for row in kline_rows(behind(server, year(server)), "1d", MS_NS)]


# Right bars


@pytest.mark.parametrize("interval", ["1m", "15m", "4h", "1d", "3d", "1w", "1M"])
def test_bars_are_right_to_the_last_bit(server: Exchanges, interval: str) -> None:
    start, end = ("2024-02-28", "2024-03-02") if interval in ("1m", "15m") else ("2018-01-01", "2020-01-01")
    question = asked(server, "ETHUSDT", interval, start, end)
    assert same(load(Binance(), question), behind(server, question))


def test_gaps_of_the_market_stay_gaps(server: Exchanges) -> None:
    question = asked(server, "SP500", "1d", "2018-01-01", "2019-01-01")
    table = load(Binance(), question)
    assert len(table.time) == 251  # sessions in 2018
    assert same(table, behind(server, question))


def test_pages_of_a_thousand_bars_cover_the_span_without_overlap(server: Exchanges) -> None:
    question = asked(server, "BTCUSDT", "1h", "2024-01-01", "2024-04-13T09:00")  # 2,481 hours
    assert same(load(Binance(), question), behind(server, question))
    pages = sorted((int(r.query["startTime"]), int(r.query["endTime"])) for r in server.trouble.seen[KLINES])
    assert len(pages) == 3
    assert pages[0][0] * MS_NS == question.start_ns
    assert (pages[-1][1] + 1) * MS_NS == question.end_ns
    assert [end + 1 for _, end in pages[:-1]] == [start for start, _ in pages[1:]]
    assert {r.query["limit"] for r in server.trouble.seen[KLINES]} == {"1000"}


def test_pages_after_the_first_are_asked_for_at_once() -> None:
    waiting: list[web.Request] = []
    together = asyncio.Event()

    @web.middleware
    async def gate(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        waiting.append(request)
        if len(waiting) == 5:
            together.set()
        if len(waiting) > 1:  # the four others let each other through
            await asyncio.wait_for(together.wait(), 10)
        return await handler(request)

    app = make_app(Prices(ns(NOW)))
    app.middlewares.append(gate)
    with serving(app) as url:
        question = ask("BTCUSDT", "2024-01-01", "2024-01-04T11:20", "1m", now=NOW, base_url=f"{url}/binance")
        assert len(load(Binance(), question).time) == 5_000
    assert len(waiting) == 5


def test_the_running_bar_is_dropped_and_the_future_not_asked_for(server: Exchanges) -> None:
    question = asked(server, "BTCUSDT", "1d", "2025-01-01", "2026-01-01")
    table = load(Binance(), question)
    assert same(table, part(behind(server, question), slice(0, -1)))
    assert table.time[-1] == ns("2025-03-09")
    assert [int(r.query["endTime"]) for r in server.trouble.seen[KLINES]] == [ns(NOW) // MS_NS - 1]


def test_a_bar_that_closes_this_moment_is_kept(server: Exchanges) -> None:
    table = load(Binance(), asked(server, "BTCUSDT", "30m", "2025-03-10", "2025-03-11"))
    assert table.time[-1] == ns("2025-03-10T12:00")


def test_duplicates_unsorted_rows_and_nulls_become_each_bar_once(server: Exchanges) -> None:
    expected, sent = behind(server, year(server)), rows(server)
    sent[7][1] = None
    corrected = list(sent[20])
    sent[20] = [sent[20][0], "1", "1", "1", "1", *sent[20][5:]]  # replaced by the later row of the same time
    server.trouble.plan[KLINES] = [answering([*reversed(sent), corrected])]
    kept = [at for at in range(len(expected.time)) if at != 7]
    assert same(load(Binance(), year(server)), part(expected, kept))


def test_microseconds_are_told_from_milliseconds(server: Exchanges) -> None:
    expected = behind(server, year(server))
    half = [row if at < 100 else [row[0] * 1000, *row[1:]] for at, row in enumerate(rows(server))]
    server.trouble.plan[KLINES] = [answering(half)]
    assert same(load(Binance(), year(server)), expected)


@pytest.mark.parametrize(
    "fault",
    [retry_after(0), status(503), dropped(), truncated(), large_error()],
    ids=["429", "503", "dropped", "cut", "3 MB"],
)
def test_a_fault_that_passes_leaves_right_bars(server: Exchanges, fault: Fault) -> None:
    question = asked(server, "BTCUSDT", "1h", "2024-01-01", "2024-03-01")
    server.trouble.plan[KLINES] = [fault, None]
    assert same(load(Binance(), question), behind(server, question))


# Nothing there


def test_an_unknown_symbol_costs_one_request(server: Exchanges) -> None:
    with pytest.raises(SymbolUnknown, match=r"^binance: UNKNOWN1 1m 2024-01-01\.\.2024-02-01: no such symbol.*BTCUSDT"):
        load(Binance(), asked(server, "UNKNOWN1", "1m", "2024-01-01", "2024-02-01"))
    assert server.calls() == 1


def test_a_symbol_that_binance_cannot_even_read_is_unknown(server: Exchanges) -> None:
    said = b'{"code":-1100,"msg":"Illegal characters found in parameter \'symbol\'; legal range is ..."}'
    server.trouble.plan[KLINES] = [status(400, said, Content_Type="application/json")]
    with pytest.raises(SymbolUnknown):
        load(Binance(), year(server, "BTC/USDT"))


def test_a_range_before_the_listing_is_no_data(server: Exchanges) -> None:
    with pytest.raises(NoData, match=r"^binance: BTCUSDT 1d 2015-01-01\.\.2016-01-01: the provider has nothing"):
        load(Binance(), asked(server, "BTCUSDT", "1d", "2015-01-01", "2016-01-01"))


def test_a_range_in_the_future_is_no_data_without_a_request(server: Exchanges) -> None:
    with pytest.raises(NoData):
        load(Binance(), asked(server, "BTCUSDT", "1d", "2026-01-01", "2027-01-01"))
    assert server.calls() == 0


# Nothing wrong


def changed(at: int, value: object) -> Callable[[list[list[Any]]], object]:
    def change(sent: list[list[Any]]) -> object:
        sent[50][at] = value
        return sent

    return change


@pytest.mark.parametrize(
    "change",
    [
        changed(1, "n/a"),
        changed(2, "nan"),
        changed(3, "1000000"),
        changed(4, "0"),
        changed(5, None),
        changed(5, "-1"),
        changed(0, None),
        changed(0, "yesterday"),
        changed(0, 1_700_000_000_000),
        lambda sent: [row[:11] for row in sent],
        lambda sent: [[*row, "0"] for row in sent],
        lambda sent: [[row[0], row[4], row[3], row[2], row[1], *row[5:]] for row in sent],
        lambda sent: [row[1:] + row[:1] for row in sent],
        lambda sent: {"rows": sent},
        lambda sent: [dict(enumerate(row)) for row in sent],
        lambda sent: [*sent, "more"],
        lambda sent: sent * 3,
        lambda sent: None,
        lambda sent: "[]",
    ],
)
def test_rows_that_are_not_as_documented_are_a_bad_answer(
    server: Exchanges, change: Callable[[list[list[Any]]], object]
) -> None:
    server.trouble.plan[KLINES] = [answering(change(rows(server)))]
    with pytest.raises(BadAnswer, match=r"^binance: BTCUSDT 1d 2020-01-01\.\.2021-01-01: "):
        load(Binance(), year(server))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (html(), BadAnswer),
        (html(403), SourceRefused),
        (html(400), BadAnswer),
        (wrong_json(), BadAnswer),
        (gzip_bomb(), BadAnswer),
        (status(404), BadAnswer),
        (status(451, b"restricted location"), SourceRefused),
        (status(400, b'{"code":-1120,"msg":"Invalid interval."}', Content_Type="application/json"), BadAnswer),
        (redirect("http://10.0.0.1/"), SourceRefused),
    ],
    ids=["html", "403", "html 400", "json", "bomb", "404", "451", "-1120", "redirect"],
)
def test_an_answer_that_is_no_data_is_one_error(server: Exchanges, fault: Fault, kind: type[FetchError]) -> None:
    server.trouble.plan[KLINES] = [fault]
    with pytest.raises(kind, match=r"^binance: BTCUSDT 1d 2020-01-01\.\.2021-01-01: ") as caught:
        load(Binance(), year(server))
    assert type(caught.value) is kind
    assert server.calls() == 1


def test_a_ban_is_refused_and_not_asked_again(server: Exchanges) -> None:
    server.trouble.plan[KLINES] = [banned(120)]
    with pytest.raises(SourceRefused, match=r"^binance: BTCUSDT 1h 2024-01-01\.\.2024-07-01: "):
        load(Binance(), asked(server, "BTCUSDT", "1h", "2024-01-01", "2024-07-01"))
    assert server.calls() == 1


def test_one_bad_page_spoils_the_whole_span(server: Exchanges) -> None:
    server.trouble.plan[KLINES] = [None, None, html()]
    with pytest.raises(BadAnswer, match="expected JSON"):
        load(Binance(), asked(server, "BTCUSDT", "1h", "2024-01-01", "2024-07-01"))


def test_a_provider_that_stays_down_is_unavailable(server: Exchanges) -> None:
    server.trouble.plan[KLINES] = [status(503)] * 4
    with pytest.raises(SourceUnavailable, match=r"^binance: BTCUSDT 1d 2020-01-01\.\.2021-01-01: "):
        load(Binance(), year(server))


def test_a_private_address_is_asked_only_when_the_user_named_it() -> None:
    question = ask("BTCUSDT", "2020-01-01", "2021-01-01", now=NOW)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("workers.sources.binance.BASE_URL", "http://127.0.0.1:9/")
        with pytest.raises(SourceRefused, match=r"^binance: .*private"):
            load(Binance(), question)
