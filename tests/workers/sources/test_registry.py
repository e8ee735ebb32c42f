from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runner.errors import InputError, SettingsError
from workers.sources import registry

OURS = {
    "alpaca": "Alpaca",
    "binance": "Binance",
    "binance_bulk": "BinanceBulk",
    "ccxt": "Ccxt",
    "coinbase": "Coinbase",
    "fear_greed": "FearGreed",
    "file": "File",
    "fred": "Fred",
    "kraken": "Kraken",
    "tiingo": "Tiingo",
    "url": "Url",
    "wikipedia": "Wikipedia",
    "yfinance": "Yfinance",
}
A_SOURCE = """
class Mine:
    name, kind, intervals, options = "{name}", "bars", ("1d",), ()
    def unit(self, interval): return "year"
    async def load(self, ask, http): raise NotImplementedError
"""
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a package of one module that gives one source."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def installed(package: str, source: str, code: str, *, extra: str = "") -> None:
        (tmp_path / f"{package}.py").write_text(code)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        extras = f"Provides-Extra: {extra}\n" if extra else ""
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n{extras}")
        (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n{source} = {package}:Mine\n")
        importlib.invalidate_caches()

    before = set(sys.modules)
    yield installed
    for name in set(sys.modules) - before:
        if name.startswith("user_"):
            del sys.modules[name]


@pytest.mark.parametrize(("name", "kind"), OURS.items())
def test_each_of_our_sources_is_found_under_its_name(name: str, kind: str) -> None:
    found = registry.source(name)
    assert type(found).__name__ == kind
    assert found.name == name
    assert found.kind in ("bars", "series")
    assert found.intervals
    assert all(found.unit(interval) in ("day", "month", "year", "decade", "all") for interval in found.intervals)
    assert registry.source(name) is found
    asks_each_time, is_of_this_host = name in ("url", "file"), name == "file"
    assert getattr(found, "ttl_s", "none") == (0.0 if asks_each_time else None)
    assert getattr(found, "local", "none") is is_of_this_host


def test_all_names_are_listed() -> None:
    assert set(OURS) <= set(registry.sources())
    assert list(registry.sources()) == sorted(registry.sources())


def test_an_unknown_name_is_answered_with_near_ones_and_with_what_there_is() -> None:
    with pytest.raises(InputError, match=r"source 'binanse' is not installed here. Did you mean 'binance'.*kraken"):
        registry.source("binanse")


def test_a_package_of_the_user_s_adds_a_source(install: Install) -> None:
    install("user_adds", "user_adds_one", A_SOURCE.format(name="user_adds_one"))
    assert "user_adds_one" in registry.sources()
    assert registry.source("user_adds_one").unit("1d") == "year"


def test_a_source_that_cannot_be_imported_is_named_with_its_cure_and_the_others_work(install: Install) -> None:
    install("user_breaks", "user_broken", "import no_such_library", extra="user_broken")
    with pytest.raises(
        SettingsError, match=r"'user_broken'.*no_such_library.*pip install 'user_breaks\[user_broken\]'"
    ):
        registry.source("user_broken")
    assert "user_broken" in registry.sources()
    assert registry.source("kraken").name == "kraken"


@pytest.mark.parametrize("code", ["def", "1 / 0", "x = 1", "class Mine:\n    def __init__(self, key): ..."])
def test_whatever_a_package_raises_is_an_error_that_names_it(install: Install, code: str) -> None:
    install("user_raises", "user_raising", code)
    with pytest.raises(
        SettingsError, match=r"'user_raising' \(user_raises:Mine of user_raises\) cannot be used: \w+Error"
    ):
        registry.source("user_raising")


def test_what_is_no_source_is_told_what_it_lacks(install: Install) -> None:
    install("user_lacks", "user_lacking", "class Mine:\n    name = kind = intervals = 'x'")
    with pytest.raises(SettingsError, match=r"'user_lacking' .* has no options, unit, load"):
        registry.source("user_lacking")


def test_a_name_that_two_packages_give_is_refused(install: Install) -> None:
    for package in ("user_one", "user_two"):
        install(package, "user_twice", A_SOURCE.format(name="user_twice"))
    with pytest.raises(SettingsError, match=r"several packages \(user_one, user_two\)"):
        registry.source("user_twice")


def test_an_interval_that_the_source_lacks_is_refused_with_those_it_has() -> None:
    registry.check(registry.source("binance"), "1m", {})
    with pytest.raises(SettingsError, match=r"binance: interval '7m' .*1s, 1m, 3m"):
        registry.check(registry.source("binance"), "7m", {})


def test_an_option_that_the_source_does_not_take_is_refused_with_a_near_one() -> None:
    registry.check(registry.source("ccxt"), "1d", {"exchange": "okx", "base_url": "https://x"})
    with pytest.raises(SettingsError, match=r"ccxt: it has no option 'exchnage'\. Did you mean 'exchange'"):
        registry.check(registry.source("ccxt"), "1d", {"exchnage": "okx"})
    with pytest.raises(SettingsError, match="binance: it has no option 'feed'"):
        registry.check(registry.source("binance"), "1d", {"feed": "iex"})
