from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import pytest
from aiohttp import web

import runner
from runner import codec
from runner.bars import Bars
from runner.errors import BadAnswer, FetchError, NoData, SettingsError, SourceUnavailable, SymbolUnknown
from runner.source import Source
from tests.misbehaving import Trouble, serving, status
from workers import market
from workers.cache import Entry, TieredCache
from workers.desk import connected
from workers.market import Market, decode, encode, prices, size_bytes
from workers.session import HttpClient, Limits
from workers.sources import registry
from workers.sources.protocol import Ask, Table
from workers.spans import spans
from workers.standin import make_app

T = TypeVar("T")

DAY_NS = 86_400 * 10**9
BINANCE = registry.source("binance")
SP500 = runner.sample_data("SP500")
KLINES = "/binance/api/v3/klines"


class Site:
    """The stand-in and its faults."""

    def __init__(self, app: web.Application) -> None:
        self.trouble = Trouble(app)
        self.url = ""

    def source(self, symbol: str = "SP500", start: str | None = "2016-01-01", end: str | None = "2019-01-01") -> Source:
        return Source("binance", symbol, start=start, end=end, base_url=f"{self.url}/binance")

    @property
    def calls(self) -> int:
        return sum(self.trouble.calls.values())


@pytest.fixture
def site() -> Iterator[Site]:
    app = make_app()
    found = Site(app)
    with serving(app) as found.url:
        yield found


def at(url: str | None, call: Callable[[Market], Awaitable[T]]) -> T:
    """``call`` of a new process's market: an empty memory; the server's cache is that of ``url``."""

    async def inside() -> T:
        server = connected(url) if url else None
        cache = TieredCache[Table](server, namespace="test", encode=encode, decode=decode, size=size_bytes)
        http = HttpClient(server=server, limits=Limits(backoff_s=0.01))
        try:
            return await call(Market(http, cache))
        finally:
            await cache.close()
            await http.close()
            if server is not None:
                await server.aclose()

    return asyncio.run(inside())


def fetched(url: str | None, source: Source) -> market.Prices:
    [symbol] = source.symbols
    return prices(source, symbol, at(url, lambda here: here.entries(source, symbol)))


def entry(table: Table, *, stale: bool = False, fetched_at_s: float = 0.0) -> Entry[Table]:
    return Entry(table, "", fetched_at_s, 0.0, "", "", stale=stale, tier="l1")


def bars_table(*, days: int = 5, first_day: int = 0, **columns: Any) -> Table:
    stamps = (np.arange(days) + first_day) * DAY_NS
    usual = dict.fromkeys(("open", "high", "low", "close", "volume"), np.full(days, 10.0))
    return Table(stamps.astype(np.int64), {**usual, **columns})


def test_what_is_fetched_is_cut_to_the_range_asked_for(site: Site) -> None:
    brought = fetched(None, site.source(start="2016-02-03", end="2017-05-06"))
    bars = Bars.from_bytes(brought.blob)
    days = SP500.to_frame().loc["2016-02-03":"2017-05-05"].index
    assert (bars.time[0], bars.time[-1], len(bars)) == (days[0].value, days[-1].value, len(days))
    assert brought.digest == bars.digest


def test_another_process_finds_it_on_the_server(site: Site, url: str) -> None:
    first = fetched(url, site.source())
    calls = site.calls
    assert fetched(url, site.source()).digest == first.digest
    assert site.calls == calls == 3


def test_two_requests_that_overlap_share_their_calendar_years(site: Site, url: str) -> None:
    fetched(url, site.source(start="2016-01-01", end="2018-01-01"))
    fetched(url, site.source(start="2017-06-01", end="2019-01-01"))
    assert site.calls == 3


def test_the_newest_year_is_asked_first_so_that_an_unknown_symbol_costs_one_call(site: Site, url: str) -> None:
    for _ in range(2):
        with pytest.raises(SymbolUnknown, match="binance: UNKNOWNX"):
            fetched(url, site.source("UNKNOWNX", start="1990-01-01"))
    assert site.calls == 1


def test_years_before_a_symbol_was_listed_are_left_out(site: Site, url: str) -> None:
    bars = Bars.from_bytes(fetched(url, site.source("ABC", start="2015-01-01")).blob)
    assert pd.Timestamp(int(bars.time[0])) == pd.Timestamp("2017-08-17")


def test_what_was_before_1970_is_there_too(tmp_path: Path) -> None:
    days = pd.date_range("1962-01-02", periods=3000, freq="D", tz="UTC")
    pd.DataFrame(dict.fromkeys(("open", "high", "low", "close"), 10.0), index=days.rename("date")).to_csv(
        tmp_path / "a.csv"
    )
    source = Source("file", str(tmp_path / "a.csv"))
    bars = Bars.from_bytes(fetched(None, source).blob)
    assert len(bars) == 3000
    part = Source("file", str(tmp_path / "a.csv"), start="1963-01-01", end="1964-01-01")
    assert len(Bars.from_bytes(fetched(None, part).blob)) == 365


