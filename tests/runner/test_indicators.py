from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import indicators
from runner.bars import Bars
from runner.columns import Floats
from runner.errors import InputError
from tests.runner.prices import bars_of, random_bars, walks

NAMES = ("sma", "ema", "wma", "rsi", "atr", "roc", "stdev", "highest", "lowest")


def call(bars: Bars, name: str, n: Any) -> Floats:
    values: Floats = getattr(bars, name)(n)
    return values


def smoothed(values: Floats, start: int, n: int, weight: float) -> Floats:
    """The average of values[start : start + n], then exponential smoothing."""
    out = np.full(len(values), np.nan)
    if start + n <= len(values):
        out[start + n - 1] = values[start : start + n].mean()
        for i in range(start + n, len(values)):
            out[i] = out[i - 1] + weight * (values[i] - out[i - 1])
    return out


def plain_rsi(bars: Bars, n: int) -> Floats:
    change = np.diff(bars.close, prepend=bars.close[0])
    gain = smoothed(np.maximum(change, 0), 1, n, 1 / n)
    loss = smoothed(np.maximum(-change, 0), 1, n, 1 / n)
    with np.errstate(invalid="ignore"):
        return np.where(gain + loss == 0, 0.0, 100 * gain / (gain + loss))


def plain_atr(bars: Bars, n: int) -> Floats:
    before = np.concatenate([[np.nan], bars.close[:-1]])
    ranges = np.fmax(bars.high, before) - np.fmin(bars.low, before)
    return smoothed(ranges, 1, n, 1 / n)


def rolling(values: Floats, n: int) -> Any:
    return pd.Series(values).rolling(n)


PLAIN: dict[str, Callable[[Bars, int], Any]] = {
    "sma": lambda bars, n: rolling(bars.close, n).mean(),
    "ema": lambda bars, n: smoothed(bars.close, 0, n, 2 / (n + 1)),
    "wma": lambda bars, n: rolling(bars.close, n).apply(
        lambda part: np.average(part, weights=np.arange(1, n + 1)), raw=True
    ),
    "rsi": plain_rsi,
    "atr": plain_atr,
    "roc": lambda bars, n: pd.Series(bars.close).pct_change(n) * 100,
    "stdev": lambda bars, n: rolling(bars.close, n).apply(np.std, raw=True),
    "highest": lambda bars, n: rolling(bars.high, n).max(),
    "lowest": lambda bars, n: rolling(bars.low, n).min(),
}


@pytest.mark.parametrize(("name", "n"), [pair for pair in product(NAMES, [1, 2, 3, 14, 100]) if pair != ("rsi", 1)])
def test_an_indicator_equals_its_plain_computation(name: str, n: int) -> None:
    bars = random_bars(300)
    np.testing.assert_allclose(call(bars, name, n), PLAIN[name](bars, n), rtol=1e-9, atol=1e-9)


def test_macd_equals_its_plain_computation() -> None:
    bars = random_bars(200)
    fast, slow, signal = 5, 12, 4
    line = smoothed(bars.close, slow - fast, fast, 2 / (fast + 1)) - smoothed(bars.close, 0, slow, 2 / (slow + 1))
    signal_line = smoothed(line, slow - 1, signal, 2 / (signal + 1))
    macd = bars.macd(fast, slow, signal)
    known = ~np.isnan(signal_line)
    np.testing.assert_allclose(macd[0][known], line[known], rtol=1e-9)
    np.testing.assert_allclose(macd[1], signal_line, rtol=1e-9)
    np.testing.assert_allclose(macd[2], line - signal_line, rtol=1e-9, atol=1e-12)
    assert np.isnan(macd[0][~known]).all()


def test_bollinger_bands_are_sma_and_stdev() -> None:
    bars = random_bars(60)
    lower, middle, upper = bars.bollinger(20, 1.5)
    np.testing.assert_array_equal(middle, bars.sma(20))
    np.testing.assert_array_equal(upper, bars.sma(20) + 1.5 * bars.stdev(20))
    np.testing.assert_array_equal(lower, bars.sma(20) - 1.5 * bars.stdev(20))


