from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np
import pytest

from runner.errors import BadAnswer, FetchError, NoData, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, html, retry_after, status, wrong_json
from tests.workers.sources.asking import ask, load, ns
from tests.workers.sources.exchanges import NOW, Exchanges, answering, behind, part, same
from workers.sources.coinbase import Coinbase
from workers.sources.protocol import Ask, Table

CANDLES = "/coinbase/products/BTC-USD/candles"


def asked(server: Exchanges, interval: str, start: str, end: str, symbol: str = "BTC-USD") -> Ask:
    return ask(symbol, start, end, interval, now=NOW, base_url=f"{server.url}/coinbase")


def january(server: Exchanges) -> Ask:
    return asked(server, "1d", "2024-01-01", "2024-02-01")


def traded(server: Exchanges, question: Ask) -> Table:
    """The server's bars in that span in which something was traded."""
    bars = behind(server, question)
    return part(bars, np.flatnonzero(bars.columns["volume"] > 0).tolist())


def rows(server: Exchanges) -> list[list[Any]]:
    bars = traded(server, january(server))
    names = ("low", "high", "open", "close", "volume")
    return [
        list(row) for row in zip((bars.time // 10**9).tolist(), *(bars.columns[n].tolist() for n in names), strict=True)
    ]


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [("1m", "2024-02-29", "2024-03-01"), ("1h", "2024-01-01", "2024-03-01"), ("1d", "2020-01-01", "2022-01-01")],
)
def test_bars_are_right_to_the_last_bit_and_buckets_without_a_trade_stay_missing(
    server: Exchanges, interval: str, start: str, end: str
) -> None:
    question = asked(server, interval, start, end)
    assert same(load(Coinbase(), question), traded(server, question))


def test_no_page_asks_for_more_than_300_and_all_of_them_cover_the_span(server: Exchanges) -> None:
    question = asked(server, "1d", "2020-01-01", "2022-01-01")  # 731 days
    load(Coinbase(), question)
    seen = [
        (datetime.fromisoformat(r.query["start"]), datetime.fromisoformat(r.query["end"]))
        for r in server.trouble.seen[CANDLES]
    ]
    assert len(seen) == 3
    assert all((end - start).days < 300 for start, end in seen)
    assert [end for _, end in sorted(seen)][:-1] == [start for start, _ in sorted(seen)][1:]


def test_the_running_bar_is_dropped(server: Exchanges) -> None:
    table = load(Coinbase(), asked(server, "1d", "2025-01-01", "2026-01-01"))
    assert table.time[-1] == ns("2025-03-09")


def test_rows_before_the_start_and_duplicates_are_dropped(server: Exchanges) -> None:
    sent = rows(server)
    early = [sent[0][0] - 86_400, *sent[0][1:]]
    server.trouble.plan[CANDLES] = [answering([*sent, early, *sent[:5]])]
    assert same(load(Coinbase(), january(server)), traded(server, january(server)))


@pytest.mark.parametrize("fault", [retry_after(0), status(503)], ids=["429", "503"])
def test_a_fault_that_passes_leaves_right_bars(server: Exchanges, fault: Fault) -> None:
    server.trouble.plan[CANDLES] = [fault]
    assert same(load(Coinbase(), january(server)), traded(server, january(server)))


def test_an_unknown_product_costs_one_request(server: Exchanges) -> None:
    with pytest.raises(SymbolUnknown, match=r"^coinbase: UNKNOWN-USD 1m 2024-01-01\.\.2024-02-01: .*BTC-USD"):
        load(Coinbase(), asked(server, "1m", "2024-01-01", "2024-02-01", "UNKNOWN-USD"))
    assert server.calls() == 1


@pytest.mark.parametrize("symbol", ["BTCUSD", "../x-y", "BTC-USD/../..", "BTC-USD?x", "", "BTC USD", "BTC-"])
def test_what_cannot_be_a_product_never_becomes_part_of_a_path(server: Exchanges, symbol: str) -> None:
    with pytest.raises(SymbolUnknown):
        load(Coinbase(), asked(server, "1d", "2024-01-01", "2024-02-01", symbol))
    assert server.calls() == 0


def test_a_range_before_the_listing_is_no_data(server: Exchanges) -> None:
    with pytest.raises(NoData, match=r"^coinbase: BTC-USD 1d 2015-01-01\.\.2016-01-01: "):
        load(Coinbase(), asked(server, "1d", "2015-01-01", "2016-01-01"))


@pytest.mark.parametrize(
    "change",
    [
        lambda sent: [row[:5] for row in sent],
        lambda sent: [[row[0], row[2], row[1], *row[3:]] for row in sent],
        lambda sent: [[row[0], row[3], row[2], row[1], *row[4:]] for row in sent],
        lambda sent: [["2024-01-01", *row[1:]] for row in sent],
        lambda sent: [[row[0], "x", *row[2:]] for row in sent],
        lambda sent: {"candles": sent},
        lambda sent: None,
    ],
    ids=["five fields", "high first", "open first", "dates", "text", "object", "null"],
)
def test_rows_that_are_not_as_documented_are_a_bad_answer(
    server: Exchanges, change: Callable[[list[list[Any]]], object]
) -> None:
    server.trouble.plan[CANDLES] = [answering(change(rows(server)))]
    with pytest.raises(BadAnswer, match=r"^coinbase: BTC-USD 1d 2024-01-01\.\.2024-02-01: "):
        load(Coinbase(), january(server))


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (html(), BadAnswer),
        (html(404), BadAnswer),
        (html(403), SourceRefused),
        (wrong_json(), BadAnswer),
        (status(400, b'{"message":"Unsupported granularity"}', Content_Type="application/json"), BadAnswer),
        (status(404, b'{"message":"Route not found"}', Content_Type="application/json"), BadAnswer),
    ],
    ids=["html", "html 404", "403", "json", "400", "404"],
)
def test_an_answer_that_is_no_data_is_one_error(server: Exchanges, fault: Fault, kind: type[FetchError]) -> None:
    server.trouble.plan[CANDLES] = [fault]
    with pytest.raises(kind, match=r"^coinbase: BTC-USD 1d 2024-01-01\.\.2024-02-01: "):
        load(Coinbase(), january(server))
    assert server.calls() == 1


def test_a_provider_that_stays_down_is_unavailable(server: Exchanges) -> None:
    server.trouble.plan[CANDLES] = [status(502)] * 4
    with pytest.raises(SourceUnavailable, match=r"^coinbase: BTC-USD 1d"):
        load(Coinbase(), january(server))
