from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runner
from runner import strategies
from runner.bars import Bars
from runner.errors import InputError
from tests.runner.prices import bars_of, random_bars, walks

Strategy = Callable[..., Any]
ALL: list[tuple[Strategy, dict[str, Any]]] = [
    (strategies.sma_cross, {"fast": 2, "slow": 5}),
    (strategies.rsi_reversion, {"n": 3}),
    (strategies.bollinger_reversion, {"n": 4, "k": 1.0}),
    (strategies.donchian_breakout, {"entry": 4, "exit": 2}),
    (strategies.momentum, {"n": 3}),
    (strategies.alt_data_signal, {"column": "close", "n": 4}),
    (strategies.alt_data_signal, {"column": "close", "mode": "threshold", "enter": 90.0, "leave": 50.0}),
    (strategies.buy_and_hold, {}),
]
IDS = [strategy.__name__ for strategy, _ in ALL]


@pytest.mark.parametrize(("strategy", "parameters"), ALL, ids=IDS)
@settings(deadline=None, max_examples=60)
@given(bars=walks(min_size=2), data=st.data())
def test_a_target_per_bar_that_no_later_bar_changes(
    strategy: Strategy, parameters: dict[str, Any], bars: Bars, data: st.DataObject
) -> None:
    whole = strategy(bars, **parameters)
    assert whole.shape == (len(bars),)
    assert whole.dtype == np.bool_
    cut = data.draw(st.integers(1, len(bars)))
    np.testing.assert_array_equal(whole[:cut], strategy(bars[:cut], **parameters))


@pytest.mark.parametrize(("strategy", "parameters"), ALL, ids=IDS)
def test_it_trades_real_prices_with_its_own_parameters(strategy: Strategy, parameters: dict[str, Any]) -> None:
    column = {name: value for name, value in parameters.items() if name == "column"}
    assert strategy(runner.sample_data("SP500"), **column).any()
    at_once = strategy is strategies.buy_and_hold or parameters.get("mode") == "threshold"
    assert strategy(random_bars(1), **parameters).tolist() == [at_once]


def held(enter: list[bool], leave: list[bool]) -> list[bool]:
    """The plain twin: one bar after the other."""
    position, positions = False, []
    for into, out in zip(enter, leave, strict=True):
        position = not out and (into or position)
        positions.append(position)
    return positions


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_a_position_is_held_from_entry_to_exit(events: list[tuple[bool, bool]]) -> None:
    enter, leave = map(list, zip(*events, strict=True))
    assert strategies._held(np.array(enter), np.array(leave)).tolist() == held(enter, leave)


def test_reversion_buys_the_fall_and_sells_the_rise() -> None:
    bars = bars_of([10, 10, 9, 8, 7, 8, 9, 10, 11, 12.0])
    rsi = bars.rsi(2)
    assert strategies.rsi_reversion(bars, n=2).tolist() == held((rsi < 30).tolist(), (rsi > 70).tolist())
    lower, middle, _ = bars.bollinger(3, 1.0)
    expected = held((bars.close < lower).tolist(), (bars.close > middle).tolist())
    assert strategies.bollinger_reversion(bars, n=3, k=1.0).tolist() == expected
    assert any(expected)


def test_a_breakout_is_measured_against_the_bars_before() -> None:
    bars = bars_of([10, 10, 10, 12, 12, 12, 12, 9, 9.0], spread=0)
    position = strategies.donchian_breakout(bars, entry=2, exit=2)
    assert position.tolist() == [False] * 3 + [True] * 4 + [False] * 2


def test_momentum_compares_two_closes() -> None:
    bars = bars_of([10, 11, 12, 11, 10, 13.0])
    assert strategies.momentum(bars, n=2).tolist() == [False, False, True, False, False, True]


def test_thresholds_the_wrong_way_round_are_refused() -> None:
    with pytest.raises(InputError, match="expected low below high"):
        strategies.rsi_reversion(random_bars(30), low=70, high=30)


def with_column(values: list[float]) -> Bars:
    bars = bars_of([10.0] * len(values))
    return Bars(time=bars.time, open=bars.open, high=bars.high, low=bars.low, close=bars.close, extra={"alt": values})


