from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

import runner
from tests.misbehaving import serving
from workers.session import HttpClient, Response
from workers.sources.parse import closes_ns, interval_ns
from workers.standin import Prices, make_app
from workers.standin.prices import LISTED_NS

NAMES = ("open", "high", "low", "close", "volume")
DAY_NS = 86_400 * 10**9


def ns(moment: str) -> int:
    return int(np.datetime64(moment, "ns").astype(np.int64))


NOW = ns("2025-03-10T12:30")
PRICES = Prices(NOW)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(make_app(PRICES)) as url:
        yield url


def get(url: str, path: str, *, etag: str | None = None, **params: Any) -> Response:
    async def answer() -> Response:
        http = HttpClient()
        try:
            texts = {name: str(value) for name, value in params.items()}
            return await http.get(url + path, params=texts, etag=etag, private=True)
        finally:
            await http.close()

    return asyncio.run(answer())


def said(answer: Response) -> Any:
    return json.loads(answer.body)


# Prices


@pytest.mark.parametrize("interval", ["1s", "5m", "1h", "1d", "3d", "1w", "1M", "15d"])
def test_bars_are_those_that_a_market_makes(interval: str) -> None:
    end = "2024-02-28T03:00" if interval == "1s" else "2024-03-02" if interval_ns(interval) < DAY_NS else "2025-01-01"
    bars = PRICES.bars(
        "BTCUSDT", interval, ns("2024-02-28" if interval_ns(interval) < DAY_NS else "2018-01-01"), ns(end)
    )
    assert len(bars.time) > 20
    assert (closes_ns(bars.time, interval)[:-1] == bars.time[1:]).all()
    low, high = bars.columns["low"], bars.columns["high"]
    for name in ("open", "close"):
        assert (low <= bars.columns[name]).all()
        assert (bars.columns[name] <= high).all()
    assert (low > 0).all()
    assert (bars.columns["volume"] >= 0).all()
    columns: dict[str, Any] = dict(bars.columns)
    assert len(runner.Bars(time=bars.time, **columns)) == len(bars.time)


def test_any_part_of_a_range_is_the_same_as_in_the_whole() -> None:
    whole = PRICES.bars("ETHUSDT", "1h", ns("2024-01-01"), ns("2024-02-01"))
    part = Prices(NOW).bars("ETHUSDT", "1h", ns("2024-01-10T05:00"), ns("2024-01-12"))
    at = int(np.flatnonzero(whole.time == part.time[0])[0])
    assert all((whole.columns[name][at : at + len(part.time)] == part.columns[name]).all() for name in NAMES)


def test_two_symbols_differ_and_days_are_made_of_their_hours() -> None:
    day = PRICES.bars("BTCUSDT", "1d", ns("2024-01-01"), ns("2024-01-02"))
    hours = PRICES.bars("BTCUSDT", "1h", ns("2024-01-01"), ns("2024-01-02"))
    assert hours.columns["open"][0] == day.columns["open"][0]
    assert hours.columns["close"][-1] == day.columns["close"][0]
    other = PRICES.bars("ETHUSDT", "1d", ns("2024-01-01"), ns("2024-01-02"))
    assert other.columns["close"][0] != day.columns["close"][0]


