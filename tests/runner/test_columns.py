from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from runner import columns
from runner.bars import Bars
from runner.errors import BarsError
from tests.runner.prices import DAY_NS

GOOD: dict[str, Any] = {
    "time": np.arange(3) * DAY_NS,
    "open": [10.0, 11.0, 12.0],
    "high": [11.0, 12.0, 13.0],
    "low": [9.0, 10.0, 11.0],
    "close": [10.0, 11.0, 12.0],
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"close": [10.0, np.nan, np.nan]},
            r"'close' is not a finite number at 1970-01-02 \(nan, the first of 2 .*dropna",
        ),
        ({"high": [11.0, np.inf, 13.0]}, r"'high' is not a finite number at 1970-01-02 \(inf\).*drop"),
        ({"open": [10.0, 11.0, 0.0]}, r"'open' is not above 0 at 1970-01-03 \(0.0\): drop"),
        ({"low": [-9.0, 10.0, 11.0]}, r"'low' is not above 0 at 1970-01-01 \(-9.0\)"),
        ({"high": [11.0, 9.0, 13.0]}, r"'high' is below 'low' at 1970-01-02 \(9.0\): are the two columns swapped"),
        ({"close": [10.0, 12.1, 12.0]}, r"'close' is outside low..high at 1970-01-02 \(12.1\).*max\(axis=1\)"),
        ({"open": [8.9, 11.0, 12.0]}, r"'open' is outside low..high at 1970-01-01 \(8.9\)"),
        ({"volume": [1.0, -1.0, 1.0]}, r"'volume' is below 0 at 1970-01-02 \(-1.0\).*optional"),
        ({"volume": [1.0, np.nan, 1.0]}, r"'volume' is not a finite number at 1970-01-02.*optional"),
        ({"close": ["10", "11", "12"]}, "'close' is of type <U2, not numeric.*to_numeric"),
        ({"close": [10j, 11, 12]}, "'close' is of type complex128, not numeric"),
        ({"close": [10.0, 11.0]}, r"'close' has shape \(2,\): expected one value for each of the 3 times"),
        ({"close": None}, "'close' is missing: expected open, high, low, close"),
        ({"time": np.array([0, 2, 1]) * DAY_NS}, "not in order: 1970-01-02 comes after 1970-01-03. .*sort_index"),
        ({"time": np.array([0, 1, 1]) * DAY_NS}, "1970-01-02 occurs twice .*duplicated"),
        ({"time": np.array([0.0, 1.0, 2.0])}, r"float64 of shape \(3,\): expected int64\[n\], nanoseconds"),
        ({"time": np.arange(0)}, "there are no bars"),
        ({"extra": {"close": [1.0, 2.0, 3.0]}}, "two columns are called 'close'"),
        ({"extra": {"a b": [1.0, 2.0, 3.0], "A B": [1.0, 2.0, 3.0]}}, "two columns are called 'a_b'"),
        ({"extra": {"text": ["a", "b", "c"]}}, "'text' is of type"),
    ],
)
def test_bad_columns_are_named_with_their_first_bad_bar_and_the_cure(change: dict[str, Any], message: str) -> None:
    with pytest.raises(BarsError, match=message):
        Bars(**{**GOOD, **change})


def test_rounding_out_of_the_range_is_accepted_and_kept() -> None:
    rounded = float(np.float32(13.0) * (1 + 1e-7))
    bars = Bars(**{**GOOD, "close": [10.0, 11.0, rounded]})
    assert bars.close[2] == rounded > bars.high[2]


def test_the_largest_prices_raise_no_overflow() -> None:
    largest = np.full(3, np.finfo(np.float64).max)
    assert Bars(time=GOOD["time"], open=largest, high=largest, low=largest, close=largest).close[0] == largest[0]


def test_extra_data_may_be_missing_or_infinite() -> None:
    bars = Bars(**GOOD, extra={"vix": [np.nan, np.inf, 1]})
    assert np.isnan(bars["vix"][0])


@pytest.mark.parametrize(
    ("stamp", "shown"),
    [
        (0, "1970-01-01"),
        (DAY_NS // 2, "1970-01-01T12:00:00"),
        (10**9, "1970-01-01T00:00:01"),
        (1_500_000_000, "1970-01-01T00:00:01.5"),
        (-DAY_NS, "1969-12-31"),
    ],
)
def test_times_are_shown_no_finer_than_they_are(stamp: int, shown: str) -> None:
    assert columns.shown_time(stamp) == shown
