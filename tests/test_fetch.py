"""Fetches and sweeps over a source: real workers, a real server, and a provider that speaks the real formats."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import redis
from aiohttp import web

import runner
from runner import Client, Source, fetching
from runner.errors import (
    BadAnswer,
    FetchError,
    InputError,
    SettingsError,
    SourceUnavailable,
    SweepNotFound,
    SweepTimeout,
    SymbolUnknown,
)
from runner.store import Ledger, Work
from tests.misbehaving import Trouble, as_usual, serving, slow_headers, status, wrong_json
from tests.support import KEY, ROOT, SECRET, Deployment, Worker, wait_until
from workers.standin import make_app

SP500 = runner.sample_data("SP500")
GRID = runner.grid(n=range(5, 25))
# The packaged S&P 500 ends with them; the stand-in's made-up symbols begin in August 2017.
YEARS: dict[str, Any] = {"start": "2016-01-01", "end": "2019-01-01"}


def cross(bars: runner.Bars, n: int) -> Any:
    return bars.close > bars.sma(n)


@dataclass(frozen=True)
class Provider:
    """The stand-in, its faults and its counts."""

    url: str
    trouble: Trouble

    @property
    def binance(self) -> dict[str, Any]:
        return {"source": "binance", "base_url": f"{self.url}/binance", **YEARS}

    @property
    def klines(self) -> int:
        return self.trouble.calls["/binance/api/v3/klines"]

    def source(self, *symbols: str) -> Source:
        return Source("binance", symbols, base_url=f"{self.url}/binance", **YEARS)


@pytest.fixture
def provider() -> Iterator[Provider]:
    app: web.Application = make_app()
    trouble = Trouble(app)
    with serving(app) as url:
        yield Provider(url, trouble)


@pytest.fixture
def desk(team: Client, fetcher: Worker) -> Client:
    """A client of a deployment that has both kinds of workers."""
    return team


def window(bars: runner.Bars) -> runner.Bars:
    """The three years that the tests ask for."""
    stamps = [pd.Timestamp(YEARS[name], tz="UTC").value for name in ("start", "end")]
    inside = (bars.time >= stamps[0]) & (bars.time < stamps[1])
    columns: dict[str, Any] = {name: bars[name][inside] for name in ("open", "high", "low", "close", "volume")}
    return runner.Bars(time=bars.time[inside], **columns, symbol=bars.symbol)


# One symbol, many symbols


def test_what_is_fetched_is_what_the_provider_has_to_the_last_bit(desk: Client, provider: Provider) -> None:
    bars = desk.fetch("SP500", **provider.binance)
    assert bars == window(SP500)
    assert bars.symbol == "SP500"


def test_many_symbols_come_in_the_order_asked_for(desk: Client, provider: Provider) -> None:
    symbols = ["ZZZ", "SP500", "ABC"]
    fetched = desk.fetch(symbols, **provider.binance)
    assert list(fetched) == symbols
    assert all(bars.symbol == symbol for symbol, bars in fetched.items())
    assert not fetched.errors


def test_a_symbol_that_fails_is_an_entry_of_errors_and_the_others_are_there(desk: Client, provider: Provider) -> None:
    with pytest.warns(UserWarning, match="1 of 3 symbols could not be fetched"):
        fetched = desk.fetch(["SP500", "UNKNOWN1", "ABC"], **provider.binance)
    assert list(fetched) == ["SP500", "ABC"]
    assert isinstance(fetched.errors["UNKNOWN1"], SymbolUnknown)
    assert "1 failed" in repr(fetched)


def test_the_error_of_one_symbol_names_provider_symbol_and_range(desk: Client, provider: Provider) -> None:
    with pytest.raises(SymbolUnknown, match=r"binance: UNKNOWN1 1d 20\d\d-\d\d-\d\d"):
        desk.fetch("UNKNOWN1", **provider.binance)


def test_an_unknown_symbol_is_asked_for_once_however_long_the_range(desk: Client, provider: Provider) -> None:
    for _ in range(3):
        with pytest.raises(SymbolUnknown):
            desk.fetch("UNKNOWN2", **{**provider.binance, "start": "1990-01-01"})
    assert provider.klines == 1


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"source": "binanse"}, InputError, "binance"),
        ({"interval": "7m"}, InputError, "interval"),
        ({"feeed": "iex"}, InputError, "feeed"),
        ({"start": None}, SettingsError, "start="),
        ({"api_key": "x"}, SettingsError, "never travel"),
    ],
)
def test_a_wrong_argument_is_named_with_its_cure(
    desk: Client, provider: Provider, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        desk.fetch("SP500", **{**provider.binance, **change})
    assert desk._ledger.batches() == []


def test_a_series_of_alternative_data_is_indexed_by_time(desk: Client, provider: Provider) -> None:
    series = desk.fetch("VIXCLS", source="fred", base_url=f"{provider.url}/fred", start="2015-01-01", end="2016-01-01")
    assert series.name == "VIXCLS"
    assert str(series.index.tz) == "UTC"
    known = runner.sample_series("VIX").loc["2015"].dropna()
    assert series.to_list() == known.to_list()


# Nothing twice, nothing wrong


def test_what_was_fetched_is_not_asked_for_again(desk: Client, provider: Provider) -> None:
    symbols = [f"S{i}" for i in range(20)]
    first = desk.fetch(symbols, **provider.binance)
    calls = provider.klines
    assert calls == 3 * 20  # a year each
    again = desk.fetch(symbols, **provider.binance)
    assert provider.klines == calls
    assert all(again[symbol] == first[symbol] for symbol in symbols)


def test_a_longer_range_asks_only_for_the_calendar_years_that_are_missing(desk: Client, provider: Provider) -> None:
    desk.fetch("SP500", **provider.binance)
    calls = provider.klines
    longer = desk.fetch("SP500", **{**provider.binance, "start": "2014-06-01"})
    assert provider.klines == calls + 2
    assert longer.time[0] == pd.Timestamp("2014-06-02", tz="UTC").value


def test_a_provider_that_stumbles_is_asked_again(desk: Client, provider: Provider) -> None:
    provider.trouble.plan["/binance/api/v3/klines"] = [status(503), None, status(502)]
    assert desk.fetch("SP500", **provider.binance) == window(SP500)


def test_an_answer_that_is_no_data_is_an_error_and_is_not_kept(desk: Client, provider: Provider) -> None:
    page = status(200, b"<html>Just a moment</html>", Content_Type="text/html")
    provider.trouble.plan["/binance/api/v3/klines"] = [page] * 3
    with pytest.raises(FetchError, match=r"binance: SP500"):
        desk.fetch("SP500", **provider.binance)
    provider.trouble.plan.clear()
    assert desk.fetch("SP500", **provider.binance) == window(SP500)


def test_a_key_is_found_nowhere_on_the_server(desk: Client, provider: Provider) -> None:
    bars = desk.fetch("AAPL", source="tiingo", base_url=f"{provider.url}/tiingo", start="2010-01-01", end="2013-01-01")
    assert len(bars) > 700
    assert any(KEY in str(request.headers) for path in provider.trouble.seen.values() for request in path)
    server: Any = desk._ledger.server
    for key in server.keys("*"):
        dumped = server.dump(key)
        assert dumped is None or KEY.encode() not in dumped


# The batch


def test_a_fetch_leaves_nothing_but_cache_entries_behind(desk: Client, provider: Provider) -> None:
    desk.fetch(["SP500", "ABC"], **provider.binance)
    server: Any = desk._ledger.server
    assert server.keys("runner:batch:*") + server.keys("runner:data:*") == []
    assert all(server.ttl(key) > 0 for key in server.keys("runner:cache:*") + server.keys("runner:http:*"))


def test_a_fetch_that_takes_too_long_says_so_and_ends(desk: Client, provider: Provider) -> None:
    provider.trouble.plan["*"] = [slow_headers(5)] * 20
    with pytest.raises(SweepTimeout, match="0 of 1 symbols fetched"):
        desk.fetch("SP500", **provider.binance, timeout=0.5)
    assert desk._ledger.batches() == []


def test_without_a_fetch_worker_it_says_what_it_waits_for(client: Client, provider: Provider) -> None:
    with pytest.warns(UserWarning, match="runner worker --queues fetch"), pytest.raises(SweepTimeout):
        client.fetch("SP500", **provider.binance, timeout=0.2)


def test_health_counts_what_the_workers_did(desk: Client, provider: Provider) -> None:
    before = desk._ledger.health()[0]
    for _ in range(3):
        desk.fetch("SP500", **provider.binance)
    after = desk._ledger.health()[0]
    new = {name: count - before.get(name, 0) for name, count in after.items()}
    assert provider.klines == 3
    # What the tests before left under way counts too.
    assert new["cache_loads"] >= 3
    assert new["http_requests"] >= new["http_requests_ok"] >= 3
    assert new["cache_l1_hits"] >= 6
    health = desk.health()
    assert health.frame["upstream_calls_saved"]["all"] >= 6
    assert health.queues["slots"].to_dict() == {"backtest": 2, "fetch": 4}


# Sweeps over a source


def test_a_sweep_over_a_source_equals_the_sweep_over_its_prices(desk: Client, provider: Provider) -> None:
    symbols = ("SP500", "ABC", "ZZZ")
    result = desk.sweep(cross, provider.source(*symbols), GRID).result(timeout=60, progress=False)
    fetched = desk.fetch(symbols, **provider.binance)
    local = runner.sweep(cross, fetched, GRID, progress=False)
    pd.testing.assert_frame_equal(result.frame, local.frame, check_exact=True)


def test_a_symbol_without_prices_is_error_rows_and_the_rest_has_numbers(desk: Client, provider: Provider) -> None:
    result = desk.sweep(cross, provider.source("SP500", "UNKNOWN3"), GRID).result(timeout=60, progress=False)
    assert result.frame.loc["SP500"]["sharpe"].notna().all()
    assert len(result.errors) == len(GRID)
    assert set(result.errors["kind"]) == {"SymbolUnknown"}
    assert result.errors["message"].iloc[0].startswith("binance: UNKNOWN3")


def test_a_sweep_over_a_source_survives_the_death_of_its_notebook(
    deployment: Deployment, desk: Client, provider: Provider, tmp_path: Path
) -> None:
    script = tmp_path / "notebook.py"
    script.write_text(
        "import runner, signal, os\n"
        "def strategy(bars, n):\n    return bars.close > bars.sma(n)\n"
        f"client = runner.connect({deployment.url!r}, secret={SECRET!r})\n"
        f"source = runner.Source('binance', ['A1', 'A2', 'A3'], base_url='{provider.url}/binance', **{YEARS!r})\n"
        "client.sweep(strategy, source, runner.grid(n=range(5, 25)), name='orphan')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    provider.trouble.plan["/binance/api/v3/klines"] = [slow_headers(0.5, as_usual)] * 3
    ended = subprocess.run([sys.executable, script], cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    sweep = desk.attach("orphan")
    assert not sweep.progress().ended
    result = sweep.result(timeout=60, progress=False)
    assert result.frame["sharpe"].notna().all()
    assert len(result.frame) == 3 * 20
    assert len(sweep.result(progress=False).replay(symbol="A2", n=5).trades) > 0


def test_runs_on_a_symbol_begin_while_another_is_still_being_fetched(desk: Client, provider: Provider) -> None:
    released = threading.Event()

    async def slow_for_b(request: web.Request) -> web.StreamResponse:
        if request.query["symbol"] == "BBB":
            await asyncio.to_thread(released.wait, 30)
        return await as_usual(request)

    provider.trouble.plan["*"] = [slow_for_b] * 1000
    try:
        sweep = desk.sweep(cross, provider.source("A1", "BBB", "A2"), GRID)
        wait_until(lambda: sweep.progress().done == 2 * len(GRID), "the other symbols' runs are done")
        assert not sweep.progress().ended
    finally:
        released.set()
    assert len(sweep.result(timeout=60, progress=False).frame) == 3 * len(GRID)


@pytest.mark.parametrize(
    ("source", "symbol"),
    [("tiingo", "AAPL"), ("alpaca", "MSFT"), ("wikipedia", "Bitcoin"), ("fear_greed", "FNG"), ("fred", "VIXCLS")],
)
def test_a_wrong_answer_is_not_believed_and_not_kept(
    desk: Client, provider: Provider, source: str, symbol: str
) -> None:
    dates: dict[str, Any] = {"start": "2018-03-01", "end": "2018-04-01"}
    if source == "tiingo":
        dates = {"start": "2010-03-01", "end": "2010-04-01"}
    options = {"source": source, "base_url": f"{provider.url}/{source}", **dates}
    provider.trouble.plan["*"] = [wrong_json()]
    with pytest.raises(BadAnswer, match=f"{source}: {symbol}"):
        desk.fetch(symbol, **options)
    assert len(desk.fetch(symbol, **options)) > 10


def test_cancelling_a_sweep_ends_its_fetch(desk: Client, provider: Provider) -> None:
    provider.trouble.plan["*"] = [slow_headers(0.3, as_usual)] * 1000
    sweep = desk.sweep(cross, provider.source(*[f"C{i}" for i in range(100)]), GRID)
    sweep.cancel()
    result = sweep.result(timeout=30, progress=False)
    assert result.cancelled
    assert desk._ledger.progress(f"{sweep.id}/fetch").state == "cancelled"


def test_a_fetch_worker_that_dies_loses_no_symbol(
    url: str, client: Client, ledger: Ledger, provider: Provider, start_worker: Callable[..., Worker]
) -> None:
    doomed = start_worker(2, queue="fetch")
    provider.trouble.plan["*"] = [slow_headers(0.5, as_usual)] * 30
    found: list[fetching.Fetched] = []
    thread = threading.Thread(
        target=lambda: found.append(client.fetch([f"D{i}" for i in range(6)], **provider.binance, progress=False))
    )
    thread.start()
    wait_until(lambda: provider.klines > 0, "the provider is asked")
    doomed.process.kill()
    start_worker(2, queue="fetch")
    thread.join(60)
    assert len(found[0]) == 6
    assert not found[0].errors


def test_prices_of_a_source_are_not_fetched_by_the_local_door(provider: Provider) -> None:
    with pytest.raises(InputError, match=r"client\.fetch"):
        runner.sweep(cross, provider.source("SP500"), GRID, progress=False)


def test_a_provider_that_is_down_is_an_error_that_says_so(desk: Client, provider: Provider) -> None:
    provider.trouble.plan["*"] = [status(500)] * 200
    with pytest.raises(SourceUnavailable, match="binance: SP500"):
        desk.fetch("SP500", **provider.binance)


def test_emptying_the_server_in_the_middle_of_a_fetch_hangs_nobody(client: Client, provider: Provider) -> None:
    timer = threading.Timer(0.5, lambda: redis.Redis.flushall(client._ledger.server))
    timer.start()
    with pytest.warns(UserWarning, match="waits for one"), pytest.raises(runner.RunnerError):
        client.fetch("SP500", **provider.binance, timeout=20)
    timer.join()


def test_a_fetch_is_no_sweep_to_attach_to(client: Client, ledger: Ledger, provider: Provider) -> None:
    ledger.reserve("fetch-x")
    ledger.activate("fetch-x", Work(spec="{}", total=1, queue="fetch", limit_s=1.0, priority="normal"))
    with pytest.raises(SweepNotFound, match="is a fetch"):
        client.attach("fetch-x")


def test_symbols_of_the_same_prices_are_both_there(desk: Client, provider: Provider) -> None:
    async def always_abc(request: web.Request) -> web.StreamResponse:
        return await as_usual(request.clone(rel_url=request.rel_url.update_query(symbol="ABC")))

    provider.trouble.plan["*"] = [always_abc] * 200
    symbols = [f"TWIN{i}" for i in range(40)]
    fetched = desk.fetch(symbols, **provider.binance)
    assert len({bars.digest for bars in fetched.values()}) == 1
    assert [bars.symbol for bars in fetched.values()] == symbols


def test_a_fetch_that_is_given_up_leaves_no_prices_behind(desk: Client, provider: Provider) -> None:
    provider.trouble.plan["*"] = [slow_headers(0.4, as_usual)] * 400
    with pytest.raises(SweepTimeout):
        desk.fetch([f"L{i}" for i in range(60)], **provider.binance, timeout=0.6)
    server: Any = desk._ledger.server
    quiet = desk.fetch("LAST", **provider.binance)  # by now the workers have met the removed batch
    assert len(quiet) > 300
    wait_until(lambda: not server.keys("runner:data:*") + server.keys("runner:batch:*"), "nothing is left")
