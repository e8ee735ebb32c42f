from __future__ import annotations

import datetime as dt
import json
import pickle
from typing import Any

import pandas as pd
import pytest

from runner.errors import SettingsError
from runner.source import Source

DAY_NS = 86_400 * 10**9


def test_one_symbol_or_many_are_a_tuple() -> None:
    assert Source("binance", "BTCUSDT", start="2020-01-01").symbols == ("BTCUSDT",)
    assert Source("binance", ["A", "B"], start="2020-01-01").symbols == ("A", "B")
    assert len(Source("binance", (s for s in "ABC"))) == 3


@pytest.mark.parametrize(
    "start",
    [
        "2020-01-02",
        dt.date(2020, 1, 2),
        pd.Timestamp("2020-01-02"),
        pd.Timestamp("2020-01-02 01:00", tz="Europe/Paris"),
    ],
)
def test_every_way_to_write_a_moment_is_nanoseconds_of_utc(start: Any) -> None:
    assert Source("x", "A", start=start).start_ns == 18_263 * DAY_NS


def test_an_open_end_is_closed_once() -> None:
    source = Source("x", "A", start="2020-01-01")
    assert source.end_ns is None
    closed = source.ending(1_700_000_000 * 10**9)
    assert closed.end_ns == 1_700_000_000 * 10**9
    assert closed.ending(5) is closed


def test_it_survives_the_wire_and_pickle_unchanged() -> None:
    source = Source("alpaca", ["A", "B"], interval="5m", start="2020", end="2021", adjust="splits", feed="iex", n=1)
    assert Source.from_wire(json.loads(json.dumps(source.to_wire()))) == source
    assert pickle.loads(pickle.dumps(source)) == source
    assert hash(source) == hash(Source.from_wire(source.to_wire()))


def test_fields_of_another_version_are_refused() -> None:
    with pytest.raises(SettingsError, match="different versions"):
        Source.from_wire({**Source("x", "A").to_wire(), "colour": "red"})


def test_it_cannot_be_changed() -> None:
    source = Source("x", "A", feed="iex")
    with pytest.raises(AttributeError):
        source.interval = "1m"  # type: ignore[misc]  # that is the point
    with pytest.raises(TypeError):
        source.options["feed"] = "sip"  # type: ignore[index]  # likewise


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"provider": "No Such"}, "provider's name"),
        ({"provider": 3}, "provider's name"),
        ({"symbols": []}, "0 symbols"),
        ({"symbols": [""]}, "expected text"),
        ({"symbols": ["A\nB"]}, "expected text"),
        ({"symbols": [3]}, "expected text"),
        ({"symbols": ["A", "B", "A"]}, "'A' is given twice"),
        ({"interval": "daily"}, "such as '1m'"),
        ({"interval": "0d"}, "such as '1m'"),
        ({"adjust": "yes"}, "'none', 'splits', 'all'"),
        ({"start": "yesterday or so"}, "expected a date"),
        ({"start": "2021", "end": "2020"}, "not before"),
        ({"start": "2199-01-01"}, "not before end='now'"),
        ({"end": "2300-01-01"}, "expected a date"),
        ({"api_key": "abc"}, "keys never travel"),
        ({"feed": ["iex"]}, "expected text, a number or a bool"),
    ],
)
def test_what_is_wrong_is_named_with_its_cure(change: dict[str, Any], words: str) -> None:
    given: dict[str, Any] = {"provider": "binance", "symbols": "A", "start": "2020-01-01", **change}
    with pytest.raises(SettingsError, match=words):
        Source(given.pop("provider"), given.pop("symbols"), **given)


@pytest.mark.parametrize(
    "address",
    [
        "https://files.example/a.csv?token=hunter2",
        "https://files.example/a.csv?v=1&API_Key=hunter2",
        "https://files.example/a.csv?v=1;X-Amz-Security-%54oken=hunter2",
        "https://files.example/a.csv?token-hunter2",
        "https://files.example/a.csv#secret=hunter2",
        "https://me:hunter2@files.example/a.csv",
        "https://hunter2@files.example",
        " HTTPS://me:hunter2@files.example",
        "http://[::1?password=hunter2",
        "//me:hunter2@files.example/a.csv",
    ],
)
@pytest.mark.parametrize("where", ["symbols", "twice", "base_url", "mirror"])
def test_a_password_or_key_in_an_address_is_refused_and_not_repeated(address: str, where: str) -> None:
    given = {"symbols": [address], "twice": [address, address]}.get(where, "A")
    options: dict[str, Any] = {where: address} if where in ("base_url", "mirror") else {}
    with pytest.raises(SettingsError, match=r"would travel in messages.*plain address.*pass the frame") as caught:
        Source("url", given, **options)
    assert "hunter2" not in f"{caught.value} {caught.value!r}"


def test_a_base_url_without_its_scheme_hides_no_password() -> None:
    with pytest.raises(SettingsError, match="user and password") as caught:
        Source("binance", "A", base_url="me:hunter2@mirror.example")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "symbol", ["https://cdn.example/npm/prices@1.2/a.csv?v=2#top", "BTC/USDT:USDT", "/data/key?token=a@b.csv", "What?"]
)
def test_other_addresses_and_names_are_symbols(symbol: str) -> None:
    assert Source("url", symbol, base_url="https://mirror.example/a@b").symbols == (symbol,)


def test_a_key_given_by_mistake_is_not_repeated() -> None:
    with pytest.raises(SettingsError) as caught:
        Source("tiingo", "A", token="hunter2")
    assert "hunter2" not in str(caught.value)
