from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from runner.errors import BadAnswer, FetchError, NoData, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, html, retry_after, status, wrong_json
from tests.workers.sources.asking import ask, load, ns
from tests.workers.sources.exchanges import NOW, Exchanges, answering, exchanges, part, same
from workers.session import HttpClient
from workers.sources.kraken import Kraken
from workers.sources.protocol import Ask, Table

OHLC = "/kraken/0/public/OHLC"


def asked(server: Exchanges, interval: str, start: str, end: str, symbol: str = "XBTUSD") -> Ask:
    return ask(symbol, start, end, interval, now=NOW, base_url=f"{server.url}/kraken")


def february(server: Exchanges) -> Ask:
    return asked(server, "1d", "2025-02-01", "2025-03-01")


def behind(server: Exchanges, question: Ask) -> Table:
    # Kraken's weeks begin on Thursday, as the stand-in's seven days do.
    interval = {"1w": "7d"}.get(question.interval, question.interval)
    return server.prices.bars(question.symbol, interval, question.start_ns, question.end_ns)


def said(server: Exchanges) -> dict[str, Any]:
    """February's answer as Kraken sends it."""
    bars = behind(server, february(server))
    five = zip(*(bars.columns[name].tolist() for name in ("open", "high", "low", "close", "volume")), strict=True)
    rows = [
        [time // 10**9, *map(str, row[:4]), str(row[3]), str(row[4]), 100]
        for time, row in zip(bars.time.tolist(), five, strict=True)
    ]
    return {"error": [], "result": {"XXBTZUSD": rows, "last": rows[-1][0]}}


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [
        ("5m", "2025-03-09", "2025-03-10"),
        ("1h", "2025-02-10", "2025-02-11"),
        ("1d", "2023-04-01", "2023-05-01"),
        ("1w", "2018-01-01", "2019-01-01"),
        ("15d", "2024-01-01", "2025-01-01"),
    ],
)
def test_bars_are_right_to_the_last_bit(server: Exchanges, interval: str, start: str, end: str) -> None:
    question = asked(server, interval, start, end)
    assert same(load(Kraken(), question), behind(server, question))
    assert server.calls() == 1


def test_the_running_bar_is_dropped(server: Exchanges) -> None:
    question = asked(server, "1d", "2025-03-01", "2025-04-01")
    assert same(load(Kraken(), question), part(behind(server, question), slice(0, -1)))


def test_what_the_answer_calls_unfinished_is_dropped_even_if_our_clock_is_ahead(server: Exchanges) -> None:
    ahead = ask("XBTUSD", "2025-03-01", "2025-04-01", now="2025-03-12", base_url=f"{server.url}/kraken")
    assert load(Kraken(), ahead).time[-1] == ns("2025-03-09")


@pytest.mark.parametrize(
    ("interval", "start", "end", "since"),
    [
        ("1d", "2023-03-01", "2023-04-01", "2023-03-22"),
        ("1d", "2019-01-01", "2019-02-01", "2023-03-22"),
        ("1h", "2025-02-08", "2025-02-09", "2025-02-08T13:00"),
    ],
)
def test_a_span_that_kraken_has_only_a_part_of_is_refused_with_what_it_has(
    server: Exchanges, interval: str, start: str, end: str, since: str
) -> None:
    with pytest.raises(SourceRefused, match=rf"^kraken: XBTUSD {interval} .*only the last 720 bars, here from {since}"):
        load(Kraken(), asked(server, interval, start, end))


def test_a_short_history_is_not_taken_for_a_part() -> None:
    with exchanges(now="2018-06-01T12:00") as server:
        question = ask("XBTUSD", "2017-01-01", "2018-01-01", now="2018-06-01T12:00", base_url=f"{server.url}/kraken")
        assert load(Kraken(), question).time[0] == ns("2017-08-17")


def test_all_spans_of_a_symbol_share_one_request(server: Exchanges) -> None:
    async def months() -> list[Table]:
        http = HttpClient()
        try:
            return [
                await Kraken().load(asked(server, "1d", f"2024-0{month}-01", f"2024-0{month + 1}-01"), http)
                for month in range(1, 9)
            ]
        finally:
            await http.close()

    assert sum(len(table.time) for table in asyncio.run(months())) == 244  # January to August of a leap year
    assert server.calls() == 1


