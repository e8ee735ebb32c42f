from __future__ import annotations

from collections.abc import Iterator

import pytest

import runner
from runner.errors import BadAnswer, FetchError, NoData, SourceRefused, SourceUnavailable, SymbolUnknown
from tests.misbehaving import Fault, gzip_bomb, html, redirect, status, truncated, wrong_json
from tests.workers.sources.asking import Standin, ask, load, standing_in
from workers.sources import tables
from workers.sources.protocol import Ask, Unchanged
from workers.sources.url import Url

PATH = "/files/AAPL.csv"
QUERY = "?signature=0123456789abcdef"


@pytest.fixture
def server() -> Iterator[Standin]:
    with standing_in() as standin:
        yield standin


def asked(server: Standin, path: str = PATH, *, private: bool = True, etag: str = "") -> Ask:
    return ask(server.url + path, "2000-01-01", "2030-01-01", etag=etag, private=private)


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_prices_are_those_of_the_file_to_the_last_bit(server: Standin, kind: str) -> None:
    table, bars = load(Url(), asked(server, f"/files/AAPL.{kind}")), runner.sample_data("AAPL")
    assert table.time.tolist() == bars.time.tolist()
    for name in ("open", "high", "low", "close", "volume"):
        assert table.columns[name].tolist() == getattr(bars, name).tolist()
    assert table.etag
    assert table.last_modified


def test_the_copy_that_the_cache_has_is_revalidated(server: Standin) -> None:
    table = load(Url(), asked(server))
    with pytest.raises(Unchanged):
        load(Url(), asked(server, etag=table.etag))
    seen = server.trouble.seen[PATH][-1]
    assert seen.headers["If-None-Match"] == table.etag
    assert len(load(Url(), asked(server, etag='"another"')).time) == len(table.time)


def test_a_304_that_nobody_asked_for_is_no_answer(server: Standin) -> None:
    server.trouble.plan[PATH] = [status(304)]
    with pytest.raises(BadAnswer, match=r"url: http://127\.0\.0\.1.*304"):
        load(Url(), asked(server))


def test_a_private_address_needs_the_option(server: Standin) -> None:
    with pytest.raises(SourceRefused, match=r"url: http://127\.0\.0\.1.*private"):
        load(Url(), asked(server, private=False))
    assert not server.trouble.calls


def test_a_redirect_to_another_private_address_is_not_followed(server: Standin) -> None:
    server.trouble.plan[PATH] = [redirect("http://10.0.0.1/secrets.csv")]
    with pytest.raises(SourceRefused, match=r"url: http://127\.0\.0\.1"):
        load(Url(), asked(server))


@pytest.mark.parametrize(
    "address", ["ftp://example.org/a.csv", "file:///etc/passwd", "AAPL", "https://", "http://[::1"]
)
def test_only_http_addresses_are_asked(address: str) -> None:
    with pytest.raises(SymbolUnknown, match="url: the symbol is no address"):
        load(Url(), ask(address, "2000-01-01", "2030-01-01"))


def test_a_password_in_the_address_is_refused_without_showing_it() -> None:
    with pytest.raises(SourceRefused, match=r"url: https://example\.org/a\.csv: user and password") as caught:
        load(Url(), ask("https://me:hunter2@example.org/a.csv", "2000-01-01", "2030-01-01"))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "fault",
    [
        html(),
        wrong_json(b"[1, 2]"),
        status(200, b"date,price\n2020-01-02,1\n"),
        status(403),
        status(404),
        status(410),
        status(400, b"bad request"),
        status(503),
        truncated(b"Date,Open", 1000),
        redirect("http://10.0.0.1/"),
    ],
)
def test_no_message_shows_the_query_which_may_hold_a_key(
    server: Standin, fault: Fault, caplog: pytest.LogCaptureFixture
) -> None:
    server.trouble.plan[PATH] = [fault] * 4
    with caplog.at_level(0), pytest.raises(FetchError) as caught:
        load(Url(), asked(server, PATH + QUERY))
    assert str(caught.value).startswith(f"url: {server.url}{PATH} 1d 2000-01-01..2030-01-01: ")
    assert QUERY not in f"{caught.value!r} {caught.value} {caplog.text}"


def test_a_missing_file_is_named(server: Standin) -> None:
    with pytest.raises(SymbolUnknown, match=r"url: http://.*/files/UNKNOWN\.csv 1d .*HTTP 404"):
        load(Url(), asked(server, "/files/UNKNOWN.csv"))


def test_a_range_without_rows_is_no_data(server: Standin) -> None:
    with pytest.raises(NoData, match="url: http://"):
        load(Url(), ask(server.url + PATH, "2020-01-01", "2021-01-01", private=True))


def test_a_bomb_is_cut_off(server: Standin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_BYTES", 1_000_000)
    server.trouble.plan[PATH] = [gzip_bomb(10_000_000)]
    with pytest.raises(BadAnswer, match=r"url: http://127\.0\.0\.1"):
        load(Url(), asked(server))


def test_a_server_in_trouble_is_unavailable(server: Standin) -> None:
    server.trouble.plan[PATH] = [status(503)] * 4
    with pytest.raises(SourceUnavailable, match="url: http://"):
        load(Url(), asked(server))
