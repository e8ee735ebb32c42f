"""Claim (b): per run and with full statistics, at least 100 times vectorbt and 1,000 times backtesting.py.

The same SMA crosses on the same prices with the same costs; ours on two cores, as it comes. vectorbt gets a whole grid
as one broadcast call, its fastest way, and each statistic as one vectorised call; backtesting.py gets `Backtest.run`
for each point. Both get smaller grids, and the times are divided by the runs.
"""

from __future__ import annotations

import importlib.metadata
import warnings
from typing import Any

import numpy as np
import pandas as pd

import runner
from benchmarks.measure import Row, median, spread, timed
from benchmarks.speedup import COSTS
from runner import strategies

VECTORBT_RUNS, BACKTESTING_RUNS, RUNS = 200, 8, 100_000
# The counterparts of our columns; vectorbt computes each for all runs of the grid at once.
VECTORBT_STATISTICS = (
    "total_return",
    "annualized_return",
    "annualized_volatility",
    "sharpe_ratio",
    "sortino_ratio",
    "calmar_ratio",
    "max_drawdown",
    "final_value",
)
VECTORBT_TRADES = ("count", "win_rate", "profit_factor", "expectancy", "sqn")


def ours(client: runner.Client, prices: runner.Bars) -> float:
    """Seconds a run, client call to frame."""
    space = runner.grid(fast=range(2, 252), slow=range(252, 252 + RUNS // 250))
    sweep = lambda: client.sweep(strategies.sma_cross, prices, space, execution=COSTS).result(progress=False).frame  # noqa: E731 - timed
    return timed(sweep) / len(space)


def vectorbt_runs(prices: runner.Bars) -> float:
    """Seconds a run."""
    import vectorbt as vbt

    frame = prices.to_frame()
    targets = np.column_stack(
        [strategies.sma_cross(prices, fast, 100 + fast).astype(float) for fast in range(2, 2 + VECTORBT_RUNS)]
    )
    changed = np.diff(targets, axis=0, prepend=0.0) != 0
    sizes = pd.DataFrame(np.where(changed, targets, np.nan), index=frame.index).shift(1)

    def run() -> None:
        portfolio: Any = vbt.Portfolio.from_orders(
            frame["close"], sizes, size_type="targetpercent", price=frame["open"].to_numpy()[:, None],
            fees=COSTS.fees, slippage=COSTS.slippage, init_cash=COSTS.cash, freq="1D",
        )  # fmt: skip
        for name in VECTORBT_STATISTICS:
            getattr(portfolio, name)()
        for name in VECTORBT_TRADES:
            getattr(portfolio.trades, name)()
        portfolio.drawdowns.max_duration()
        portfolio.position_coverage()
        portfolio.orders.fees.sum()
        portfolio.trades.returns.max()
        portfolio.trades.returns.min()
        (portfolio.orders.size * portfolio.orders.price).sum()  # turnover

    run()
    return timed(run) / VECTORBT_RUNS


def backtesting_runs(prices: runner.Bars) -> float:
    """Seconds a run."""
    from backtesting import Backtest, Strategy

    frame = prices.to_frame().rename(columns=str.title)[["Open", "High", "Low", "Close", "Volume"]].tz_localize(None)

    class Cross(Strategy):  # type: ignore[misc]  # backtesting has no types
        fast, slow = 10, 110

        def init(self) -> None:
            self.held = self.I(strategies.sma_cross, prices, self.fast, self.slow, plot=False)

        def next(self) -> None:
            if self.held[-1] and not self.position:
                self.buy()
            elif not self.held[-1] and self.position:
                self.position.close()

    def run() -> None:
        for fast in range(2, 2 + BACKTESTING_RUNS):
            Backtest(frame, Cross, cash=1e9, commission=COSTS.fees, spread=COSTS.slippage).run(
                fast=fast, slow=100 + fast
            )

    run()
    return timed(run) / BACKTESTING_RUNS


def measure(client: runner.Client, *, repeats: int = 3) -> list[Row]:
    """Each peer's seconds a run over ours, alternating."""
    prices = runner.sample_data("SP500")
    ours(client, prices)
    times: dict[str, list[float]] = {"backtest-runner": [], "vectorbt": [], "backtesting": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the peers' own, about pandas and about trades left open
        for _ in range(repeats):
            times["backtest-runner"].append(ours(client, prices))
            times["vectorbt"].append(vectorbt_runs(prices))
            times["backtesting"].append(backtesting_runs(prices))
    rows = []
    for peer, target in (("vectorbt", 100.0), ("backtesting", 1000.0)):
        ratios = [theirs / mine for theirs, mine in zip(times[peer], times["backtest-runner"], strict=True)]
        rows.append(
            Row(
                claim=f"a run of an SMA cross with full statistics, over {peer} {importlib.metadata.version(peer)}",
                figure=f"{spread(ratios)} x",
                target=f"{target:,.0f} x",
                reached=median(ratios) >= target,
                made_of=f"{spread([1e6 * t for t in times[peer]])} us a run, "
                f"ours {spread([1e6 * t for t in times['backtest-runner']])} us on two cores",
            )
        )
    return rows
