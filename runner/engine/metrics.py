"""The metrics of a backtest: names, formulas, units and edge cases. The kernel computes them; this module is light.

In the formulas n is the number of bars, A the bars in a year, r_i the return of bar i (equity at its close over equity
at the previous close, minus one; the first bar is measured against the initial cash, so there are n returns), m the
mean of r, and rf the risk-free rate per bar, ``(1 + risk_free)^(1/A) - 1``. Fractions are fractions: 0.1 is 10 %.
Trades are closed trades, from flat to flat or to a reversal; a position still open at the end counts in equity, fees,
turnover and exposure, not among the trades. PnL is in account currency, net of all fees; a trade's return is its PnL
over the value of its entries.

================== ==========================================================================================
total_return       ``final_equity / cash - 1``.
cagr               ``(final_equity / cash)^(A/n) - 1``, a year; -1 when nothing is left.
volatility         ``std(r, ddof=1) * sqrt(A)``, a year; NaN for a single bar.
sharpe             ``(m - rf) / std(r, ddof=1) * sqrt(A)``, as empyrical; NaN for a single bar and without dispersion.
sortino            ``(m - rf) / sqrt(mean(min(r - rf, 0)^2)) * sqrt(A)``, as empyrical; NaN for a single bar and
                   where no return lies below rf.
calmar             ``cagr / |max_drawdown|``; NaN without a drawdown.
max_drawdown       Lowest ``equity / running peak - 1``, at closes, the initial cash being the first peak; 0 or
                   negative.
max_drawdown_bars  Longest run of closes below the running peak, in bars, an unfinished one included.
exposure           Share of bars at whose close a position is held.
turnover           Sum over fills of ``value traded / equity before``, times ``A/n``: a year, both sides.
trades             Number of closed trades.
win_rate           Share of trades with PnL above 0; NaN without trades.
profit_factor      Sum of gains over sum of losses of PnL; infinite with gains and no losses, NaN with neither.
expectancy         Mean return of trades; NaN without trades.
sqn                ``sqrt(trades) * mean(PnL) / std(PnL, ddof=1)``; NaN below two trades and without dispersion.
best_trade         Highest return of a trade; NaN without trades.
worst_trade        Lowest return of a trade; NaN without trades.
fees               Fees paid, in account currency.
final_equity       Equity at the last close, in account currency.
================== ==========================================================================================

No dispersion means that all values lie within the rounding error of one (1e-14), the range being tested rather than the
deviation: the latter leaves a residue that would turn a ratio into noise.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from runner.errors import InputError

METRICS: Final[tuple[str, ...]] = (
    "total_return",
    "cagr",
    "volatility",
    "sharpe",
    "sortino",
    "calmar",
    "max_drawdown",
    "max_drawdown_bars",
    "exposure",
    "turnover",
    "trades",
    "win_rate",
    "profit_factor",
    "expectancy",
    "sqn",
    "best_trade",
    "worst_trade",
    "fees",
    "final_equity",
)

# A ranking by these puts the smallest first. A drawdown is negative, so its best is its largest.
LOWER_IS_BETTER: Final = frozenset({"volatility", "max_drawdown_bars", "turnover", "fees"})

# What backtesting.py and vectorbt call the same quantity (in percent there where the name says so).
ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "Return [%]": "total_return",
        "Return (Ann.) [%]": "cagr",
        "CAGR [%]": "cagr",
        "Volatility (Ann.) [%]": "volatility",
        "Sharpe Ratio": "sharpe",
        "Sortino Ratio": "sortino",
        "Calmar Ratio": "calmar",
        "Max. Drawdown [%]": "max_drawdown",
        "Max. Drawdown Duration": "max_drawdown_bars",
        "Exposure Time [%]": "exposure",
        "# Trades": "trades",
        "Win Rate [%]": "win_rate",
        "Profit Factor": "profit_factor",
        "Expectancy [%]": "expectancy",
        "SQN": "sqn",
        "Best Trade [%]": "best_trade",
        "Worst Trade [%]": "worst_trade",
        "Commissions [$]": "fees",
        "Equity Final [$]": "final_equity",
        "Total Return [%]": "total_return",
        "Annualized Return [%]": "cagr",
        "Annualized Volatility [%]": "volatility",
        "Max Drawdown [%]": "max_drawdown",
        "Max Drawdown Duration": "max_drawdown_bars",
        "Total Closed Trades": "trades",
        "Total Fees Paid": "fees",
        "End Value": "final_equity",
    }
)

_NAMES: Final = {**{alias.casefold(): name for alias, name in ALIASES.items()}, **{name: name for name in METRICS}}


def metric_name(name: str) -> str:
    """The column that a metric's name or alias means, whatever its case.

    Raises:
        InputError: no metric is called that; the message offers the nearest.
    """
    key = name.casefold() if isinstance(name, str) else ""
    if key in _NAMES:
        return _NAMES[key]
    near = difflib.get_close_matches(key, _NAMES, n=1)
    hint = f"did you mean {_NAMES[near[0]]!r}?" if near else f"the metrics are {', '.join(METRICS)}."
    raise InputError(f"no metric is called {name!r}: {hint}")
