"""Trades and equity equal vectorbt's on the same signals, prices and costs."""

import numpy as np
import pandas as pd
import pytest
import vectorbt as vbt

from runner.engine.batch import FloatArray
from runner.single import Backtest
from runner.spec import Execution, Fill
from tests.numbers import cases

SAME_COLUMNS = {
    "entry_idx": "entry_bar",
    "exit_idx": "exit_bar",
    "size": "units",
    "entry_price": "entry_price",
    "exit_price": "exit_price",
    "pnl": "pnl",
    "return": "return",
}


def vectorbt_portfolio(run: Backtest) -> vbt.Portfolio:
    bars, execution, target = run.bars, run.execution, run.target
    changed = np.diff(target, prepend=0.0) != 0
    size: FloatArray = np.where(changed, target, np.nan)
    price = bars.close
    if execution.fill == "open":
        size, price = np.append(np.nan, size[:-1]), bars.open
    quoted = pd.Series(price)
    return vbt.Portfolio.from_orders(
        pd.Series(bars.close),
        size=pd.Series(size),
        size_type="targetpercent",
        price=quoted,
        val_price=quoted,
        fees=execution.fees,
        slippage=execution.slippage,
        init_cash=execution.cash,
        direction="both",
        freq="1D",
    )


@pytest.mark.parametrize("fill", ["open", "close"])
@pytest.mark.parametrize("shape", cases.SHAPES)
@pytest.mark.parametrize("series", cases.SERIES)
def test_trades_and_equity_equal_vectorbt(series: str, shape: str, fill: Fill) -> None:
    run = cases.run(series, shape, Execution(fees=0.002, slippage=0.001, fill=fill))
    portfolio = vectorbt_portfolio(run)
    np.testing.assert_allclose(run.equity.to_numpy(), portfolio.value().to_numpy(), rtol=1e-12)
    theirs = portfolio.positions.records
    assert len(theirs) == len(run.trades) > 30
    for their, our in SAME_COLUMNS.items():
        np.testing.assert_allclose(
            run.trades[our].to_numpy(), theirs[their].to_numpy(), rtol=1e-9, atol=1e-9, err_msg=our
        )
    assert run.stats["fees"] == pytest.approx(portfolio.orders.records["fees"].sum(), rel=1e-12)
    closed = portfolio.positions.closed
    assert run.stats["trades"] == closed.count()
    assert run.stats["win_rate"] == pytest.approx(closed.win_rate(), rel=1e-12)
    assert run.stats["profit_factor"] == pytest.approx(closed.profit_factor(), rel=1e-9)
    assert run.stats["sqn"] == pytest.approx(closed.sqn(), rel=1e-9)
