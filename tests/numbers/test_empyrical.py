"""Metrics of the equity curve equal empyrical's, edge cases included."""

import empyrical
import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runner.bars import Bars
from runner.engine.batch import FloatArray
from runner.single import Backtest
from runner.spec import Execution
from tests.numbers import cases


def bars_of(close: FloatArray) -> Bars:
    time = np.arange(len(close), dtype=np.int64) * 86_400_000_000_000
    return Bars(time=time, open=close, high=close, low=close, close=close)


def holding(close: FloatArray, **options: float) -> Backtest:
    """Everything invested from the first close on, so that the returns are those of the prices."""
    execution = Execution(fill="close", periods_per_year=252.0, **options)
    return Backtest(bars_of(close), {}, execution, np.ones(len(close)))


def assert_equals_empyrical(run: Backtest) -> None:
    cash, year = run.execution.cash, run.execution.periods_per_year or run.bars.periods_per_year
    risk_free = (1 + run.execution.risk_free) ** (1 / year) - 1
    values = np.append(cash, run.equity.to_numpy())
    returns = pd.Series(values[1:] / values[:-1] - 1)
    theirs = {
        "total_return": empyrical.cum_returns_final(returns),
        "cagr": empyrical.annual_return(returns, annualization=year),
        "volatility": empyrical.annual_volatility(returns, annualization=year),
        "sharpe": empyrical.sharpe_ratio(returns, risk_free=risk_free, annualization=year),
        "sortino": empyrical.sortino_ratio(returns, required_return=risk_free, annualization=year),
        "calmar": empyrical.calmar_ratio(returns, annualization=year),
        "max_drawdown": empyrical.max_drawdown(returns),
    }
    # The drawdown is 1 less a share near 1: what rounding leaves of a tiny one (1e-15 of 1) is what Calmar divides by.
    depth = abs(theirs["max_drawdown"])
    tolerances = {"calmar": 1e-10 + 1e-15 / depth if depth > 0 else 1e-10}
    for name, their in theirs.items():
        expected = their if np.isfinite(their) else np.nan  # a ratio to nothing: infinite there, NaN here
        rtol = tolerances.get(name, 1e-10)
        np.testing.assert_allclose(run.stats[name], expected, rtol=rtol, atol=1e-10, err_msg=name)


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.floats(-0.3, 0.4), min_size=2, max_size=200),
    risk_free=st.sampled_from([0.0, 0.03]),
)
def test_random_returns_equal_empyrical(changes: list[float], risk_free: float) -> None:
    returns = np.array([0.0, *changes])
    assume(np.ptp(returns) > 1e-6)  # below, the two differ in what they take for rounding
    assert_equals_empyrical(holding(100 * np.cumprod(1 + returns), risk_free=risk_free))


@pytest.mark.parametrize("fees", [0.0, 0.002])
@pytest.mark.parametrize("shape", cases.SHAPES)
@pytest.mark.parametrize("series", cases.SERIES)
def test_real_series_equal_empyrical(series: str, shape: str, fees: float) -> None:
    assert_equals_empyrical(cases.run(series, shape, Execution(fees=fees, risk_free=0.02)))


def test_constant_prices_have_no_ratios() -> None:
    run = holding(np.full(50, 100.0))
    assert run.stats[["total_return", "cagr", "volatility", "max_drawdown"]].tolist() == [0.0] * 4
    assert run.stats[["sharpe", "sortino", "calmar"]].isna().all()
    assert_equals_empyrical(run)


def test_a_single_bar_has_no_dispersion() -> None:
    run = holding(np.array([100.0]), fees=0.01)
    assert run.stats["total_return"] == pytest.approx(1 / 1.01 - 1)
    assert run.stats[["volatility", "sharpe", "sortino"]].isna().all()


def test_all_losses_equal_empyrical() -> None:
    assert_equals_empyrical(holding(100 * 0.97 ** np.arange(30) * (1 + 0.001 * (np.arange(30) % 3))))


def test_a_curve_that_starts_under_water_counts_the_first_loss() -> None:
    run = holding(np.array([100.0, 101.0, 102.0, 103.0]), fees=0.1)
    assert run.stats["max_drawdown"] == pytest.approx(1 / 1.1 - 1)
    assert run.stats["max_drawdown_bars"] == 4
    assert_equals_empyrical(run)
