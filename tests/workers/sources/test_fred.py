from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
import redis.asyncio

import runner
from runner.errors import BadAnswer, FetchError, NoData, SettingsError, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, html, status, wrong_json
from tests.workers.sources.asking import Standin, ask, dates, load, standing_in
from workers.session import HttpClient, Limits
from workers.sources import fred
from workers.sources.fred import Fred
from workers.sources.protocol import Ask

CSV, API = "/fred/graph/fredgraph.csv", "/fred/fred/series/observations"
KEY = "0123456789abcdef-fred"


@pytest.fixture(scope="module")
def server() -> Iterator[Standin]:
    with standing_in() as standin:
        yield standin


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("RUNNER_FRED_KEY", KEY)
    return KEY


def asked(
    server: Standin, symbol: str = "VIXCLS", start: str = "2014-01-01", end: str = "2019-06-01", **more: str
) -> Ask:
    return ask(symbol, start, end, base_url=f"{server.url}/fred", **more)


def csv_of(body: bytes) -> Fault:
    return status(200, body, Content_Type="application/csv")


def test_values_are_the_series_to_the_last_bit_and_holidays_stay_missing(server: Standin) -> None:
    table = load(Fred(), asked(server))
    vix = runner.sample_series("VIX").dropna()
    assert table.time.tolist() == vix.index.astype("int64").tolist()
    assert table.columns["value"].tolist() == vix.tolist()
    assert set(table.columns) == {"value"}


def test_the_end_is_exclusive(server: Standin) -> None:
    assert dates(load(Fred(), asked(server, start="2014-01-06", end="2014-01-08"))) == ["2014-01-06", "2014-01-07"]


def test_the_future_is_not_asked_for(server: Standin) -> None:
    load(Fred(), asked(server, start="2010-01-01", end="2020-01-01", now="2014-03-05T12:00"))
    assert server.trouble.seen[CSV][-1].query["coed"] == "2014-03-05"


def test_the_header_is_skipped_whatever_it_says_and_dots_are_missing(server: Standin) -> None:
    server.trouble.plan[CSV] = [
        csv_of(b"DATE,VIXCLS\r\n2014-01-02,1.5\r\n2014-01-03,.\r\n2014-01-06,\r\n2014-01-07,2.5\r\n")
    ]
    table = load(Fred(), asked(server))
    assert dates(table) == ["2014-01-02", "2014-01-07"]
    assert table.columns["value"].tolist() == [1.5, 2.5]


def test_rows_are_sorted_and_the_last_of_a_day_counts(server: Standin) -> None:
    server.trouble.plan[CSV] = [csv_of(b"observation_date,X\n2014-01-03,3\n2014-01-02,1\n2014-01-02,2\n")]
    assert load(Fred(), asked(server)).columns["value"].tolist() == [2.0, 3.0]


def test_504s_are_waited_out(server: Standin) -> None:
    server.trouble.plan[CSV] = [status(504), status(504)]
    assert len(load(Fred(), asked(server)).time) > 1000


def test_an_unknown_series_is_named(server: Standin) -> None:
    with pytest.raises(SymbolUnknown, match=r"^fred: NOSUCH 1d 2014-01-01\.\.2019-06-01: .*DGS10"):
        load(Fred(), asked(server, "NOSUCH"))


def test_a_range_without_values_is_no_data(server: Standin) -> None:
    with pytest.raises(NoData, match="fred: VIXCLS 1d 1995-01-01"):
        load(Fred(), asked(server, start="1995-01-01", end="1996-01-01"))
    with pytest.raises(NoData, match="fred: VIXCLS"):
        load(Fred(), asked(server, now="2001-01-01"))


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        csv_of(b""),
        csv_of(b"observation_date,A,B\n2014-01-02,1,2\n"),
        csv_of(b"observation_date,A\n02/01/2014,1\n"),
        csv_of(b"observation_date,A\n2014-02-31,1\n"),
        csv_of(b"observation_date,A\n2014-01-02,one\n"),
        csv_of(b"observation_date,A\n2014-01-02,inf\n"),
        csv_of(b"observation_date,A\n2014-01-02," + b"1" * 200_000),
        status(302),
    ],
)
def test_what_is_no_csv_of_dates_and_values_is_refused(server: Standin, fault: Fault) -> None:
    server.trouble.plan[CSV] = [fault]
    with pytest.raises(BadAnswer, match=r"^fred: VIXCLS 1d 2014"):
        load(Fred(), asked(server))


