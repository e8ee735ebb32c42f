from __future__ import annotations

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
    assert strategy(runner.sample_data("SP500")).any()
    assert strategy(random_bars(1), **parameters).tolist() == [strategy is strategies.buy_and_hold]


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
