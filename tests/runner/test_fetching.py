from __future__ import annotations

import pandas as pd
import pytest

from runner import fetching
from runner.errors import FetchError, NoData, SettingsError, SymbolUnknown
from runner.source import Source

SOURCE = Source("binance", ["A", "B", "C"])


def test_an_error_comes_back_as_the_class_that_it_was_on_the_worker() -> None:
    for kind in (SymbolUnknown, NoData, SettingsError):
        error = fetching.error_of({"kind": kind.__name__, "message": "binance: A"})
        assert type(error) is kind
        assert str(error) == "binance: A"


@pytest.mark.parametrize("kind", ["ValueError", "KeyboardInterrupt", "InputError2", "__builtins__", "RunnerError.x"])
def test_a_foreign_error_is_a_fetch_error_and_no_name_is_looked_up_elsewhere(kind: str) -> None:
    error = fetching.error_of({"kind": kind, "message": "m"})
    assert type(error) is FetchError
    assert str(error) == f"{kind}: m"


def test_nothing_is_complained_of_when_all_went_well() -> None:
    fetched = fetching.Fetched()
    fetched.update(A=1, B=2, C=3)
    assert list(fetching.complaints(fetched, SOURCE)) == []
    assert repr(fetched) == "<3 symbols fetched>"


def test_what_is_missing_and_what_is_old_is_said_with_an_example() -> None:
    fetched = fetching.Fetched()
    fetched.update(A=1, B=2)
    fetched.errors["C"] = NoData("binance: C: nothing there")
    fetched.stale["B"] = pd.Timestamp("2026-01-02", tz="UTC")
    missing, old = fetching.complaints(fetched, SOURCE)
    assert "1 of 3 symbols" in missing
    assert "binance: C: nothing there" in missing
    assert "B as of 2026-01-02" in old
    assert repr(fetched) == "<2 symbols fetched, 1 failed, 1 stale>"
