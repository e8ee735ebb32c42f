from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

import runner
from runner.errors import (
    BadAnswer,
    FetchError,
    NoData,
    SettingsError,
    SourceRefused,
    SourceUnavailable,
    SymbolUnknown,
)
from tests.misbehaving import Fault, html, status, wrong_json
from tests.workers.sources.asking import Standin, ask, dates, load, standing_in
from workers.sources import accounts
from workers.sources.protocol import Ask
from workers.sources.tiingo import Tiingo

KEY = "0123456789abcdef-tiingo"
PATH = "/tiingo/tiingo/daily/AAPL/prices"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    monkeypatch.setenv("RUNNER_TIINGO_KEY", KEY)
    with standing_in() as standin:
        yield standin


def asked(
    server: Standin, symbol: str = "AAPL", start: str = "2000-01-01", end: str = "2014-01-01", **more: str
) -> Ask:
    return ask(symbol, start, end, base_url=f"{server.url}/tiingo", **more)


def row(**changes: object) -> dict[str, object]:
    prices: dict[str, object] = {"date": "2020-01-02T00:00:00.000Z", "open": 2.0, "high": 3.0, "low": 1.0, "close": 2.5}
    return {**prices, "volume": 7, "divCash": 0.0, "splitFactor": 1.0, **changes}


def rows(*each: dict[str, object]) -> Fault:
    return wrong_json(json.dumps(each).encode())


def test_prices_are_the_raw_ones_to_the_last_bit_with_splits_and_dividends(server: Standin) -> None:
    table, bars = load(Tiingo(), asked(server)), runner.sample_data("AAPL")
    assert table.time.tolist() == bars.time.tolist()
    for name in ("open", "high", "low", "close", "volume"):
        assert table.columns[name].tolist() == getattr(bars, name).tolist()
    days = np.array(dates(table))
    split, dividend = table.columns["split"], table.columns["dividend"]
    assert dict(zip(days[split != 1], split[split != 1], strict=True)) == {"2000-06-21": 2.0, "2005-02-28": 2.0}
    assert dict(zip(days[dividend != 0], dividend[dividend != 0], strict=True)) == {
        "2012-08-09": 2.65,
        "2012-11-07": 2.65,
        "2013-02-07": 2.65,
    }


def test_the_end_is_exclusive_and_the_running_day_left_out(server: Standin) -> None:
    assert dates(load(Tiingo(), asked(server, start="2010-01-04", end="2010-01-06"))) == ["2010-01-04", "2010-01-05"]
    running = load(Tiingo(), asked(server, start="2010-01-04", end="2011-01-01", now="2010-01-06T21:30"))
    assert dates(running) == ["2010-01-04", "2010-01-05"]


def test_duplicates_nulls_and_disorder_become_clean_rows(server: Standin) -> None:
    server.trouble.plan[PATH] = [
        rows(
            row(date="2020-01-06T00:00:00.000Z", close=1.5),
            row(date="2020-01-03T00:00:00.000Z", close=None),
            row(close=2.25),
            row(close=2.75),
        )
    ]
    table = load(Tiingo(), asked(server, start="2020-01-01", end="2021-01-01"))
    assert dates(table) == ["2020-01-02", "2020-01-06"]
    assert table.columns["close"].tolist() == [2.75, 1.5]


def test_the_key_goes_into_the_header_and_nowhere_else(server: Standin) -> None:
    load(Tiingo(), asked(server))
    [seen] = server.trouble.seen[PATH]
    assert seen.headers["Authorization"] == f"Token {KEY}"
    assert KEY not in str(seen.url)


