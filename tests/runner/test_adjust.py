from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runner
from runner.adjust import adjusted
from runner.bars import Bars
from runner.columns import OHLCV, Floats
from runner.errors import BarsError, InputError
from tests.runner.prices import DAY_NS

APPLE = runner.sample_data("AAPL")
SPLITS = {"2000-06-21": 2.0, "2005-02-28": 2.0}
DIVIDENDS = dict.fromkeys(["2012-08-09", "2012-11-07", "2013-02-07"], 2.65)  # dollars a share, as Apple announced


def raw(columns: dict[str, Any], **factors: Any) -> dict[str, Floats]:
    return {name: np.asarray(column, dtype=np.float64) for name, column in {**columns, **factors}.items()}


def on_dates(events: dict[str, float], otherwise: float) -> Floats:
    column = np.full(len(APPLE), otherwise)
    for date, value in events.items():
        at = np.flatnonzero(APPLE.time == np.datetime64(date, "ns").astype(np.int64))
        assert len(at) == 1
        column[at] = value
    return column


def apple(dividend: Floats) -> dict[str, Floats]:
    columns = {name: APPLE[name] for name in OHLCV}
    return raw(columns, split=on_dates(SPLITS, 1.0), dividend=dividend)


def relative(column: Floats) -> Floats:
    """To its last value: the packaged column also knows what happened after the last bar."""
    scaled: Floats = column / column[-1]
    return scaled


def test_splits_alone_give_the_packaged_adjusted_close_as_long_as_there_are_no_dividends() -> None:
    before = APPLE.time < np.datetime64("2012-08-09", "ns").astype(np.int64)
    close = adjusted(APPLE.time, apple(on_dates({}, 0.0)), "splits")["close"]
    np.testing.assert_allclose(relative(close[before]), relative(APPLE["adj_close"][before]), rtol=1e-12)


def test_splits_and_dividends_give_the_packaged_adjusted_close() -> None:
    # Its source buys new shares at the ex-date's close, 1 / (1 + d / close[i]), and we at the close before.
    paid = on_dates(DIVIDENDS, 0.0)
    before = np.concatenate([APPLE.close[:1], APPLE.close[:-1]])
    same = before * paid / (APPLE.close + paid)  # keeps as much by our formula as what was paid does by theirs
    close = adjusted(APPLE.time, apple(same), "all")["close"]
    np.testing.assert_allclose(relative(close), relative(APPLE["adj_close"]), rtol=1e-12)
    announced = adjusted(APPLE.time, apple(paid), "all")["close"]
    np.testing.assert_allclose(relative(announced), relative(APPLE["adj_close"]), rtol=2e-4)


def test_adjusted_prices_are_bars_and_the_last_one_is_as_it_was() -> None:
    done: dict[str, Any] = dict(adjusted(APPLE.time, apple(on_dates(DIVIDENDS, 0.0)), "all"))
    bars = Bars(time=APPLE.time, **done)
    for name in OHLCV:
        assert bars[name][-1] == APPLE[name][-1]
    returns = bars.close[1:] / bars.close[:-1] - 1
    assert (returns < -0.3).sum() == 1  # a profit warning on 2000-09-29
    split = int(np.flatnonzero(APPLE.time == np.datetime64("2005-02-28", "ns").astype(np.int64))[0])
    assert APPLE.volume is not None
    assert bars["volume"][split - 1] == 2 * APPLE.volume[split - 1]
    assert bars["volume"][split] == APPLE.volume[split]


def plain(rows: list[tuple[float, float, float]], how: str) -> list[float]:
    """The plain twin: walk back from the last bar. Rows are (close, split, dividend)."""
    factor, closes = 1.0, []
    for i in range(len(rows) - 1, -1, -1):
        close, split, dividend = rows[i]
        closes.append(close * factor)
        if i:
            factor /= split
            if how == "all":
                factor *= (rows[i - 1][0] - dividend * split) / rows[i - 1][0]
    return closes[::-1]


split_factors = st.sampled_from([1.0, 1.0, 2.0, 3.0, 0.1])
table = st.lists(st.tuples(st.floats(10, 100), split_factors, st.sampled_from([0.0, 0.0, 0.5, 3.0])), min_size=1)