def test_the_same_prices_come_from_another_process() -> None:
    code = (
        "from workers.standin import Prices\n"
        f"print(Prices({NOW}).bars('BTCUSDT', '1h', {ns('2024-01-01')}, {ns('2024-01-03')}).columns['close'].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    here = PRICES.bars("BTCUSDT", "1h", ns("2024-01-01"), ns("2024-01-03"))
    assert json.loads(done.stdout) == here.columns["close"].tolist()


@pytest.mark.parametrize("symbol", ["SP500", "AAPL", "GOOG", "IBM"])
def test_packaged_symbols_are_the_packaged_series(symbol: str) -> None:
    sample, bars = runner.sample_data(symbol), PRICES.bars(symbol, "1d", 0, NOW)
    assert bars.time.tobytes() == sample.time.tobytes()
    assert all(bars.columns[name].tobytes() == np.asarray(getattr(sample, name)).tobytes() for name in NAMES)
    assert len(PRICES.bars(symbol, "1h", ns("2012-01-01"), ns("2012-02-01")).time) == 0


def test_weeks_of_a_packaged_series_are_its_sessions_taken_together() -> None:
    [week] = [PRICES.bars("SP500", "1w", ns("2018-12-24"), ns("2018-12-31"))]
    days = PRICES.bars("SP500", "1d", ns("2018-12-24"), ns("2018-12-31"))
    assert week.time.tolist() == [ns("2018-12-24")]
    assert week.columns["open"][0] == days.columns["open"][0]
    assert week.columns["high"][0] == days.columns["high"].max()
    assert week.columns["low"][0] == days.columns["low"].min()
    assert week.columns["close"][0] == days.columns["close"][-1]
    assert week.columns["volume"][0] == days.columns["volume"].sum()


def test_there_is_nothing_before_the_listing_and_nothing_of_the_future() -> None:
    bars = PRICES.bars("BTCUSDT", "1d", 0, 2**62)
    assert bars.time[0] == LISTED_NS
    assert bars.time[-1] == ns("2025-03-10")


def test_the_last_bar_is_unfinished() -> None:
    running = PRICES.bars("BTCUSDT", "1d", ns("2025-03-10"), NOW)
    final = Prices(NOW + DAY_NS).bars("BTCUSDT", "1d", ns("2025-03-10"), NOW)
    assert running.time.tolist() == final.time.tolist()
    assert running.columns["open"] == final.columns["open"]
    assert running.columns["close"] == running.columns["open"] != final.columns["close"]


def test_symbols_that_begin_with_unknown_do_not_exist() -> None:
    assert PRICES.exists("BTCUSDT")
    assert not PRICES.exists("UNKNOWN")
    assert not PRICES.exists("unknown-usd")
    assert not PRICES.exists("")


def test_without_a_fixed_moment_the_present_is_the_clock_s() -> None:
    first, second = Prices().now_ns, Prices().now_ns
    assert ns("2025-01-01") < first <= second


# Limits and formats


def test_binance_sends_500_rows_unless_asked_and_refuses_more_than_1000(url: str) -> None:
    path = "/binance/api/v3/klines"
    of: dict[str, Any] = {"symbol": "BTCUSDT", "interval": "1m", "startTime": ns("2024-01-01") // 10**6}
    assert len(said(get(url, path, **of))) == 500
    assert len(said(get(url, path, **of, limit=1000))) == 1000
    refused = get(url, path, **of, limit=1001)
    assert (refused.status, said(refused)["code"]) == (400, -1130)


def test_binance_sends_the_newest_rows_when_no_start_is_given(url: str) -> None:
    rows = said(get(url, "/binance/api/v3/klines", symbol="BTCUSDT", interval="1d", limit=3))
    assert [row[0] for row in rows] == [ns(day) // 10**6 for day in ("2025-03-08", "2025-03-09", "2025-03-10")]
    assert rows[-1][6] == ns("2025-03-11") // 10**6 - 1


def test_binance_finds_the_oldest_rows_across_a_long_gap(url: str) -> None:
    rows = said(get(url, "/binance/api/v3/klines", symbol="BTCUSDT", interval="1h", startTime=0, limit=2))
    assert [row[0] for row in rows] == [LISTED_NS // 10**6, LISTED_NS // 10**6 + 3_600_000]


def test_binance_numbers_are_text_with_eight_decimals(url: str) -> None:
    [row] = said(get(url, "/binance/api/v3/klines", symbol="BTCUSDT", interval="1d", limit=1))
    assert len(row) == 12
    assert all(isinstance(value, str) and len(value.partition(".")[2]) == 8 for value in row[1:6])


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"symbol": "UNKNOWN", "interval": "1d"}, -1121),
        ({"interval": "1d"}, -1121),
        ({"symbol": "BTCUSDT", "interval": "7d"}, -1120),
        ({"symbol": "BTCUSDT", "interval": "1d", "limit": "many"}, -1100),
    ],
)
def test_binance_explains_what_is_wrong_with_a_request(url: str, asked: dict[str, Any], code: int) -> None:
    refused = get(url, "/binance/api/v3/klines", **asked)
    assert refused.status == 400
    assert said(refused)["code"] == code


def test_binance_counts_the_weight_of_the_minute() -> None:
    with serving(make_app(PRICES)) as url:
        used = [
            int(get(url, "/binance/api/v3/klines", symbol="BTCUSDT", interval="1d").headers["X-MBX-USED-WEIGHT-1M"])
            for _ in range(3)
        ]
    assert used in ([2, 4, 6], [2, 4, 2], [2, 2, 4])  # a minute may end in between


def test_coinbase_refuses_more_than_300_candles_and_sends_the_newest_first(url: str) -> None:
    path = "/coinbase/products/BTC-USD/candles"
    of: dict[str, Any] = {"granularity": 86400, "start": "2024-01-01T00:00:00Z"}
    refused = get(url, path, **of, end="2024-10-27T00:00:00Z")
    assert refused.status == 400
    assert "exceeds 300" in said(refused)["message"]
    rows = said(get(url, path, **of, end="2024-10-26T00:00:00Z"))
    assert len(rows) == 301  # one before the start, as the real one may send
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)