def test_without_a_key_nothing_is_asked(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNNER_TIINGO_KEY")
    with pytest.raises(SourceRefused, match=r"tiingo: AAPL 1d 2000-01-01\.\.2014-01-01: .*RUNNER_TIINGO_KEY"):
        load(Tiingo(), asked(server))
    assert not server.trouble.calls


def test_an_expired_key_is_refused_by_its_variable(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_TIINGO_KEY", "expired")
    with pytest.raises(SourceRefused, match=r"tiingo: AAPL .*the key in RUNNER_TIINGO_KEY \(HTTP 401\)"):
        load(Tiingo(), asked(server))


@pytest.mark.parametrize("key", ["with\nnewline", "with space", "schlüssel"])
def test_what_cannot_be_a_key_is_not_sent(server: Standin, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("RUNNER_TIINGO_KEY", key)
    with pytest.raises(SourceRefused, match="RUNNER_TIINGO_KEY holds characters") as caught:
        load(Tiingo(), asked(server))
    assert key not in str(caught.value)
    assert not server.trouble.calls


@pytest.mark.parametrize(
    "fault",
    [
        status(500, KEY.encode()),
        status(418, KEY.encode()),
        status(400, KEY.encode()),
        status(401, KEY.encode()),
        status(404, KEY.encode()),
        status(200, KEY.encode(), Content_Type="text/html"),
        wrong_json(b'{"detail": "' + KEY.encode() + b'"}'),
        wrong_json(b'[{"date": "' + KEY.encode() + b'"}]'),
    ],
)
def test_the_key_is_in_no_message(
    server: Standin, fault: Fault, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.trouble.plan[PATH] = [fault] * 4
    with caplog.at_level(0), pytest.raises(FetchError) as caught:
        load(Tiingo(), asked(server))
    shown = f"{caught.value!r} {caught.value} {caplog.text} {''.join(capfd.readouterr())}"
    assert KEY not in shown
    assert str(caught.value).startswith("tiingo: AAPL 1d 2000-01-01..2014-01-01: ")


def test_an_unknown_ticker_is_named(server: Standin) -> None:
    with pytest.raises(SymbolUnknown, match=r"tiingo: UNKNOWN 1d 2000-01-01.*BRK-B"):
        load(Tiingo(), asked(server, "UNKNOWN"))


def test_a_range_before_the_listing_is_no_data(server: Standin) -> None:
    with pytest.raises(NoData, match="tiingo: GOOG 1d 2000-01-01"):
        load(Tiingo(), asked(server, "GOOG", start="2000-01-01", end="2002-01-01"))


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        wrong_json(),
        wrong_json(b"{}"),
        rows(row(divCash="none")),
        rows({"date": "2020-01-02T00:00:00.000Z", "adjClose": 1.0}),
        rows(row(date="02.01.2020")),
        rows(row(date=20200102)),
        rows(row(splitFactor=None)),
        rows(row(low=2.75)),
        rows(row(close=0.0)),
        rows(row(volume=-1)),
    ],
)
def test_another_format_or_impossible_prices_are_refused(server: Standin, fault: Fault) -> None:
    server.trouble.plan[PATH] = [fault]
    with pytest.raises(BadAnswer, match=r"^tiingo: AAPL 1d 2020-01-01"):
        load(Tiingo(), asked(server, start="2020-01-01", end="2021-01-01"))


def test_a_used_up_allowance_with_status_200_is_not_taken_for_data(server: Standin) -> None:
    server.trouble.plan[PATH] = [wrong_json(b'{"detail": "You have run over your hourly request allocation."}')]
    with pytest.raises(SourceUnavailable, match=r"tiingo: AAPL .*used up"):
        load(Tiingo(), asked(server))


def test_the_allowance_is_the_plans_and_a_number(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_TIINGO_HOURLY", "10000")
    assert accounts.allowance("RUNNER_TIINGO_HOURLY", 50) == 10_000
    monkeypatch.setenv("RUNNER_TIINGO_HOURLY", "many")
    with pytest.raises(SettingsError, match="RUNNER_TIINGO_HOURLY='many'"):
        load(Tiingo(), asked(server))


def test_accounts_are_told_apart_without_their_key() -> None:
    assert accounts.tag(KEY) != accounts.tag(KEY + "x")
    assert len(accounts.tag(KEY)) == 8
    assert accounts.tag(KEY) not in KEY
