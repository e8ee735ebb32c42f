"""The kernel equals its plain twin to the last bit."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.bars import Bars
from runner.engine.batch import TargetArray, simulator
from runner.engine.kernel import EXIT_REASONS, TRADE_COLUMNS
from runner.engine.metrics import METRICS
from runner.spec import Execution
from tests.numbers.twin import Trade, Twin


def random_bars(seed: int, n: int, volatility: float) -> Bars:
    rng = np.random.default_rng(seed)
    close = 100 * np.exp(np.cumsum(rng.normal(0, volatility, n)))
    open_ = close * np.exp(rng.normal(0, volatility * rng.choice([0, 0.5]), n))
    spread = np.exp(np.abs(rng.normal(0, volatility / 2, (2, n))))
    time = np.arange(n, dtype=np.int64) * 86_400_000_000_000
    high, low = np.maximum(open_, close) * spread[0], np.minimum(open_, close) / spread[1]
    return Bars(time=time, open=open_, high=high, low=low, close=close)


def assert_equal_to_the_last_bit(bars: Bars, target: TargetArray, execution: Execution) -> Twin:
    n = len(bars)
    metrics, unrecorded, equity = np.empty(len(METRICS)), np.empty(len(METRICS)), np.empty(n)
    rows = np.empty((n + 2, len(TRADE_COLUMNS)))
    run = simulator(bars, execution)
    count = run(target, metrics, equity, rows)
    run(target, unrecorded)
    assert metrics.tobytes() == unrecorded.tobytes()

    prices = {name: bars[name].tolist() for name in ("open", "high", "low", "close")}
    rules = execution.to_wire() | {"periods_per_year": execution.periods_per_year or bars.periods_per_year}
    twin = Twin(prices, [float(value) for value in target], rules)
    assert equity.tolist() == twin.equity
    assert [tuple(row) for row in rows[: len(twin.closed)]] == [as_row(trade) for trade in twin.closed]
    assert count == len(twin.closed) + (twin.trade is not None)
    theirs = twin.metrics()
    assert set(theirs) == set(METRICS)
    for name, ours in zip(METRICS, metrics.tolist(), strict=True):
        assert ours == theirs[name] or (math.isnan(ours) and math.isnan(theirs[name])), name
    return twin


def as_row(trade: Trade) -> tuple[float, ...]:
    side, code = 1.0 if trade.long else -1.0, EXIT_REASONS.index(trade.reason)
    left = trade.exit_value / trade.exit_units
    return (
        trade.entry_bar,
        trade.exit_bar,
        side,
        trade.entry_units,
        trade.entry,
        left,
        trade.pnl,
        trade.gain,
        trade.fees,
        code,
    )


POSITIONS = st.sampled_from([-3.0, -1.0, -0.5, 0.0, 0.3, 0.5, 1.0, 2.0, 5.0]) | st.floats(-3, 3)
EXECUTIONS = st.builds(
    Execution,
    cash=st.sampled_from([100.0, 12_345.678, 100_000.0]),
    fees=st.just(0.0) | st.floats(0, 0.05),
    slippage=st.just(0.0) | st.floats(0, 0.05),
    fill=st.sampled_from(["open", "close"]),
    stop_loss=st.none() | st.floats(0.001, 0.5),
    take_profit=st.none() | st.floats(0.001, 1.0),
    trailing_stop=st.none() | st.floats(0.001, 0.5),
    risk_free=st.just(0.0) | st.floats(-0.05, 0.2),
    periods_per_year=st.sampled_from([12.0, 252.0, 365.0]),
)


@settings(max_examples=600, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 40),
    volatility=st.sampled_from([0.0, 0.005, 0.03, 0.2, 0.6]),
    execution=EXECUTIONS,
)
def test_kernel_equals_its_twin(
    data: st.DataObject, seed: int, n: int, volatility: float, execution: Execution
) -> None:
    whole = st.lists(st.booleans(), min_size=n, max_size=n).map(lambda drawn: np.array(drawn, dtype=np.bool_))
    parts = st.lists(POSITIONS, min_size=n, max_size=n).map(lambda drawn: np.array(drawn, dtype=np.float64))
    assert_equal_to_the_last_bit(random_bars(seed, n, volatility), data.draw(whole | parts), execution)


def test_kernel_equals_its_twin_on_a_seeded_sweep_that_reaches_every_way_out() -> None:
    reasons = set()
    for seed in range(1_500):
        rng = np.random.default_rng(seed)
        n = int(rng.integers(1, 80))
        bars = random_bars(seed, n, rng.choice([0.005, 0.03, 0.2, 0.6]))
        target = np.repeat(rng.choice([-3.0, -1.0, 0.0, 0.5, 1.0, 5.0], n), rng.integers(1, 8))[:n].copy()
        execution = Execution(
            fees=rng.choice([0.0, 0.001, 0.02]).item(),
            slippage=rng.choice([0.0, 0.03]).item(),
            fill="open" if rng.random() < 0.5 else "close",
            stop_loss=(None, 0.02, 0.1)[rng.integers(3)],
            take_profit=(None, 0.02, 0.3)[rng.integers(3)],
            trailing_stop=(None, 0.01, 0.15)[rng.integers(3)],
        )
        reasons |= {trade.reason for trade in assert_equal_to_the_last_bit(bars, target, execution).closed}
    assert reasons == set(EXIT_REASONS) - {"open"}


@pytest.mark.parametrize("series", ["SP500", "AAPL"])
def test_kernel_equals_its_twin_on_real_prices(series: str) -> None:
    from runner.bars import sample_data

    bars = sample_data(series)[-1_000:]
    target = np.where(bars.sma(5) > bars.sma(20), 1.0, -0.5)
    execution = Execution(fees=0.001, slippage=0.0005, stop_loss=0.05, take_profit=0.1, trailing_stop=0.04)
    assert len(assert_equal_to_the_last_bit(bars, target, execution).closed) > 30
