from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import runner
from runner.errors import BadAnswer, FetchError, NoData, SettingsError, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, html, status, wrong_json
from tests.workers.sources.asking import Standin, ask, dates, load, ns, standing_in
from workers.sources import alpaca
from workers.sources.alpaca import Alpaca
from workers.sources.protocol import Ask

KEY, SECRET = "0123456789abcdef-id", "0123456789abcdef-secret"
BARS, ACTIONS = "/alpaca/v2/stocks/bars", "/alpaca/v1/corporate-actions"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    monkeypatch.setenv("RUNNER_ALPACA_KEY_ID", KEY)
    monkeypatch.setenv("RUNNER_ALPACA_SECRET_KEY", SECRET)
    with standing_in() as standin:
        yield standin


def asked(
    server: Standin,
    symbol: str = "AAPL",
    start: str = "2005-01-01",
    end: str = "2006-01-01",
    interval: str = "1d",
    **more: str,
) -> Ask:
    return ask(symbol, start, end, interval, base_url=f"{server.url}/alpaca", **more)


def page(bars: dict[str, Any] | None, token: str | None = None) -> Fault:
    return wrong_json(json.dumps({"bars": bars, "next_page_token": token}).encode())


def row(stamp: str, close: float = 2.0) -> dict[str, Any]:
    return {"t": stamp, "o": 2.0, "h": 3.0, "l": 1.0, "c": close, "v": 5, "n": 1, "vw": 2.0}


def actions(token: str | None = None, **kinds: list[dict[str, Any]]) -> Fault:
    return wrong_json(json.dumps({"corporate_actions": kinds, "next_page_token": token}).encode())


def test_days_are_the_raw_ones_to_the_last_bit_on_their_trading_dates(server: Standin) -> None:
    table, bars = load(Alpaca(), asked(server)), runner.sample_data("AAPL")
    year = (bars.time >= ns("2005-01-01")) & (bars.time < ns("2006-01-01"))
    assert table.time.tolist() == bars.time[year].tolist()  # stamped 05:00Z in winter and 04:00Z in summer
    for name in ("open", "high", "low", "close", "volume"):
        assert table.columns[name].tolist() == getattr(bars, name)[year].tolist()


def test_splits_and_dividends_stand_on_their_ex_date(server: Standin) -> None:
    table = load(Alpaca(), asked(server, start="2005-01-01", end="2013-03-01"))
    days, split, dividend = np.array(dates(table)), table.columns["split"], table.columns["dividend"]
    assert dict(zip(days[split != 1], split[split != 1], strict=True)) == {"2005-02-28": 2.0}
    paid = dict(zip(days[dividend != 0], dividend[dividend != 0], strict=True))
    assert paid == {"2012-08-09": 2.65, "2012-11-07": 2.65, "2013-02-07": 2.65}


def test_an_action_processed_outside_the_span_counts_by_its_ex_date(server: Standin) -> None:
    table = load(Alpaca(), asked(server, start="2012-11-01", end="2012-11-09"))  # processed two weeks later
    assert table.columns["dividend"].tolist() == [0.0, 0.0, 0.0, 0.0, 2.65, 0.0]
    after = load(Alpaca(), asked(server, start="2012-11-08", end="2012-11-30"))
    assert not after.columns["dividend"].any()


def test_reverse_splits_and_several_actions_on_a_day_without_bars_come_together(server: Standin) -> None:
    server.trouble.plan[BARS] = [page({"AAPL": [row("2020-01-02T05:00:00Z"), row("2020-01-06T05:00:00Z")]})]
    server.trouble.plan[ACTIONS] = [
        actions("more", reverse_splits=[{"symbol": "AAPL", "ex_date": "2020-01-03", "new_rate": 1, "old_rate": 10}]),
        actions(
            cash_dividends=[
                {"symbol": "AAPL", "ex_date": "2020-01-03", "rate": 0.5},
                {"symbol": "AAPL", "ex_date": "2020-01-06", "rate": 0.25},
                {"symbol": "IBM", "ex_date": "2020-01-06", "rate": 8},
                {"symbol": "AAPL", "ex_date": "2020-01-07", "rate": 9},
            ]
        ),
    ]
    table = load(Alpaca(), asked(server, start="2020-01-01", end="2021-01-01"))
    assert table.columns["split"].tolist() == [1.0, 0.1]
    assert table.columns["dividend"].tolist() == [0.0, 0.75]


