from __future__ import annotations

import asyncio
import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace

import pytest

from runner.errors import BadAnswer, FetchError, NoData, SourceRefused, SymbolUnknown
from tests.misbehaving import Fault, html, retry_after, status, truncated
from tests.workers.sources.asking import ask, load, ns
from tests.workers.sources.exchanges import NOW, Exchanges, behind, exchanges, part, same
from workers.session import HttpClient
from workers.sources.binance_bulk import UNPACKED_BYTES, BinanceBulk
from workers.sources.protocol import Ask, Unchanged
from workers.standin.crypto import kline_rows

MONTH = "BTCUSDT-1h-2024-02"
ZIP = f"/binance_bulk/data/spot/monthly/klines/BTCUSDT/1h/{MONTH}.zip"
CHECKSUM = f"{ZIP}.CHECKSUM"
MS_NS = 10**6


def asked(server: Exchanges, interval: str, start: str, end: str, symbol: str = "BTCUSDT", *, now: str = NOW) -> Ask:
    return ask(symbol, start, end, interval, now=now, base_url=f"{server.url}/binance_bulk")


def february(server: Exchanges) -> Ask:
    return asked(server, "1h", "2024-02-01", "2024-03-01")


def lines(server: Exchanges) -> list[str]:
    """February's file, line by line."""
    return [",".join(map(str, row)) for row in kline_rows(behind(server, february(server)), "1h", MS_NS)]