def plain_signal(values: list[float], *, mode: str, n: int, enter: float, leave: float, direction: int) -> list[bool]:
    """The plain twin: one bar after the other, one window after the other."""
    position, positions = False, []
    for i, value in enumerate(values):
        window = values[max(0, i + 1 - n) : i + 1]
        number = value
        if mode == "zscore":
            known = len(window) == n and not any(map(math.isnan, window))
            spread = statistics.pstdev(window) if known else 0.0
            number = direction * (value - statistics.fmean(window)) / spread if spread else math.nan
        above = mode == "zscore" or direction == 1
        goes_in, goes_out = (number > enter, number < leave) if above else (number < enter, number > leave)
        position = not math.isnan(number) and not goes_out and (goes_in or position)
        positions.append(position)
    return positions


quarters = st.integers(-40, 40).map(lambda quarter: quarter / 4)


@settings(deadline=None)
@given(
    st.lists(st.one_of(quarters, quarters, quarters, st.just(math.nan)), min_size=1, max_size=40),
    st.sampled_from(["zscore", "threshold"]),
    st.integers(2, 6),
    st.tuples(st.sampled_from([-1.1, 0.3, 0.9, 1.6]), st.sampled_from([-2.3, -1.1, 0.1, 0.9])),
    st.sampled_from([1, -1]),
)
def test_alternative_data_is_traded_as_the_plain_twin_does(
    values: list[float], mode: str, n: int, limits: tuple[float, float], direction: int
) -> None:
    enter, leave = max(limits), min(limits)
    if mode == "threshold" and direction == -1:
        enter, leave = leave, enter
    parameters: dict[str, Any] = {"mode": mode, "n": n, "enter": enter, "leave": leave, "direction": direction}
    signal = strategies.alt_data_signal(with_column(values), **parameters)
    assert signal.tolist() == plain_signal(values, **parameters)


def test_a_signal_is_held_between_its_two_limits_and_ends_where_the_data_does() -> None:
    bars = with_column([1, 3, 2, 1.5, 0.5, 2, 3, math.nan, 2, 4])
    high = strategies.alt_data_signal(bars, mode="threshold", enter=2.5, leave=1)
    assert high.tolist() == [False, True, True, True, False, False, True, False, False, True]
    low = strategies.alt_data_signal(bars, mode="threshold", enter=1, leave=2, direction=-1)
    assert low.tolist() == [False, False, False, False, True, True, False, False, False, False]


def test_data_that_does_not_move_gives_no_signal() -> None:
    bars = with_column([1e9 + 0.1, 3.7, *[0.1] * 8])
    signal = strategies.alt_data_signal(bars, n=3, enter=-5, leave=-6)
    assert signal.tolist() == [False, False, True, True, *[False] * 6]


def test_a_sweep_computes_each_window_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    zscore = strategies._zscore

    def counted(bars: Bars, column: str, n: int) -> Any:
        computed.append((column, n))
        return zscore(bars, column, n)

    monkeypatch.setattr(strategies, "_zscore", counted)
    space = runner.grid(column="close", mode="zscore", n=[5, 10], enter=[0.5, 1.0, 1.5], direction=[1, -1])
    result = runner.sweep(strategies.alt_data_signal, random_bars(100), space, progress=False)
    assert len(result.frame) == 12
    assert not len(result.errors)
    assert sorted(computed) == [("close", 5), ("close", 10)]


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "z"}, "mode='z'.*expected 'zscore' or 'threshold'"),
        ({"direction": 0}, "direction=0"),
        ({"leave": 1.5}, "leave=1.5.: expected leave at enter or below it"),
        ({"leave": math.nan}, "expected leave at enter or below it"),
        ({"mode": "threshold", "direction": -1}, "expected leave at enter or above it"),
        ({"n": 1}, "a z-score needs at least 2 bars"),
        ({"n": 2.0}, "expected a whole number of bars"),
        ({"column": "vix"}, "no column 'vix'"),
    ],
)
def test_a_signal_that_makes_no_sense_is_refused(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        strategies.alt_data_signal(with_column([1.0, 2.0, 3.0]), **parameters)