def test_minutes_are_utc_and_of_regular_hours(server: Standin) -> None:
    winter = load(Alpaca(), asked(server, start="2005-01-03", end="2005-01-04", interval="30m"))
    summer = load(Alpaca(), asked(server, start="2005-07-01", end="2005-07-02", interval="30m"))
    assert len(winter.time) == len(summer.time) == 13
    assert winter.time[[0, -1]].tolist() == [ns("2005-01-03T14:30"), ns("2005-01-03T20:30")]
    assert summer.time[[0, -1]].tolist() == [ns("2005-07-01T13:30"), ns("2005-07-01T19:30")]
    bars = runner.sample_data("AAPL")
    day = int(np.searchsorted(bars.time, ns("2005-01-03")))
    assert winter.columns["open"][0] == bars.open[day]
    assert winter.columns["close"][-1] == bars.close[day]


def test_extended_hours_are_an_option(server: Standin) -> None:
    table = load(Alpaca(), asked(server, start="2005-01-03", end="2005-01-04", interval="30m", session="extended"))
    assert table.time[[0, -1]].tolist() == [ns("2005-01-03T13:30"), ns("2005-01-03T21:30")]
    with pytest.raises(SettingsError, match="session='night'"):
        load(Alpaca(), asked(server, session="night"))


def test_an_intraday_split_stands_on_the_first_bar_of_its_day(server: Standin) -> None:
    table = load(Alpaca(), asked(server, start="2005-02-01", end="2005-03-01", interval="1h", session="extended"))
    [place] = np.flatnonzero(table.columns["split"] != 1)
    assert table.time[place] == ns("2005-02-28T13:30")


def test_all_pages_are_read(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpaca, "ROWS_A_PAGE", 100)
    assert len(load(Alpaca(), asked(server)).time) == 252
    assert server.trouble.calls[BARS] == 3


def test_two_symbols_on_one_page_do_not_mix(server: Standin) -> None:
    server.trouble.plan[BARS] = [
        page({"AAPL": [row("2020-01-02T05:00:00Z")]}, "b"),
        page({"AAPL": [row("2020-01-03T05:00:00Z")], "IBM": [row("2020-01-02T05:00:00Z", close=1.0)]}, "c"),
        page({"IBM": [row("2020-01-06T05:00:00Z", close=1.0)]}),
    ]
    table = load(Alpaca(), asked(server, start="2020-01-01", end="2021-01-01"))
    assert dates(table) == ["2020-01-02", "2020-01-03"]
    assert table.columns["close"].tolist() == [2.0, 2.0]


def test_duplicates_at_a_page_border_count_once(server: Standin) -> None:
    server.trouble.plan[BARS] = [
        page({"AAPL": [row("2020-01-02T05:00:00Z"), row("2020-01-03T05:00:00Z", close=1.5)]}, "b"),
        page({"AAPL": [row("2020-01-03T05:00:00Z", close=2.5), row("2020-01-06T05:00:00Z")]}),
    ]
    table = load(Alpaca(), asked(server, start="2020-01-01", end="2021-01-01"))
    assert table.columns["close"].tolist() == [2.0, 2.5, 2.0]


def test_pages_that_never_end_are_an_error(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpaca, "MOST_PAGES", 5)
    server.trouble.plan[BARS] = [page({}, f"page {number}") for number in range(9)]
    with pytest.raises(BadAnswer, match=r"alpaca: AAPL .*more than 5 pages"):
        load(Alpaca(), asked(server))
    assert server.trouble.calls[BARS] == 5


def test_without_a_feed_the_tapes_last_minutes_are_left_out(server: Standin) -> None:
    load(Alpaca(), asked(server, start="2013-02-01", end="2014-01-01", now="2013-02-20T12:00"))
    load(Alpaca(), asked(server, start="2013-02-01", end="2014-01-01", now="2013-02-20T12:00", feed="iex"))
    whole, iex = server.trouble.seen[BARS]
    assert whole.query["end"] == "2013-02-20T11:43:59.999999999Z"
    assert "feed" not in whole.query
    assert iex.query["end"] == "2013-02-20T11:59:59.999999999Z"
    assert iex.query["feed"] == "iex"
    assert iex.query["adjustment"] == "raw"


def test_a_plan_without_recent_tape_is_told_so(server: Standin) -> None:
    with pytest.raises(SourceRefused, match=r"alpaca: AAPL .*feed='iex'"):
        load(Alpaca(), asked(server, start="2013-02-01", end="2099-01-01", feed="sip"))


def test_the_keys_go_into_headers_and_nowhere_else(server: Standin) -> None:
    load(Alpaca(), asked(server))
    for seen in (*server.trouble.seen[BARS], *server.trouble.seen[ACTIONS]):
        assert (seen.headers["APCA-API-KEY-ID"], seen.headers["APCA-API-SECRET-KEY"]) == (KEY, SECRET)
        assert KEY not in str(seen.url)