def everything(bars: Bars, n: int) -> list[Floats]:
    windowed = [call(bars, name, max(n, 2)) for name in NAMES]
    return [*windowed, *bars.macd(max(n, 2), n + 3, n), *bars.bollinger(n)]


@settings(deadline=None, max_examples=150)
@given(walks(min_size=2), st.integers(1, 12), st.data())
def test_bar_i_is_computed_from_bars_up_to_i_alone(bars: Bars, n: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(bars)))
    for whole, part in zip(everything(bars, n), everything(bars[:cut], n), strict=True):
        np.testing.assert_array_equal(whole[:cut], part)


@settings(deadline=None, max_examples=100)
@given(walks(), st.integers(1, 80))
def test_an_indicator_is_one_float_a_bar_and_nan_only_until_there_are_enough(bars: Bars, n: int) -> None:
    for name in NAMES:
        values = call(bars, name, max(n, 2))
        assert values.shape == (len(bars),)
        assert values.dtype == np.float64
        missing = np.flatnonzero(np.isnan(values))
        assert missing.tolist() == list(range(len(missing)))
        assert len(missing) >= min(max(n, 2) - 1, len(bars))


def test_a_window_of_one_bar_is_that_bar() -> None:
    bars = random_bars(5)
    for name in ("sma", "ema", "wma"):
        np.testing.assert_array_equal(call(bars, name, 1), bars.close)
    np.testing.assert_array_equal(bars.highest(1), bars.high)
    np.testing.assert_array_equal(bars.lowest(1), bars.low)
    assert bars.stdev(1).tolist() == [0.0] * 5


@pytest.mark.parametrize("name", NAMES)
def test_a_window_longer_than_the_bars_is_all_nan(name: str) -> None:
    for bars in (random_bars(5), random_bars(1)):
        for n in (6, 100_000):
            assert np.isnan(call(bars, name, n)).all()
    assert all(np.isnan(part).all() for part in random_bars(5).macd())
    assert all(np.isnan(part).all() for part in random_bars(5).bollinger())


@pytest.mark.parametrize("n", [0, -3, 2.0, 2.5, "3", None, True, np.nan, np.float64(3), 100_001])
@pytest.mark.parametrize("name", NAMES)
def test_a_window_that_is_no_whole_number_above_0_is_refused(name: str, n: Any) -> None:
    bars = random_bars(5)
    call(bars, name, 2)  # 2.0 == 2: what is remembered for one must not answer for the other
    with pytest.raises(InputError, match=f"{name}.*: expected a whole number of bars from"):
        call(bars, name, n)


def test_arguments_without_meaning_are_refused() -> None:
    bars = random_bars(40)
    with pytest.raises(InputError, match=r"rsi\(1\): expected a whole number of bars from 2"):
        bars.rsi(1)
    for fast, slow in ((26, 12), (12, 12), (1, 5)):
        with pytest.raises(InputError, match="expected 2 <= fast < slow"):
            bars.macd(fast, slow)
    bars.macd(2, 3, 1)
    with pytest.raises(InputError, match="whole number"):
        bars.macd(2, 3.0, 1)  # type: ignore[arg-type]  # the point of the test
    for k in (-1.0, np.nan, np.inf, "2", True):
        with pytest.raises(InputError, match="expected a number of standard deviations"):
            bars.bollinger(20, k)  # type: ignore[arg-type]  # the point of the test


def test_numpy_integers_are_windows() -> None:
    bars = random_bars(5)
    assert bars.sma(np.int64(3)) is bars.sma(3)  # type: ignore[arg-type]  # what iterating over an array gives


def test_small_and_flat_prices_lose_no_precision() -> None:
    close = random_bars(200).close
    tiny = bars_of(close * 1e-8)
    np.testing.assert_allclose(tiny.stdev(20), rolling(tiny.close, 20).apply(np.std, raw=True), rtol=1e-6)
    assert bars_of(np.full(50, 1228.099976)).stdev(20)[-1] == 0.0


def test_an_indicator_is_computed_once_and_read_only() -> None:
    bars = random_bars(50)
    assert bars.sma(5) is bars.sma(5)
    assert bars.macd() is bars.macd()
    for values in everything(bars, 3):
        assert not values.flags.writeable


def spread(bars: Bars, factor: float) -> Floats:
    return np.asarray((bars.high - bars.low) * factor)