def test_a_range_without_anything_says_so(site: Site) -> None:
    with pytest.raises(NoData, match=r"binance: ABC 1d 2015-01-01..2016-01-01"):
        fetched(None, site.source("ABC", start="2015-01-01", end="2016-01-01"))


def test_while_the_provider_is_away_an_old_copy_stands_in_and_says_since_when(
    site: Site, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(market, "CLOSED_TTL_S", 0.01)
    began_s = time.time()
    first = fetched(url, site.source())
    assert first.stale_since_s is None
    site.trouble.plan[KLINES] = [status(503)] * 100
    again = fetched(url, site.source())
    assert again.digest == first.digest
    assert again.stale_since_s is not None
    assert began_s <= again.stale_since_s <= time.time()


def test_without_a_copy_a_provider_that_is_away_is_an_error(site: Site, url: str) -> None:
    site.trouble.plan[KLINES] = [status(503)] * 100
    with pytest.raises(SourceUnavailable, match="binance: SP500"):
        fetched(url, site.source())


def test_without_a_server_the_provider_is_asked_and_memory_keeps_it(site: Site) -> None:
    source = site.source()

    async def twice(here: Market) -> tuple[Any, Any]:
        return await here.entries(source, "SP500"), await here.entries(source, "SP500")

    first, second = at(None, twice)
    assert [one.value for one in first] == [one.value for one in second]
    assert site.calls == 3


@pytest.mark.parametrize(
    ("source", "error", "words"),
    [
        (Source("nowhere", "A", start="2020"), SettingsError, "nowhere"),
        (Source("binance", "A", interval="7m", start="2020"), SettingsError, "7m"),
        (Source("binance", "A", start="2020", colour="red"), SettingsError, "colour"),
        (Source("binance", "A"), SettingsError, "say start="),
    ],
)
def test_what_no_provider_can_answer_is_refused_before_it_is_asked(
    source: Source, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        at(None, lambda here: here.entries(source, "A"))


def test_the_query_of_an_address_is_in_no_key_and_no_message() -> None:
    source = Source("url", "https://example.com/prices.csv?sig=hunter2")
    [symbol] = source.symbols
    [span] = spans("all", 0, 1)
    assert "hunter2" not in market._key(BINANCE, source, symbol, span)
    with pytest.raises(NoData) as caught:
        prices(source, symbol, [])
    assert "hunter2" not in str(caught.value)


def test_everything_that_changes_the_content_is_in_the_key() -> None:
    [span] = spans("all", 0, 1)
    variants = [
        Source("binance", "A"),
        Source("binance", "B"),
        Source("coinbase", "A"),
        Source("binance", "A", interval="1h"),
        Source("binance", "A", feed="iex"),
        Source("binance", "A", base_url="https://mirror.example"),
    ]
    assert len({market._key(BINANCE, source, source.symbols[0], span) for source in variants}) == len(variants)
    same = [Source("binance", "A", adjust=how, start="2020") for how in ("all", "none")]
    assert len({market._key(BINANCE, source, "A", span) for source in [*same, variants[0]]}) == 1


def test_the_open_year_is_asked_for_again_when_its_next_bar_has_closed() -> None:
    day_ns = 86_400 * 10**9
    [year] = spans("year", 0, 1)
    noon = 200 * day_ns + day_ns // 2
    assert market._ttl_s(year, day_ns, noon) == market.OPEN_TTL_HIGH_S
    assert market._ttl_s(year, day_ns, 201 * day_ns - 600 * 10**9) == 600.0
    assert market._ttl_s(year, day_ns, 201 * day_ns - 10**9) == market.OPEN_TTL_LOW_S
    assert market._ttl_s(year, day_ns, year.end_ns + day_ns) < market.CLOSED_TTL_S
    assert market._ttl_s(year, day_ns, year.end_ns + 2 * day_ns) == market.CLOSED_TTL_S


def test_splits_and_dividends_are_adjusted_on_reading_not_in_the_cache() -> None:
    split = np.array([1.0, 1.0, 2.0, 1.0, 1.0])
    table = bars_table(split=split, dividend=np.zeros(5))
    by_how = {}
    for how in ("all", "none"):
        source = Source("tiingo", "A", start="1970-01-01", end="1970-02-01", adjust=how)
        by_how[how] = Bars.from_bytes(prices(source, "A", [entry(table)]).blob)
    assert by_how["none"].close.tolist() == [10.0] * 5
    assert by_how["all"].close.tolist() == [5.0, 5.0, 10.0, 10.0, 10.0]
    assert by_how["all"].volume is not None
    assert by_how["all"].volume.tolist() == [20.0, 20.0, 10.0, 10.0, 10.0]
    assert not by_how["all"].extra


def test_spans_with_and_without_factors_fit_together() -> None:
    old = bars_table(days=3)
    new = bars_table(days=3, first_day=3, split=np.array([2.0, 1.0, 1.0]), dividend=np.zeros(3))
    source = Source("tiingo", "A", start="1970-01-01", end="1970-02-01")
    bars = Bars.from_bytes(prices(source, "A", [entry(old), entry(new)]).blob)
    assert bars.close.tolist() == [5.0] * 3 + [10.0] * 3


def test_the_oldest_of_the_stale_pieces_tells_since_when() -> None:
    pieces = [entry(bars_table(days=3), stale=True, fetched_at_s=50.0), entry(bars_table(days=3, first_day=3))]
    source = Source("tiingo", "A", start="1970-01-01", end="1970-02-01")
    assert prices(source, "A", pieces).stale_since_s == 50.0


def test_prices_that_cannot_be_backtested_are_a_bad_answer_that_names_the_bar() -> None:
    table = bars_table(high=np.full(5, 9.0))
    source = Source("mine", "A", start="1970-01-01", end="1970-02-01")
    with pytest.raises(BadAnswer, match=r"mine: A 1d 1970-01-01..1970-02-01.*1970-01-01"):
        prices(source, "A", [entry(table)])


@pytest.mark.parametrize(
    "table",
    [
        Table(np.array([1, 2]), {"open": np.ones(2)}),
        bars_table(close=np.ones(4)),
        bars_table(close=np.ones(5, np.float32)),
        bars_table(close=np.array([1.0, 2.0, np.nan, 4.0, 5.0])),
        bars_table(volume=np.array([1.0, 2.0, np.inf, 4.0, 5.0])),
        bars_table(high=np.full(5, 9.0)),
        bars_table(first_day=-1),
        bars_table(first_day=6),
        Table(bars_table().time[::-1], bars_table().columns),
        Table(bars_table().time.astype(float), bars_table().columns),
    ],
)
def test_a_source_that_breaks_its_word_is_not_believed(table: Table) -> None:
    ask = Ask("A", "1d", 0, 10 * DAY_NS, 10 * DAY_NS)
    market.checked(bars_table(), "bars", ask, "mine: A")
    with pytest.raises(BadAnswer, match="mine: A"):
        market.checked(table, "bars", ask, "mine: A")


def test_a_week_that_ends_in_the_next_year_is_waited_for() -> None:
    week_ns = 7 * DAY_NS
    [year] = spans("year", 0, 1)
    opened_last = year.end_ns - DAY_NS
    assert market._ttl_s(year, week_ns, year.end_ns + 3 * DAY_NS) <= market.OPEN_TTL_HIGH_S
    assert market._ttl_s(year, week_ns, opened_last + week_ns + 2 * DAY_NS) == market.CLOSED_TTL_S


def test_an_end_in_the_future_asks_no_further_than_now(site: Site) -> None:
    with pytest.raises(SymbolUnknown):
        fetched(None, site.source("UNKNOWNY", start="2010-01-01", end="2100-01-01"))
    assert site.calls == 1


def test_a_range_that_has_not_begun_has_nothing(site: Site) -> None:
    with pytest.raises(NoData, match="not begun"):
        fetched(None, site.source(start="2100-01-01", end="2101-01-01"))


def test_a_range_of_too_many_bars_is_refused_before_anything_is_asked(site: Site) -> None:
    source = Source("binance", "A", interval="1s", start="2017-01-01", base_url=f"{site.url}/binance")
    with pytest.raises(SettingsError, match="at most 10,000,000"):
        fetched(None, source)
    assert site.calls == 0


def test_many_symbols_of_many_years_at_once_are_all_kept_on_the_server(site: Site, url: str) -> None:
    sources = [site.source(f"M{i}", start="2012-01-01") for i in range(40)]

    async def every(here: Market) -> list[Any]:
        return await asyncio.gather(*(here.entries(source, source.symbols[0]) for source in sources))

    first = at(url, every)
    calls = site.calls
    assert calls == 40 * 7
    again = at(url, every)
    assert site.calls == calls
    assert [len(entries) for entries in again] == [len(entries) for entries in first]


def test_what_cannot_be_adjusted_names_provider_symbol_and_range() -> None:
    table = bars_table(dividend=np.array([0.0, 20.0, 0.0, 0.0, 0.0]), split=np.ones(5))
    source = Source("tiingo", "A", start="1970-01-01", end="1970-02-01")
    with pytest.raises(BadAnswer, match=r"tiingo: A 1d 1970-01-01"):
        prices(source, "A", [entry(table)])


def test_a_series_travels_as_plain_columns() -> None:
    table = Table(np.arange(3) * 86_400 * 10**9, {"value": np.array([1.0, 2.0, 3.0])})
    brought = prices(Source("fred", "X", start="1970-01-02", end="1970-02-01"), "X", [entry(table)])
    stamps, named, _ = codec.unpack(brought.blob)
    assert (brought.kind, brought.n) == ("series", 2)
    assert named["value"].tolist() == [2.0, 3.0]
    assert stamps[0] == 86_400 * 10**9


def test_every_failure_of_many_years_is_one_error(site: Site) -> None:
    site.trouble.plan[KLINES] = [None] + [status(500)] * 500
    with pytest.raises(FetchError, match="binance: SP500"):
        fetched(None, site.source(start="2005-01-01"))
