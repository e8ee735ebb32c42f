"""Trades and equity equal backtesting.py's when whole positions are bought and sold."""

import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest

from runner.single import Backtest
from runner.spec import Execution, Fill
from tests.numbers import cases

with warnings.catch_warnings():
    # Without a notebook it announces at import that its progress bar falls back to text.
    warnings.simplefilter("ignore")
    import backtesting

# It trades whole units: with this much cash, rounding a position to them moves it by less than 1e-9 of itself.
CASH = 1e13


def backtesting_stats(run: Backtest, units: pd.Series) -> Any:
    """Their result when an order for ``units[i]`` replaces the position at bar i, where it is not NaN."""
    wanted = units.to_numpy()

    class Follow(backtesting.Strategy):  # type: ignore[misc]  # it publishes no types
        def init(self) -> None:
            return

        def next(self) -> None:
            order = wanted[len(self.data) - 1]
            if np.isnan(order):
                return
            self.position.close()
            if order:
                (self.buy if order > 0 else self.sell)(size=abs(order))

    frame = run.bars.to_frame().rename(columns=str.capitalize)[["Open", "High", "Low", "Close"]]
    engine = backtesting.Backtest(
        frame.tz_localize(None),
        Follow,
        cash=CASH,
        commission=run.execution.fees,
        margin=0.5,  # a short of the whole equity must not fail for want of its fee
        trade_on_close=run.execution.fill == "close",
    )
    return engine.run()


def whole_units(run: Backtest) -> pd.Series:
    """At each deciding bar the whole units of the trade that our engine then entered."""
    lag = 1 if run.execution.fill == "open" else 0
    units = pd.Series(np.nan, index=range(len(run.bars)))
    units.loc[run.trades["exit_bar"].to_numpy()[~run.trades["open"].to_numpy()] - lag] = 0.0
    side = run.trades["side"].map({"long": 1.0, "short": -1.0})
    units.loc[run.trades["entry_bar"].to_numpy() - lag] = (side * np.floor(run.trades["units"])).to_numpy()
    return units


# A position still open at the end stays open on purpose: it does here too.
@pytest.mark.filterwarnings("ignore:Some trades remain open:UserWarning")
# Its own use of pandas.
@pytest.mark.filterwarnings("ignore:DatetimeIndex.dayofweek is deprecated")
@pytest.mark.parametrize("fill", ["open", "close"])
@pytest.mark.parametrize("shape", ["long", "long and short"])
@pytest.mark.parametrize("series", cases.SERIES)
def test_trades_and_equity_equal_backtesting(series: str, shape: str, fill: Fill) -> None:
    run = cases.run(series, shape, Execution(cash=CASH, fees=0.002, fill=fill))
    stats = backtesting_stats(run, whole_units(run))
    theirs = stats["_trades"].sort_values("EntryBar")
    ours = run.trades[~run.trades["open"]]
    assert len(theirs) == len(ours) > 30
    assert theirs["EntryBar"].tolist() == ours["entry_bar"].tolist()
    assert theirs["ExitBar"].tolist() == ours["exit_bar"].tolist()
    for their, our in {
        "EntryPrice": "entry_price",
        "ExitPrice": "exit_price",
        "PnL": "pnl",
        "Commission": "fees",
    }.items():
        np.testing.assert_allclose(theirs[their], ours[our], rtol=1e-6, atol=1e-9 * CASH, err_msg=our)
    # It books a fill at the close, and so its fee, with the next bar: compare where nothing is filled at the close.
    quiet = np.ones(len(run.bars), dtype=np.bool_)
    if fill == "close":
        quiet[run.trades[["entry_bar", "exit_bar"]].to_numpy().ravel()] = False
    their_equity = stats["_equity_curve"]["Equity"].to_numpy()
    np.testing.assert_allclose(their_equity[quiet], run.equity.to_numpy()[quiet], rtol=1e-7)
    assert stats["Return [%]"] / 100 == pytest.approx(run.stats["total_return"], rel=1e-6)