def test_any_function_is_memoised_by_its_arguments() -> None:
    calls: list[float] = []

    def counted(bars: Bars, factor: float) -> Floats:
        calls.append(factor)
        return spread(bars, factor)

    bars = random_bars(10)
    first = bars.indicator(counted, 2)
    assert bars.indicator(counted, 2) is first
    bars.indicator(counted, 2.0)
    bars.indicator(counted, 3)
    assert calls == [2, 2.0, 3]
    np.testing.assert_array_equal(first, spread(bars, 2))
    assert not first.flags.writeable


def test_what_a_function_returns_cannot_be_changed_through_its_own_array() -> None:
    mine = np.arange(10.0)
    bars = random_bars(10)
    kept = bars.indicator(lambda _: mine[:])
    mine[0] = 5.0
    assert kept[0] == 0.0
    pair = bars.indicator(lambda bars: (bars.close > 100, pd.Series(mine)))
    assert pair[0].dtype == np.bool_
    assert [part.flags.writeable for part in pair] == [False, False]


@pytest.mark.parametrize(
    "result", [None, 1.0, np.arange(9.0), "text", {"a": 1}, (np.arange(10.0), None), np.array(["a"] * 10)]
)
def test_a_function_that_returns_something_else_is_named(result: Any) -> None:
    def broken(_: Bars) -> Any:
        return result

    with pytest.raises(InputError, match=r"broken returned .*expected one number for each of the 10 bars"):
        random_bars(10).indicator(broken)


def test_unhashable_arguments_are_refused() -> None:
    with pytest.raises(InputError, match="hashable; pass a tuple"):
        random_bars(10).indicator(spread, [1])


def test_an_indicator_may_use_others() -> None:
    def twice(bars: Bars, n: int) -> Any:
        return np.add(bars.sma(n), bars.indicator(spread, 1.0))

    bars = random_bars(10)
    np.testing.assert_array_equal(bars.indicator(twice, 2), bars.sma(2) + spread(bars, 1.0))


def test_the_memo_keeps_within_its_bytes_and_drops_the_least_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicators, "MEMO_BYTES", 3 * (8 * 100 + indicators.ENTRY_BYTES))
    bars = random_bars(100)
    first, second = bars.sma(1), bars.sma(2)
    bars.sma(3)
    assert bars.sma(1) is first
    bars.sma(4)
    assert bars.sma(1) is first
    again = bars.sma(2)
    assert again is not second
    np.testing.assert_array_equal(again, second)


def test_an_indicator_larger_than_the_memo_is_computed_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicators, "MEMO_BYTES", 100)
    bars = random_bars(100)
    assert bars.sma(2) is not bars.sma(2)
    np.testing.assert_array_equal(bars.sma(2), bars.sma(2))


def test_threads_share_one_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        indicators, "MEMO_BYTES", 20 * (8 * 500 + indicators.ENTRY_BYTES)
    )  # evictions happen throughout
    bars, expected = random_bars(500), random_bars(500)
    values = {n: expected.sma(n).copy() for n in range(1, 41)}
    start = threading.Barrier(8)

    def work(thread: int) -> int:
        start.wait()
        order = np.random.default_rng(thread).integers(1, 41, 3000).tolist()
        return sum(not np.array_equal(bars.sma(n), values[n], equal_nan=True) for n in order)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(work, range(8))) == 0


def test_threads_that_ask_at_once_get_the_same_array() -> None:
    bars, meet = random_bars(100), threading.Barrier(4)

    def slow(bars: Bars) -> Floats:
        meet.wait()  # all four are computing before any is done
        return bars.close * 2

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: bars.indicator(slow), range(4)))
    assert all(result is results[0] for result in results)


def test_a_memo_torn_by_an_interruption_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(indicators, "MEMO_BYTES", 2 * (8 * 100 + indicators.ENTRY_BYTES))
    bars = random_bars(100)
    bars.sma(1)
    results: Any = bars._memo._results
    del results._Cache__data["sma", 1]  # what a time limit leaves behind that strikes inside the eviction
    bars.sma(2)
    np.testing.assert_array_equal(bars.sma(3), random_bars(100).sma(3))
    assert bars.sma(4) is bars.sma(4)
