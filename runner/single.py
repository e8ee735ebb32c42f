"""One backtest with everything it can show: metrics, equity curve, drawdown, trades."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.bars import Bars
from runner.engine.batch import FloatArray, TargetArray, simulator, target_of
from runner.engine.metrics import METRICS
from runner.spec import Execution

if TYPE_CHECKING:
    import pandas as pd

# Wide enough to see a curve, small enough that a notebook keeps a page of them.
SPARKLINE_POINTS = 240
SPARKLINE_WIDTH, SPARKLINE_HEIGHT = 480, 80


def backtest(
    strategy: Callable[..., Any] | str,
    bars: Bars | pd.DataFrame,
    params: Mapping[str, Any] | None = None,
    *,
    execution: Execution | None = None,
) -> Backtest:
    """Run a strategy once, here and now, with the very numbers that a sweep gives.

    Args:
        strategy: ``function(bars, **params)`` returning the target position at each bar's close (bool, or fraction of
            equity, negative when short), or ``"module:function"``.
        bars: the prices.
        params: the strategy's parameters.
        execution: costs, fills, stops; the default has none.

    Raises:
        StrategyError: unknown parameter names, or a return value that is no position.
        BarsError: prices that cannot be backtested.
    """
    from runner.strategy import check_parameters, load

    function = load(strategy) if isinstance(strategy, str) else strategy
    params = dict(params or {})
    check_parameters(function, params)
    bars = bars if isinstance(bars, Bars) else Bars.from_frame(bars)
    return Backtest(bars, params, execution or Execution(), target_of(function, bars, params))


class Backtest:
    """One finished run.

    Attributes:
        bars: the prices.
        params: the strategy's parameters.
        execution: costs, fills, stops.
        target: bool[n] or float64[n], the position decided at each bar's close.
        stats: the metrics, a Series named as in `runner.engine.metrics`.
    """

    stats: pd.Series[float]

    def __init__(self, bars: Bars, params: Mapping[str, Any], execution: Execution, target: TargetArray) -> None:
        import pandas as pd

        from runner.engine.kernel import TRADE_COLUMNS

        self.bars = bars
        self.params = dict(params)
        self.execution = execution
        self.target = target
        metrics = np.empty(len(METRICS))
        self._equity = np.empty(len(bars))
        orders = 1 + np.count_nonzero(np.diff(target))  # an order opens one trade at most
        rows = np.empty((orders + 1, len(TRADE_COLUMNS)))
        count = simulator(bars, execution)(target, metrics, self._equity, rows)
        self._trades: FloatArray = rows[:count]
        self.stats = pd.Series(metrics, index=list(METRICS), name=bars.symbol or None)

    @property
    def equity(self) -> pd.Series[float]:
        """Equity at each bar's close, in account currency, by time."""
        return self._by_time(self._equity, "equity")

    @property
    def drawdown(self) -> pd.Series[float]:
        """Equity over its running peak, minus one, by time; the initial cash is the first peak."""
        peak = np.maximum(np.maximum.accumulate(self._equity), self.execution.cash)
        return self._by_time(self._equity / peak - 1.0, "drawdown")

    def _by_time(self, values: FloatArray, name: str) -> pd.Series[float]:
        import pandas as pd

        index = pd.DatetimeIndex(self.bars.time.view("datetime64[ns]"), tz="UTC", name="time")
        return pd.Series(values, index=index, name=name)

    @cached_property
    def trades(self) -> pd.DataFrame:
        """One row a trade, from flat to flat or to a reversal, in order of exit.

        Columns: entry_time, exit_time, entry_bar, exit_bar, side (``"long"``, ``"short"``), units (all entered),
        entry_price and exit_price (averages weighted by size), pnl (net of fees, account currency), return
        (pnl over the value entered), fees, bars (from entry to exit), open (still held at the end: valued at the last
        close), exit_reason (signal, stop_loss, take_profit, trailing_stop, ruin, open).
        """
        import pandas as pd

        from runner.engine.kernel import EXIT_REASONS, TRADE_COLUMNS

        raw = dict(zip(TRADE_COLUMNS, self._trades.T, strict=True))
        entry_bar, exit_bar = raw["entry_bar"].astype(np.int64), raw["exit_bar"].astype(np.int64)
        time = pd.DatetimeIndex(self.bars.time.view("datetime64[ns]"), tz="UTC")
        reason = np.array(EXIT_REASONS, dtype=object)[raw["exit_reason"].astype(np.int64)]
        return pd.DataFrame(
            {
                "entry_time": time[entry_bar],
                "exit_time": time[exit_bar],
                "entry_bar": entry_bar,
                "exit_bar": exit_bar,
                "side": np.where(raw["side"] > 0, "long", "short"),
                **{name: raw[name] for name in ("units", "entry_price", "exit_price", "pnl", "return", "fees")},
                "bars": exit_bar - entry_bar,
                "open": reason == "open",
                "exit_reason": reason,
            }
        )

    def plot(self) -> Any:
        """Price with trades, equity and drawdown, as a plotly figure."""
        from runner.plots import plot_backtest

        return plot_backtest(self)

    def _title(self) -> str:
        params = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"Backtest of {self.bars.symbol or 'bars'} ({params or 'no parameters'}), {len(self.bars)} bars"

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.stats.to_string()}"

    def _repr_html_(self) -> str:
        table = self.stats.to_frame("value").to_html(float_format=lambda value: f"{value:,.4f}")
        return f"<div><b>{html.escape(self._title())}</b><br>{sparkline(self._equity)}{table}</div>"


def sparkline(values: FloatArray) -> str:
    """A curve as an inline SVG."""
    picked = values[np.linspace(0, len(values) - 1, min(SPARKLINE_POINTS, len(values))).astype(int)]
    low, spread = float(picked.min()), float(picked.max() - picked.min()) or 1.0
    x = np.linspace(0, SPARKLINE_WIDTH, len(picked))
    y = SPARKLINE_HEIGHT * (1 - (picked - low) / spread)
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in zip(x, y, strict=True))
    return (
        f'<svg width="{SPARKLINE_WIDTH}" height="{SPARKLINE_HEIGHT}" role="img" aria-label="equity curve">'
        f'<polyline fill="none" stroke="currentColor" points="{points}"/></svg>'
    )