def test_coinbase_leaves_out_what_was_not_traded(url: str) -> None:
    of: dict[str, Any] = {"granularity": 60, "start": "2024-01-01T00:00:00Z", "end": "2024-01-01T04:59:00Z"}
    rows = said(get(url, "/coinbase/products/BTC-USD/candles", **of))
    volumes = PRICES.bars("BTC-USD", "1m", ns("2024-01-01") - 60 * 10**9, ns("2024-01-01T05:00")).columns["volume"]
    assert 0 < len(rows) == int((volumes > 0).sum()) < 301


def test_coinbase_explains_what_is_wrong_with_a_request(url: str) -> None:
    assert get(url, "/coinbase/products/UNKNOWN-USD/candles").status == 404
    assert get(url, "/coinbase/products/BTC-USD/candles", granularity=7).status == 400
    assert get(url, "/coinbase/products/BTC-USD/candles", start="then").status == 400


def test_kraken_sends_the_newest_720_rows_under_another_name_and_names_the_last_final_one(url: str) -> None:
    result = said(get(url, "/kraken/0/public/OHLC", pair="XBTUSD", interval=1440))["result"]
    assert set(result) == {"XXBTZUSD", "last"}
    assert len(result["XXBTZUSD"]) == 720
    assert result["XXBTZUSD"][-1][0] == ns("2025-03-10") // 10**9
    assert result["last"] == ns("2025-03-09") // 10**9
    since = ns("2025-03-01") // 10**9
    assert (
        len(said(get(url, "/kraken/0/public/OHLC", pair="XBTUSD", interval=1440, since=since))["result"]["XXBTZUSD"])
        == 9
    )


def test_kraken_s_errors_come_with_200(url: str) -> None:
    wrong: list[dict[str, Any]] = [
        {"pair": "UNKNOWN"},
        {"pair": "XBTUSD", "interval": 7},
        {"pair": "XBTUSD", "since": "then"},
    ]
    for asked in wrong:
        answer = get(url, "/kraken/0/public/OHLC", **asked)
        assert answer.status == 200
        assert said(answer)["error"]


def test_the_archive_has_validators_as_its_store_does(url: str) -> None:
    path = "/binance_bulk/data/spot/monthly/klines/BTCUSDT/1d/BTCUSDT-1d-2024-02.zip"
    first = get(url, path)
    assert first.status == 200
    assert get(url, path, etag=first.headers["ETag"]).status == 304


@pytest.mark.parametrize(
    "path",
    [
        "monthly/klines/BTCUSDT/1d/BTCUSDT-1d-2025-03.zip",
        "daily/klines/BTCUSDT/1d/BTCUSDT-1d-2025-03-10.zip",
        "monthly/klines/BTCUSDT/1d/BTCUSDT-1d-2016-01.zip",
        "monthly/klines/UNKNOWN/1d/UNKNOWN-1d-2024-01.zip",
        "monthly/klines/BTCUSDT/7d/BTCUSDT-7d-2024-01.zip",
        "yearly/klines/BTCUSDT/1d/BTCUSDT-1d-2024.zip",
        "monthly/klines/BTCUSDT/1d/BTCUSDT-1d-2024-13.zip",
        "monthly/klines/BTCUSDT/1d/2024-01.zip",
    ],
)
def test_the_archive_answers_404_with_xml_where_there_is_no_file(url: str, path: str) -> None:
    for suffix in ("", ".CHECKSUM"):
        missing = get(url, f"/binance_bulk/data/spot/{path}{suffix}")
        assert missing.status == 404
        assert missing.headers["Content-Type"].startswith("application/xml")


# The process


@contextmanager
def running() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-W", "error", "-m", "workers.standin", "--port", "0"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return str(json.loads(process.stdout.readline())["url"])


@pytest.mark.parametrize("way", ["end of input", "SIGTERM", "SIGINT"])
def test_the_process_tells_its_address_serves_on_loopback_and_ends(way: str) -> None:
    with running() as process:
        url = address(process)
        assert urllib.parse.urlsplit(url).hostname == "127.0.0.1"
        assert len(said(get(url, "/binance/api/v3/klines", symbol="BTCUSDT", interval="1d", limit=3))) == 3
        if way == "end of input":
            assert process.stdin is not None
            process.stdin.close()
        else:
            os.kill(process.pid, signal.Signals[way])
        assert process.wait(10) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""
