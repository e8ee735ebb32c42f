"""What the accounting means, on prices small enough to check by head; the last bit is tests/numbers' matter."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.bars import Bars, sample_data
from runner.single import Backtest
from runner.spec import Execution


def bars_of(close: list[float], **columns: list[float]) -> Bars:
    time = np.arange(len(close), dtype=np.int64) * 86_400_000_000_000
    open_ = columns.get("open", close)
    high = columns.get("high", np.maximum(open_, close))
    low = columns.get("low", np.minimum(open_, close))
    return Bars(time=time, open=open_, high=high, low=low, close=close)


def run(bars: Bars, target: list[float], **options: Any) -> Backtest:
    return Backtest(bars, {}, Execution(**{"cash": 1_000.0, **options}), np.array(target, dtype=float))


def test_a_change_is_filled_at_the_next_open() -> None:
    result = run(bars_of([10, 20, 30], open=[10, 10, 20]), [1, 1, 1])
    assert result.equity.tolist() == [1_000, 2_000, 3_000]


def test_a_change_is_filled_at_the_same_close() -> None:
    result = run(bars_of([10, 20, 30]), [1, 0, 0], fill="close")
    assert result.equity.tolist() == [1_000, 2_000, 2_000]


def test_a_change_at_the_last_bar_is_never_filled_at_an_open() -> None:
    assert run(bars_of([10, 20]), [0, 1]).trades.empty


def test_a_held_target_is_not_rebalanced() -> None:
    result = run(bars_of([10, 20, 10]), [0.5, 0.5, 0.5], fill="close")
    assert result.equity.tolist() == [1_000, 1_500, 1_000]
    assert len(result.trades) == 1


def test_full_investment_spends_all_the_cash_on_units_and_fee() -> None:
    result = run(bars_of([10, 10]), [1, 1], fees=0.25, fill="close")
    assert result.trades["units"].tolist() == [80.0]
    assert result.equity.tolist() == [800.0, 800.0]


def test_leverage_borrows_and_a_short_earns_when_prices_fall() -> None:
    assert run(bars_of([10, 11]), [2, 2], fill="close").equity.iloc[-1] == pytest.approx(1_200)
    assert run(bars_of([10, 9]), [-1, -1], fill="close").equity.iloc[-1] == pytest.approx(1_100)


def test_ruin_closes_the_position_and_ends_trading() -> None:
    result = run(bars_of([10, 4, 40, 40]), [2, 2, 1, 1], fill="close")
    assert result.equity.tolist() == [1_000, -200, -200, -200]
    assert result.trades["exit_reason"].tolist() == ["ruin"]
    assert result.stats["cagr"] == -1
    assert result.stats["max_drawdown"] == pytest.approx(-1.2)


@pytest.mark.parametrize(
    ("options", "bar", "price", "reason"),
    [
        ({"stop_loss": 0.1}, (10, 8, 10), 9, "stop_loss"),
        ({"stop_loss": 0.1}, (7, 6, 10), 7, "stop_loss"),
        ({"take_profit": 0.1}, (10, 10, 12), 11, "take_profit"),
        ({"take_profit": 0.1}, (12, 10, 13), 12, "take_profit"),
        ({"trailing_stop": 0.2}, (10, 7, 10), 8, "trailing_stop"),
        ({"stop_loss": 0.1, "take_profit": 0.1}, (10, 8, 12), 9, "stop_loss"),
        ({"stop_loss": 0.1, "take_profit": 0.1}, (12, 8, 12), 12, "take_profit"),
    ],
)
def test_stops_fill_at_their_level_or_at_an_open_beyond_it(
    options: dict[str, float], bar: tuple[float, float, float], price: float, reason: str
) -> None:
    open_, low, high = bar
    bars = bars_of([10, 10, 10], open=[10, open_, 10], low=[10, low, 10], high=[10, high, 10])
    trades = run(bars, [1, 1, 1], fill="close", **options).trades
    assert trades["exit_price"].tolist() == pytest.approx([price])
    assert trades["exit_reason"].tolist() == [reason]
    assert trades["exit_bar"].tolist() == [1]


def test_the_trailing_stop_follows_highs_of_earlier_bars_only() -> None:
    bars = bars_of([10, 10, 19, 19], low=[10, 10, 10, 15], high=[10, 20, 20, 19])
    trades = run(bars, [1, 1, 1, 1], fill="close", trailing_stop=0.25).trades
    assert trades["exit_bar"].tolist() == [2]
    assert trades["exit_price"].tolist() == [15.0]  # the high of bar 1, 20, less a quarter


def test_a_stopped_account_waits_for_the_target_to_change() -> None:
    bars = bars_of([10, 8, 8, 8, 8])
    trades = run(bars, [1, 1, 1, 0.5, 0.5], fill="close", stop_loss=0.1).trades
    assert trades["entry_bar"].tolist() == [0, 3]


def test_a_stop_guards_the_entry_bar_of_an_open_fill() -> None:
    bars = bars_of([10, 8, 8], open=[10, 10, 8])
    assert run(bars, [1, 1, 1], stop_loss=0.1).trades["exit_bar"].tolist() == [1]


def test_a_reversal_is_two_trades_and_a_reduction_is_one() -> None:
    assert run(bars_of([10, 10, 10]), [1, -1, 0], fill="close").trades["side"].tolist() == ["long", "short"]
    part = run(bars_of([10, 20, 40]), [1, 0.5, 0], fill="close").trades
    assert part["exit_price"].tolist() == [30.0]


@settings(max_examples=100, deadline=None)
@given(
    cut=st.integers(50, 950),
    seed=st.integers(0, 1_000),
    fill=st.sampled_from(["open", "close"]),
    stops=st.booleans(),
)
def test_future_bars_never_change_past_equity(cut: int, seed: int, fill: str, *, stops: bool) -> None:
    rng = np.random.default_rng(seed)
    bars = sample_data("IBM")[:1_000]
    factor = np.where(np.arange(1_000) < cut, 1.0, rng.uniform(0.5, 2.0))
    names = ("open", "high", "low", "close")
    columns: dict[str, Any] = {name: bars[name] * factor for name in names}
    other = Bars(time=bars.time, **columns)
    options: dict[str, Any] = {"stop_loss": 0.03, "take_profit": 0.05, "trailing_stop": 0.04} if stops else {}
    execution = Execution(fees=0.001, fill=fill, **options)  # type: ignore[arg-type]  # drawn from both fills

    def equity(given: Bars) -> list[float]:
        target = np.where(given.sma(5) > given.sma(20), 1.0, -1.0)
        return Backtest(given, {}, execution, target).equity.tolist()

    assert equity(bars)[:cut] == equity(other)[:cut]