def test_rows_out_of_order_and_twice_become_each_bar_once(server: Exchanges) -> None:
    answer = said(server)
    rows = answer["result"]["XXBTZUSD"]
    answer["result"]["XXBTZUSD"] = [*reversed(rows), *rows[:3]]
    server.trouble.plan[OHLC] = [answering(answer)]
    assert same(load(Kraken(), february(server)), behind(server, february(server)))


def test_a_fault_that_passes_leaves_right_bars(server: Exchanges) -> None:
    server.trouble.plan[OHLC] = [retry_after(0), status(503)]
    assert same(load(Kraken(), february(server)), behind(server, february(server)))


def test_an_unknown_pair(server: Exchanges) -> None:
    with pytest.raises(SymbolUnknown, match=r"^kraken: UNKNOWN 1d 2025-02-01\.\.2025-03-01: .*XBTUSD"):
        load(Kraken(), asked(server, "1d", "2025-02-01", "2025-03-01", "UNKNOWN"))


def test_a_range_before_the_listing_is_no_data() -> None:
    with exchanges(now="2018-06-01T12:00") as server, pytest.raises(NoData, match="the provider has nothing"):
        load(Kraken(), ask("XBTUSD", "2015-01-01", "2016-01-01", now="2018-06-01", base_url=f"{server.url}/kraken"))


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        ("EService:Unavailable", SourceUnavailable),
        ("EService:Busy", SourceUnavailable),
        ("EGeneral:Too many requests", SourceUnavailable),
        ("EAPI:Rate limit exceeded", SourceUnavailable),
        ("EGeneral:Permission denied", SourceRefused),
        ("EGeneral:Invalid arguments", BadAnswer),
        ("what is this", BadAnswer),
    ],
)
def test_an_error_inside_of_a_200_is_an_error(server: Exchanges, error: str, kind: type[FetchError]) -> None:
    server.trouble.plan[OHLC] = [answering({"error": [error]})]
    with pytest.raises(kind, match=rf"^kraken: XBTUSD 1d 2025-02-01\.\.2025-03-01: .*{error}"):
        load(Kraken(), february(server))


@pytest.mark.parametrize(
    "change",
    [
        lambda answer: answer["result"],
        lambda answer: {"error": []},
        lambda answer: {"error": [], "result": None},
        lambda answer: {"error": [], "result": {"last": 0}},
        lambda answer: {"error": [], "result": {"A": [], "B": [], "last": 0}},
        lambda answer: {"error": [], "result": {"XXBTZUSD": answer["result"]["XXBTZUSD"]}},
        lambda answer: {"error": [], "result": {**answer["result"], "last": "soon"}},
        lambda answer: {"error": [], "result": {**answer["result"], "XXBTZUSD": {}}},
        lambda answer: json.loads(json.dumps(answer).replace(", 100]", "]")),
        lambda answer: json.loads(json.dumps(answer).replace(".", ",")),
        lambda answer: [],
    ],
)
def test_what_is_not_as_documented_is_a_bad_answer(
    server: Exchanges, change: Callable[[dict[str, Any]], object]
) -> None:
    server.trouble.plan[OHLC] = [answering(change(said(server)))]
    with pytest.raises(BadAnswer, match=r"^kraken: XBTUSD 1d 2025-02-01\.\.2025-03-01: "):
        load(Kraken(), february(server))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(html(), BadAnswer), (wrong_json(), BadAnswer), (status(404), BadAnswer), (status(403), SourceRefused)],
    ids=["html", "json", "404", "403"],
)
def test_an_answer_that_is_no_data_is_one_error(server: Exchanges, fault: Fault, kind: type[FetchError]) -> None:
    server.trouble.plan[OHLC] = [fault]
    with pytest.raises(kind, match=r"^kraken: XBTUSD 1d 2025-02-01\.\.2025-03-01: "):
        load(Kraken(), february(server))