@pytest.mark.parametrize("variable", ["RUNNER_ALPACA_KEY_ID", "RUNNER_ALPACA_SECRET_KEY"])
def test_both_halves_of_the_key_are_needed(server: Standin, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv(variable)
    with pytest.raises(SourceRefused, match=f"alpaca: AAPL .*{variable}"):
        load(Alpaca(), asked(server))
    assert not server.trouble.calls


def test_an_expired_key_is_refused_by_its_variables(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_ALPACA_SECRET_KEY", "expired")
    with pytest.raises(SourceRefused, match="RUNNER_ALPACA_KEY_ID and RUNNER_ALPACA_SECRET_KEY"):
        load(Alpaca(), asked(server))


@pytest.mark.parametrize("path", [BARS, ACTIONS])
@pytest.mark.parametrize(
    "fault",
    [
        status(500, KEY.encode()),
        status(422, f"{KEY} {SECRET}".encode()),
        status(403, SECRET.encode()),
        wrong_json(b'{"bars": "' + SECRET.encode() + b'"}'),
        wrong_json(b'{"bars": {"AAPL": [{"t": "' + SECRET.encode() + b'"}]}}'),
        actions(cash_dividends=[{"symbol": "AAPL", "ex_date": SECRET, "rate": 1}]),
    ],
)
def test_the_keys_are_in_no_message(
    server: Standin, path: str, fault: Fault, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.trouble.plan[path] = [fault] * 4
    with caplog.at_level(0), pytest.raises(FetchError) as caught:
        load(Alpaca(), asked(server))
    shown = f"{caught.value!r} {caught.value} {caplog.text} {''.join(capfd.readouterr())}"
    assert KEY not in shown
    assert SECRET not in shown
    assert str(caught.value).startswith("alpaca: AAPL 1d 2005-01-01..2006-01-01: ")


def test_an_impossible_symbol_is_unknown_and_one_without_bars_may_be(server: Standin) -> None:
    with pytest.raises(SymbolUnknown, match="alpaca: BTC/USD"):
        load(Alpaca(), asked(server, "BTC/USD"))
    with pytest.raises(NoData, match=r"alpaca: UNKNOWN .*does not know"):
        load(Alpaca(), asked(server, "UNKNOWN"))


def test_null_for_no_bars_is_no_data(server: Standin) -> None:
    server.trouble.plan[BARS] = [page(None)]
    with pytest.raises(NoData, match="alpaca: AAPL"):
        load(Alpaca(), asked(server))
    with pytest.raises(NoData, match="alpaca: AAPL"):
        load(Alpaca(), asked(server, start="2013-02-20", end="2014-01-01", now="2013-02-20T00:10"))


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        wrong_json(),
        wrong_json(b"{}"),
        page({"AAPL": {"t": 1}}),
        page({"AAPL": [{"t": "2020-01-02T05:00:00Z", "o": 1.0}]}),
        page({"AAPL": [row("yesterday")]}),
        page({"AAPL": [{**row("2020-01-02T05:00:00Z"), "t": None}]}),
        page({"AAPL": [row("2020-01-02T05:00:00Z", close=4.0)]}),
        page({"AAPL": [{**row("2020-01-02T05:00:00Z"), "v": None}]}),
    ],
)
def test_another_format_or_impossible_prices_are_refused(server: Standin, fault: Fault) -> None:
    server.trouble.plan[BARS] = [fault]
    with pytest.raises(BadAnswer, match=r"^alpaca: AAPL 1d 2020-01-01"):
        load(Alpaca(), asked(server, start="2020-01-01", end="2021-01-01"))


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        wrong_json(b'{"corporate_actions": []}'),
        actions(cash_dividends=[{"symbol": "AAPL", "rate": 1}]),
        actions(cash_dividends=[{"symbol": "AAPL", "ex_date": "soon", "rate": 1}]),
        actions(forward_splits=[{"symbol": "AAPL", "ex_date": "2005-02-28", "old_rate": 0, "new_rate": 2}]),
        actions(forward_splits=[{"symbol": "AAPL", "ex_date": "2005-02-28", "old_rate": 1, "new_rate": None}]),
        actions(cash_dividends=[{"symbol": "AAPL", "ex_date": "2005-02-28", "rate": None}]),
    ],
)
def test_actions_in_another_format_are_refused(server: Standin, fault: Fault) -> None:
    server.trouble.plan[ACTIONS] = [fault]
    with pytest.raises(BadAnswer, match=r"^alpaca: AAPL 1d 2005"):
        load(Alpaca(), asked(server))


def test_a_server_in_trouble_is_unavailable(server: Standin) -> None:
    server.trouble.plan[BARS] = [status(503)] * 4
    with pytest.raises(SourceUnavailable, match=r"^alpaca: AAPL 1d 2005"):
        load(Alpaca(), asked(server))
