from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from runner.signing import sign_spec
from runner.source import Source
from runner.store import Ledger, Work
from tests.misbehaving import Trouble, as_usual, serving, slow_headers
from tests.support import SECRET
from workers import desk as desks
from workers import fetching
from workers.cache import Closed
from workers.resources import Resources
from workers.standin import make_app


@pytest.fixture
def held(url: str) -> Iterator[Resources]:
    """A fetch worker's resources, in this process."""
    held = Resources(url, SECRET)
    yield held
    desks.desk(held).close()
    desks._desks.clear()


@pytest.fixture
def site() -> Iterator[tuple[str, Trouble]]:
    app = make_app()
    trouble = Trouble(app)
    with serving(app) as url:
        yield f"{url}/binance", trouble


def submit(ledger: Ledger, base_url: str, *symbols: str) -> None:
    source = Source("binance", symbols, start="2018-01-01", end="2019-01-01", base_url=base_url)
    spec = sign_spec(SECRET, "f", json.dumps(source.to_wire()))
    ledger.reserve("f")
    ledger.activate("f", Work(spec=spec, total=len(symbols), queue="fetch", limit_s=60.0, priority="normal"))
    ledger.top_up("f", slots=1)


def cost_us(ledger: Ledger) -> float:
    return float(ledger.server.hget("runner:batch:f", "cost_us"))


def test_a_chunk_is_each_symbols_reference_or_error(held: Resources, site: tuple[str, Trouble]) -> None:
    submit(held.ledger, site[0], "ABC", "UNKNOWN", "DEF")
    fetching.run_chunk(held, "f", 0, "w@here")
    assert held.ledger.progress("f").failed == 1
    items = {item["symbol"]: item for item in json.loads(held.ledger.outcomes("f", [0])[0])}
    assert items["ABC"]["n_bars"] == items["DEF"]["n_bars"] == 365
    assert items["UNKNOWN"]["error"]["kind"] == "SymbolUnknown"
    blobs = held.ledger.take("data", [items["ABC"]["digest"], items["DEF"]["digest"]], "f")
    assert all(blobs)


def test_a_symbol_is_as_dear_as_one_of_sixteen_that_are_fetched_side_by_side(
    held: Resources, site: tuple[str, Trouble]
) -> None:
    site[1].plan["*"] = [slow_headers(0.3, as_usual)] * 10
    submit(held.ledger, site[0], "ABC")
    fetching.run_chunk(held, "f", 0, "w@here")
    assert cost_us(held.ledger) < 0.5 * 0.3e6  # alone it would be 0.3 s; a chunk of 16 takes no longer


def test_a_process_that_ends_hands_its_chunk_back_instead_of_calling_the_provider_silent(
    held: Resources, site: tuple[str, Trouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(held.ledger, site[0], "ABC")

    async def closed(*_: object) -> None:
        raise Closed("the cache was closed")

    monkeypatch.setattr("workers.market.Market.entries", closed)
    with pytest.raises(Closed):
        fetching.run_chunk(held, "f", 0, "w@here")
    assert held.ledger.progress("f").done == 0
    assert held.ledger.top_up("f", slots=1) == [0]


def test_a_batch_that_is_removed_meanwhile_leaves_no_prices_behind(
    held: Resources, site: tuple[str, Trouble], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(held.ledger, site[0], "ABC", "DEF")
    stored = fetching._stored

    def removed_before(*arguments: object) -> object:
        held.ledger.remove("f")
        return stored(*arguments)  # type: ignore[arg-type]  # passed on as they came

    monkeypatch.setattr(fetching, "_stored", removed_before)
    assert fetching.run_chunk(held, "f", 0, "w@here") == []
    left = [key for key in held.ledger.server.keys("*") if not key.startswith((b"runner:cache:", b"runner:health"))]
    assert [key for key in left if b"data" in key or b"batch" in key] == []


def test_the_same_chunk_in_two_threads_is_done_once(held: Resources, site: tuple[str, Trouble]) -> None:
    submit(held.ledger, site[0], "ABC")
    assert held.ledger.begin("f", 0, "w@here/other-thread").what == "run"
    assert fetching.run_chunk(held, "f", 0, "w@here") == []
    assert site[1].calls == {}
