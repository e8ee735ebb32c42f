from __future__ import annotations

from collections.abc import Iterator

import pytest

from runner.errors import BadAnswer, NoData, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, html, status, wrong_json
from tests.workers.sources.asking import Standin, ask, dates, load, standing_in
from workers.sources.fear_greed import FearGreed
from workers.sources.protocol import Ask
from workers.standin.others import made_up

PATH = "/fear_greed/fng/"


@pytest.fixture
def server() -> Iterator[Standin]:
    with standing_in() as standin:
        yield standin


def asked(server: Standin, symbol: str = "FNG", start: str = "2018-01-01", end: str = "2019-01-01") -> Ask:
    return ask(symbol, start, end, base_url=f"{server.url}/fear_greed")


def test_the_whole_history_comes_in_one_answer_oldest_first(server: Standin) -> None:
    table = load(FearGreed(), asked(server))
    assert dates(table)[0] == "2018-02-01"
    assert dates(table)[-1] == "2018-12-31"
    days = [day.astype(object) for day in table.time.view("datetime64[ns]").astype("datetime64[D]")]
    assert table.columns["value"].tolist() == [made_up("fng", day, 101) for day in days]
    assert server.trouble.seen[PATH][0].query["limit"] == "0"


def test_there_is_one_index(server: Standin) -> None:
    assert len(load(FearGreed(), asked(server, "fng")).time)
    with pytest.raises(SymbolUnknown, match=r"fear_greed: CNN 1d .*'FNG'"):
        load(FearGreed(), asked(server, "CNN"))


def test_a_range_before_the_index_is_no_data(server: Standin) -> None:
    with pytest.raises(NoData, match=r"fear_greed: FNG 1d 2010-01-01\.\.2011-01-01"):
        load(FearGreed(), asked(server, start="2010-01-01", end="2011-01-01"))


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        wrong_json(),
        wrong_json(b'{"data": null, "metadata": {"error": "out of order"}}'),
        wrong_json(b'{"data": [{"value": "1"}], "metadata": {"error": null}}'),
        wrong_json(b'{"data": [{"value": "high", "timestamp": "1517443200"}], "metadata": {"error": null}}'),
        wrong_json(b'{"data": [{"value": "1", "timestamp": "02-01-2018"}], "metadata": {"error": null}}'),
        wrong_json(b'{"name": "Fear and Greed Index"}'),
        wrong_json(b"[1]"),
    ],
)
def test_another_format_is_refused(server: Standin, fault: Fault) -> None:
    server.trouble.plan[PATH] = [fault]
    with pytest.raises(BadAnswer, match=r"^fear_greed: FNG 1d 2018"):
        load(FearGreed(), asked(server))


def test_a_server_in_trouble_is_unavailable(server: Standin) -> None:
    server.trouble.plan[PATH] = [status(502)] * 4
    with pytest.raises(SourceUnavailable, match=r"^fear_greed: FNG 1d 2018"):
        load(FearGreed(), asked(server))