def zipped(members: dict[str, str | bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as files:
        for name, content in members.items():
            files.writestr(name, content)
    return packed.getvalue()


def publish(server: Exchanges, packed: bytes) -> None:
    """Serve that zip as February's, with its right checksum."""
    server.trouble.plan[CHECKSUM] = [status(200, f"{hashlib.sha256(packed).hexdigest()}  {MONTH}.zip\n".encode())]
    server.trouble.plan[ZIP] = [status(200, packed)]


def names(server: Exchanges) -> set[str]:
    return {path.rpartition("/")[2] for path in server.trouble.calls}


# Right bars


@pytest.mark.parametrize(
    ("interval", "start", "end"),
    [
        ("1m", "2024-02-01", "2024-03-01"),
        ("1h", "2024-01-01", "2025-01-01"),
        ("1d", "2018-01-01", "2019-01-01"),
        ("1s", "2025-03-01", "2025-03-02"),
    ],
)
def test_bars_are_right_to_the_last_bit(server: Exchanges, interval: str, start: str, end: str) -> None:
    question = asked(server, interval, start, end)
    assert same(load(BinanceBulk(), question), behind(server, question))


def test_milliseconds_turn_into_microseconds_with_2025(server: Exchanges) -> None:
    question = asked(server, "1h", "2024-12-01", "2025-02-01")
    assert same(load(BinanceBulk(), question), behind(server, question))
    digits = {
        name: len(zipfile.ZipFile(io.BytesIO(packed)).read(f"{name}.csv").split(b",")[0])
        for name in ("BTCUSDT-1h-2024-12", "BTCUSDT-1h-2025-01")
        for packed in [fetched(server, f"/binance_bulk/data/spot/monthly/klines/BTCUSDT/1h/{name}.zip")]
    }
    assert digits == {"BTCUSDT-1h-2024-12": 13, "BTCUSDT-1h-2025-01": 16}


def fetched(server: Exchanges, path: str) -> bytes:
    async def get() -> bytes:
        http = HttpClient()
        try:
            return (await http.get(server.url + path, private=True)).body
        finally:
            await http.close()

    return asyncio.run(get())


def test_the_running_month_is_made_of_days_up_to_yesterday(server: Exchanges) -> None:
    question = asked(server, "1h", "2025-01-01", "2026-01-01")
    expected = behind(server, question)
    table = load(BinanceBulk(), question)
    assert same(table, part(expected, slice(0, len(table.time))))
    assert table.time[-1] == ns("2025-03-09T23:00")
    zips = {name for name in names(server) if name.endswith(".zip")}
    days = {f"BTCUSDT-1h-2025-03-0{day}.zip" for day in range(1, 10)}
    assert zips == {"BTCUSDT-1h-2025-01.zip", "BTCUSDT-1h-2025-02.zip"} | days


def test_a_month_that_is_late_is_made_of_its_days() -> None:
    now = "2025-03-02T12:00"  # a Sunday: February comes out on Monday
    with exchanges(now) as server:
        question = asked(server, "1d", "2025-02-01", "2025-03-01", now=now)
        assert same(load(BinanceBulk(), question), behind(server, question))
        assert "BTCUSDT-1d-2025-02.zip" not in names(server)


def test_a_header_row_is_skipped(server: Exchanges) -> None:
    header = "open_time,open,high,low,close,volume,close_time,quote_volume,count,taker_buy_volume,taker_quote,ignore"
    publish(server, zipped({f"{MONTH}.csv": "\n".join([header, *lines(server)])}))
    assert same(load(BinanceBulk(), february(server)), behind(server, february(server)))


def test_unsorted_rows_duplicates_and_empty_prices_become_each_bar_once(server: Exchanges) -> None:
    sent = lines(server)
    fields = sent[5].split(",")
    sent[5] = ",".join([fields[0], "", *fields[2:]])
    publish(server, zipped({f"{MONTH}.csv": "\n".join([*reversed(sent), *sent[:3]])}))
    expected = behind(server, february(server))
    kept = [at for at in range(len(expected.time)) if at != 5]
    assert same(load(BinanceBulk(), february(server)), part(expected, kept))


def test_a_fault_that_passes_leaves_right_bars(server: Exchanges) -> None:
    server.trouble.plan[ZIP] = [retry_after(0), truncated()]
    assert same(load(BinanceBulk(), february(server)), behind(server, february(server)))


# Checksums


def test_the_same_checksums_mean_that_nothing_changed_and_no_zip_is_asked_for(server: Exchanges) -> None:
    table = load(BinanceBulk(), february(server))
    assert table.etag
    server.forget()
    with pytest.raises(Unchanged):
        load(BinanceBulk(), replace(february(server), etag=table.etag))
    assert server.trouble.calls == {CHECKSUM: 1}


def test_a_file_that_was_issued_again_is_loaded_again(server: Exchanges) -> None:
    etag = load(BinanceBulk(), february(server)).etag
    publish(server, zipped({f"{MONTH}.csv": "\n".join(lines(server)[:100])}))
    table = load(BinanceBulk(), replace(february(server), etag=etag))
    assert len(table.time) == 100
    assert table.etag != etag


def test_a_zip_that_is_not_what_its_checksum_says_is_refused(server: Exchanges) -> None:
    server.trouble.plan[ZIP] = [status(200, zipped({f"{MONTH}.csv": "\n".join(lines(server)[:100])}))]
    with pytest.raises(
        BadAnswer, match=rf"^binance_bulk: BTCUSDT 1h 2024-02-01\.\.2024-03-01: {MONTH}.zip has SHA-256"
    ):
        load(BinanceBulk(), february(server))


@pytest.mark.parametrize(
    "fault",
    [html(), status(200, b""), status(200, b"0" * 64), status(200, b"0" * 64 + b"  BTCUSDT-1h-2024-03.zip\n")],
    ids=["html", "empty", "no name", "another file's"],
)
def test_a_checksum_that_is_none_is_refused(server: Exchanges, fault: Fault) -> None:
    server.trouble.plan[CHECKSUM] = [fault]
    with pytest.raises(BadAnswer, match="expected the SHA-256 of"):
        load(BinanceBulk(), february(server))


# Zips


@pytest.mark.parametrize(
    "packed",
    [
        b"",
        b"PK no zip at all",
        zipped({}),
        zipped({"other.csv": "1"}),
        zipped({f"../{MONTH}.csv": "1"}),
        zipped({f"/tmp/{MONTH}.csv": "1"}),  # noqa: S108 - never written
        zipped({f"{MONTH}.csv": "1", "more.csv": "1"}),
        zipped({f"{MONTH}.csv": b"0" * (UNPACKED_BYTES + 1)}),
        zipped({f"{MONTH}.csv": "1700000000000," * 1000})[:-100],
    ],
    ids=["empty", "no zip", "no member", "another", "up", "absolute", "two", "bomb", "cut"],
)
def test_a_zip_that_is_not_one_file_of_the_expected_name_and_size_is_refused(server: Exchanges, packed: bytes) -> None:
    publish(server, packed)
    with pytest.raises(BadAnswer, match=r"^binance_bulk: BTCUSDT 1h 2024-02-01\.\.2024-03-01: "):
        load(BinanceBulk(), february(server))


def test_a_zip_that_lies_about_its_size_is_refused(server: Exchanges) -> None:
    honest = zipped({f"{MONTH}.csv": "\n".join(lines(server))})
    size = len("\n".join(lines(server))).to_bytes(4, "little")
    assert honest.count(size) == 2
    publish(server, honest.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(BadAnswer, match="cannot be unpacked"):
        load(BinanceBulk(), february(server))


def test_a_damaged_byte_is_refused(server: Exchanges) -> None:
    packed = bytearray(zipped({f"{MONTH}.csv": "\n".join(lines(server))}))
    packed[len(packed) // 2] ^= 0xFF
    publish(server, bytes(packed))
    with pytest.raises(BadAnswer, match="cannot be unpacked"):
        load(BinanceBulk(), february(server))


# Contents


def replaced(at: int, value: str) -> Callable[[list[str]], list[str]]:
    def change(sent: list[str]) -> list[str]:
        fields = sent[50].split(",")
        fields[at] = value
        return [*sent[:50], ",".join(fields), *sent[51:]]

    return change


@pytest.mark.parametrize(
    "change",
    [
        replaced(1, "n/a"),
        replaced(1, "nan"),
        replaced(2, "inf"),
        replaced(3, "100000000"),
        replaced(5, ""),
        replaced(0, ""),
        replaced(0, "2024-02-03"),
        replaced(0, "1704067200000"),  # January
        lambda sent: [line.rpartition(",")[0] for line in sent],
        lambda sent: [*sent, "<html>"],
        lambda sent: [],
    ],
    ids=["text", "nan", "inf", "low", "volume", "no time", "date", "month", "columns", "html", "empty"],
)
def test_a_file_that_is_not_as_documented_is_a_bad_answer(
    server: Exchanges, change: Callable[[list[str]], list[str]]
) -> None:
    publish(server, zipped({f"{MONTH}.csv": "\n".join(change(lines(server)))}))
    with pytest.raises(BadAnswer, match=r"^binance_bulk: BTCUSDT 1h 2024-02-01\.\.2024-03-01: "):
        load(BinanceBulk(), february(server))


# Nothing there


def test_months_before_the_listing_are_no_data_and_not_asked_for_day_by_day(server: Exchanges) -> None:
    with pytest.raises(NoData, match=r"^binance_bulk: BTCUSDT 1h 2016-01-01\.\.2017-01-01: "):
        load(BinanceBulk(), asked(server, "1h", "2016-01-01", "2017-01-01"))
    assert server.calls() == 12


def test_a_listing_inside_of_the_span_is_where_the_bars_begin(server: Exchanges) -> None:
    assert load(BinanceBulk(), asked(server, "1h", "2017-01-01", "2018-01-01")).time[0] == ns("2017-08-17")


def test_an_unknown_symbol_has_no_file(server: Exchanges) -> None:
    with pytest.raises(NoData, match="spelt as Binance does"):
        load(BinanceBulk(), asked(server, "1m", "2024-02-01", "2024-03-01", "UNKNOWN1"))


def test_today_is_no_data_yet(server: Exchanges) -> None:
    with pytest.raises(NoData):
        load(BinanceBulk(), asked(server, "1s", "2025-03-10", "2025-03-11"))
    assert server.calls() == 0


@pytest.mark.parametrize("symbol", ["../../x", "BTC/USDT", "..", "", "A?x", "A" * 60])
def test_what_cannot_be_a_symbol_never_becomes_part_of_a_path(server: Exchanges, symbol: str) -> None:
    with pytest.raises(SymbolUnknown):
        load(BinanceBulk(), asked(server, "1h", "2024-01-01", "2025-01-01", symbol))
    assert server.calls() == 0


@pytest.mark.parametrize(
    ("path", "fault", "kind"),
    [(ZIP, status(404), BadAnswer), (ZIP, html(), BadAnswer), (CHECKSUM, status(403), SourceRefused)],
    ids=["zip gone", "html", "403"],
)
def test_an_answer_that_is_no_file_is_one_error(
    server: Exchanges, path: str, fault: Fault, kind: type[FetchError]
) -> None:
    server.trouble.plan[path] = [fault]
    with pytest.raises(kind, match=r"^binance_bulk: BTCUSDT 1h 2024-02-01\.\.2024-03-01: "):
        load(BinanceBulk(), february(server))
