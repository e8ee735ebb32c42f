from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiohttp import web

from runner.errors import BadAnswer, NoData, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, html, retry_after, status, wrong_json
from tests.workers.sources.asking import Standin, ask, dates, load, standing_in
from workers.session import HttpClient, Limits
from workers.sources.protocol import Ask
from workers.sources.wikipedia import MOST_AT_ONCE, Wikipedia
from workers.standin.others import EMPTY_DAY, made_up

VIEWS = "/wikipedia/metrics/pageviews/per-article/en.wikipedia/all-access/user/"


@pytest.fixture
def server() -> Iterator[Standin]:
    with standing_in() as standin:
        yield standin


def asked(
    server: Standin, symbol: str = "Bitcoin", start: str = "2020-01-01", end: str = "2021-01-01", **more: str
) -> Ask:
    return ask(symbol, start, end, base_url=f"{server.url}/wikipedia", **more)


def test_views_are_those_of_their_days_and_days_without_any_stay_missing(server: Standin) -> None:
    table = load(Wikipedia(), asked(server))
    days = [day.astype(object) for day in table.time.view("datetime64[ns]").astype("datetime64[D]")]
    assert table.columns["value"].tolist() == [made_up("Bitcoin", day, 20_000) for day in days]
    assert len(days) in (362, 363)
    assert all(day.toordinal() % EMPTY_DAY for day in days)


def test_both_ends_are_those_asked_for(server: Standin) -> None:
    assert dates(load(Wikipedia(), asked(server, start="2020-01-02", end="2020-01-04"))) == ["2020-01-02", "2020-01-03"]
    assert list(server.trouble.calls) == [f"{VIEWS}Bitcoin/daily/2020010200/2020010300"]


@pytest.mark.parametrize("title", ["AC/DC", "AT&T", "S&P 500", "C++", "100%", "Who?", "Beyoncé", "#MeToo", "東京"])
def test_a_title_reaches_the_server_as_it_is_written(server: Standin, title: str) -> None:
    load(Wikipedia(), asked(server, title))
    [seen] = [request for requests in server.trouble.seen.values() for request in requests]
    assert seen.match_info["article"] == title.replace(" ", "_")


def test_an_article_without_views_then_is_no_data_and_one_without_any_is_unknown(server: Standin) -> None:
    nothing = status(404, b"{}", Content_Type="application/problem+json")
    server.trouble.plan["*"] = [nothing]
    with pytest.raises(NoData, match=r"wikipedia: Bitcoin 1d 2020-01-01\.\.2021-01-01"):
        load(Wikipedia(), asked(server))
    with pytest.raises(SymbolUnknown, match=r"UNKNOWN page 1d 2020-01-01.*case-sensitive"):
        load(Wikipedia(), asked(server, "UNKNOWN page"))


def test_what_was_before_the_counting_is_not_asked_for(server: Standin) -> None:
    with pytest.raises(NoData, match="wikipedia: Bitcoin"):
        load(Wikipedia(), asked(server, start="2014-01-01", end="2015-07-01"))
    assert not server.trouble.calls
    assert dates(load(Wikipedia(), asked(server, start="2015-01-01", end="2015-07-03")))[0] == "2015-07-01"


def test_the_day_that_still_runs_is_left_out(server: Standin) -> None:
    table = load(Wikipedia(), asked(server, now="2020-03-05T12:00"))
    assert dates(table)[-1] == "2020-03-04"


def test_other_projects_and_agents_are_options(server: Standin) -> None:
    load(Wikipedia(), asked(server, project="de.wikipedia", access="desktop", agent="all-agents"))
    [path] = server.trouble.calls
    assert "/de.wikipedia/desktop/all-agents/Bitcoin/" in path


def test_no_more_than_three_calls_are_under_way(server: Standin) -> None:
    under_way: list[int] = [0]

    async def slow(request: web.Request) -> web.StreamResponse:
        under_way.append(under_way[-1] + 1)
        await asyncio.sleep(0.02)
        under_way.append(under_way[-1] - 1)
        return await wrong_json(b'{"items": [{"timestamp": "2020010100", "views": 1}]}')(request)

    async def eight() -> None:
        http, source = HttpClient(limits=Limits(start_at_once=50)), Wikipedia()
        await asyncio.gather(*(source.load(asked(server, f"Page {number}"), http) for number in range(8)))
        await http.close()

    server.trouble.plan["*"] = [slow] * 8
    asyncio.run(eight())
    assert max(under_way) == MOST_AT_ONCE


def test_a_wait_that_the_server_asks_for_is_kept(server: Standin) -> None:
    server.trouble.plan["*"] = [retry_after(0.05)]
    assert len(load(Wikipedia(), asked(server)).time) > 300


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        wrong_json(),
        wrong_json(b"[]"),
        wrong_json(b'{"items": [{"timestamp": "2020010100"}]}'),
        wrong_json(b'{"items": [{"timestamp": "yesterday", "views": 1}]}'),
        wrong_json(b'{"items": [{"timestamp": "2020010100", "views": "many"}]}'),
        wrong_json(b'{"items": [{"timestamp": "2020010100", "views": NaN}]}'),
    ],
)
def test_another_format_is_refused(server: Standin, fault: Fault) -> None:
    server.trouble.plan["*"] = [fault]
    with pytest.raises(BadAnswer, match=r"^wikipedia: Bitcoin 1d 2020"):
        load(Wikipedia(), asked(server))


def test_a_server_in_trouble_is_unavailable(server: Standin) -> None:
    server.trouble.plan["*"] = [status(503)] * 4
    with pytest.raises(SourceUnavailable, match=r"^wikipedia: Bitcoin 1d 2020"):
        load(Wikipedia(), asked(server))