def test_a_server_in_trouble_is_unavailable(server: Standin) -> None:
    server.trouble.plan[CSV] = [status(504)] * 4
    with pytest.raises(SourceUnavailable, match=r"^fred: VIXCLS 1d 2014"):
        load(Fred(), asked(server))


def test_a_vintage_has_what_was_known_on_its_day(server: Standin, key: str) -> None:
    table = load(Fred(), asked(server, realtime="2015-03-03"))
    vix = runner.sample_series("VIX").dropna()
    assert dates(table)[-1] == "2015-03-02"
    assert table.columns["value"].tolist() == vix[vix.index < "2015-03-03"].tolist()
    assert server.trouble.seen[API][-1].query["realtime_start"] == "2015-03-03"


def test_a_vintage_needs_a_key(server: Standin) -> None:
    with pytest.raises(SourceRefused, match=r"fred: VIXCLS .*RUNNER_FRED_KEY"):
        load(Fred(), asked(server, realtime="2015-03-03"))


def test_an_expired_key_is_refused_by_its_variable(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_FRED_KEY", "expired")
    with pytest.raises(SourceRefused, match=r"the key in RUNNER_FRED_KEY \(HTTP 400\)"):
        load(Fred(), asked(server, realtime="2015-03-03"))


def test_a_vintage_of_an_unknown_series_is_named(server: Standin, key: str) -> None:
    with pytest.raises(SymbolUnknown, match="fred: NOSUCH"):
        load(Fred(), asked(server, "NOSUCH", realtime="2015-03-03"))


@pytest.mark.parametrize(
    "fault",
    [
        status(500, KEY.encode()),
        status(400, b"bad " + KEY.encode()),
        status(404, b"bad " + KEY.encode()),
        status(200, KEY.encode(), Content_Type="text/html"),
        wrong_json(b'{"observations": [{"date": "' + KEY.encode() + b'", "value": "1"}]}'),
        wrong_json(b'{"seriess": "' + KEY.encode() + b'"}'),
        html(),
    ],
)
def test_the_key_is_in_no_message(
    server: Standin, key: str, fault: Fault, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    server.trouble.plan[API] = [fault] * 4
    with caplog.at_level(0), pytest.raises(FetchError) as caught:
        load(Fred(), asked(server, realtime="2015-03-03"))
    server.trouble.plan[API] = []
    assert key not in str(caught.value)
    assert key not in repr(caught.value)
    assert key not in caplog.text
    assert key not in "".join(capfd.readouterr())


def test_the_key_is_in_no_state_that_workers_share(
    server: Standin, key: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fred, "rate_of", lambda usual, ask: usual)  # a server on loopback has none

    async def twice() -> None:
        async with redis.asyncio.Redis.from_url(url) as shared:
            http = HttpClient(server=shared, limits=Limits(backoff_s=0.01))
            question = asked(server, realtime="2015-03-03")
            await Fred().load(question, http)
            server.trouble.plan[API] = [status(500)] * 4
            with pytest.raises(SourceUnavailable):
                await Fred().load(question, http)
            await http.close()
            names = await shared.keys()
            assert "fred:" in str(names)
            dumps = [str(await shared.dump(name)) for name in names]
        assert key not in f"{names} {dumps}"

    asyncio.run(twice())


def test_realtime_is_a_date(server: Standin, key: str) -> None:
    with pytest.raises(SettingsError, match="option realtime='yesterday'"):
        load(Fred(), asked(server, realtime="yesterday"))