@given(table, st.sampled_from(["splits", "all"]))
def test_it_is_what_walking_back_from_the_last_bar_gives(rows: list[tuple[float, float, float]], how: str) -> None:
    close, split, dividend = (np.array(part) for part in zip(*rows, strict=True))
    time = np.arange(len(rows)) * DAY_NS
    prices = {"open": close, "high": close + 1, "low": close - 1, "close": close, "volume": np.ones(len(rows))}
    done = adjusted(time, {**prices, "split": split, "dividend": dividend}, how)
    np.testing.assert_allclose(done["close"], plain(rows, how), rtol=1e-12)
    for name in ("open", "high", "low"):
        np.testing.assert_allclose(done[name] / done["close"], prices[name] / close, rtol=1e-12)
    np.testing.assert_allclose(done["volume"], [np.prod(split[i + 1 :]) for i in range(len(rows))], rtol=1e-12)


@given(table)
def test_a_holder_who_reinvests_earns_the_adjusted_return(rows: list[tuple[float, float, float]]) -> None:
    close, split, dividend = (np.array(part) for part in zip(*rows, strict=True))
    time = np.arange(len(rows)) * DAY_NS
    done = adjusted(time, {"close": close, "split": split, "dividend": dividend}, "all")["close"]
    for i in range(1, len(rows)):
        without_the_dividend = close[i - 1] - dividend[i] * split[i]
        assert done[i] / done[i - 1] == pytest.approx(split[i] * close[i] / without_the_dividend, rel=1e-9)


def test_none_leaves_raw_prices_and_takes_the_factors_away() -> None:
    columns = raw({"close": [10, 5.0], "mood": [1, 2.0]}, split=[1, 2.0], dividend=[0, 1.0])
    assert {name: column.tolist() for name, column in adjusted(np.array([0, DAY_NS]), columns, "none").items()} == {
        "close": [10, 5],
        "mood": [1, 2],
    }


def test_other_columns_and_missing_factors_are_left_alone() -> None:
    time = np.array([0, DAY_NS])
    columns = raw({"close": [10, 5.0], "mood": [1, 2.0]})
    for how in ("none", "splits", "all"):
        done = adjusted(time, columns, how)
        assert [done["close"].tolist(), done["mood"].tolist()] == [[10, 5], [1, 2]]
    assert adjusted(time, {**columns, "split": np.array([1, 2.0])}, "all")["close"].tolist() == [5, 5]
    assert adjusted(time, {**columns, "dividend": np.array([0, 2.0])}, "all")["close"].tolist() == [8, 5]
    assert adjusted(time, {**columns, "dividend": np.array([0, 2.0])}, "splits")["close"].tolist() == [10, 5]
    assert adjusted(time, {**columns, "split": np.array([1, 2.0])}, "all")["mood"].tolist() == [1, 2]
    assert columns["close"].tolist() == [10, 5]


def test_an_event_on_the_first_bar_concerns_no_bar() -> None:
    columns = raw({"close": [10, 5.0]}, split=[3, 1.0], dividend=[50, 0.0])
    assert adjusted(np.array([0, DAY_NS]), columns, "all")["close"].tolist() == [10, 5]


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ({"split": [1, 0.0]}, "split is 0.0 at 1970-01-02: expected a factor above 0, 1 when there is none"),
        ({"split": [1, -2.0]}, "split is -2.0 at 1970-01-02"),
        ({"split": [np.nan, 1]}, "split is nan at 1970-01-01"),
        ({"dividend": [0, -1.0]}, "dividend is -1.0 at 1970-01-02: expected 0 or more"),
        ({"dividend": [0, np.nan]}, "dividend is nan at 1970-01-02"),
        ({"dividend": [0, 10.0]}, "dividend is 10.0 at 1970-01-02: expected less than the close before it"),
        ({"dividend": [0, 5.0], "split": [1, 2.0]}, "dividend is 5.0 at 1970-01-02: expected less than the close"),
    ],
)
def test_factors_that_cannot_be_are_refused_with_their_date(factors: dict[str, Any], message: str) -> None:
    with pytest.raises(BarsError, match=message):
        adjusted(np.array([0, DAY_NS]), raw({"close": [10, 9.0]}, **factors), "all")


def test_an_unknown_way_to_adjust_is_refused() -> None:
    with pytest.raises(InputError, match="adjust='both': expected 'none', 'splits', 'all'"):
        adjusted(APPLE.time, {"close": APPLE.close}, "both")
