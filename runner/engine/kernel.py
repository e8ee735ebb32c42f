"""One backtest in one pass: prices and target positions in, metrics out, and on request the equity and the trades.

The accounting, exactly (docs and the plain twin in the tests say the same):

* The state is ``cash`` and ``units`` (negative when short). At a quoted price p the equity is ``cash + units * p``.
* An order is sent when the target differs from the last decided one (0 before the first bar); nothing is rebalanced
  in between. It is filled at the next bar's open, or at the same bar's close. A change that has no next bar is not
  filled.
* It aims at ``target * equity / p`` units, none when equity is not positive. A buy pays ``p * (1 + slippage)``, a sale
  gets ``p * (1 - slippage)``; the fee, ``fees * |units| * that price``, comes out of cash. A buy is cut so that cash
  stays at or above ``min(0, (1 - target) * equity)``; covering a short in full is always allowed.
* An order through zero is two fills at one price: one closes the old trade, one opens the new.
* Stops are looked at inside each bar during which a position is held, after an order at the open and before one at
  the close. See `_reached`. A stopped account stays flat until the target changes again.
* Equity at or below zero at a close is ruin: the position is closed there, and no order can follow.

Every operation is a plain IEEE double operation in the order written: no fastmath, so that the numbers are the same
to the last bit in every worker. All helpers live in this file because numba's disk cache watches this file alone.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from numba import njit

Floats = npt.NDArray[np.float64]

# Columns of the trades table that `simulate` fills.
TRADE_COLUMNS: Final = (
    "entry_bar",
    "exit_bar",
    "side",
    "units",
    "entry_price",
    "exit_price",
    "pnl",
    "return",
    "fees",
    "exit_reason",
)
# Indexed by the code in the column exit_reason.
EXIT_REASONS: Final = ("signal", "stop_loss", "take_profit", "trailing_stop", "ruin", "open")
_SIGNAL, _STOP_LOSS, _TAKE_PROFIT, _TRAILING_STOP, _RUIN, _OPEN = range(6)

# Returns near 1 + r carry a rounding error of some 1e-16: a smaller range of returns (or of PnL, as a
# share of the initial cash) than this is no dispersion, and a ratio to it would be noise.
_NO_DISPERSION = 1e-14

# What changes only when something is traded, kept out of the per-bar loop's registers. By line: the constants of the
# run; the account; the open trade (extreme: best price of the earlier bars held); its levels, and the exit they led to;
# the closed trades (deviations are taken from the first PnL, which keeps the variance exact).
_BOOK_FIELDS = """
    initial fee_rate slippage stop_loss take_profit trailing_stop has_stops
    cash units fees turnover decided
    side entry_bar entry_units entry_value exit_units exit_value trade_fees extreme
    stop take stop_reason exit_price exit_reason
    trades wins gains losses first_pnl deviations squares low_pnl high_pnl returns best worst
"""
_BOOK = np.dtype([(name, np.float64) for name in _BOOK_FIELDS.split()])

_jit = njit(cache=True, nogil=True, error_model="numpy")


@_jit
def simulate(
    open_: Floats,
    high: Floats,
    low: Floats,
    close: Floats,
    cash: float,
    fees: float,
    slippage: float,
    stop_loss: float,
    take_profit: float,
    trailing_stop: float,
    risk_free: float,
    periods_per_year: float,
    at_open: bool,  # noqa: FBT001 - numba passes arguments by position
    target: Any,
    metrics: Floats,
    equity: Floats,
    trades: Floats,
) -> int:
    """Run one backtest, write its metrics and return the number of rows written to ``trades``.

    Args:
        open_: float64[n], prices; so are high, low and close.
        high: of each bar.
        low: of each bar.
        close: of each bar.
        cash: at the start.
        fees: fraction of the value traded.
        slippage: fraction of the quoted price.
        stop_loss: fraction; 0 where not set, as for the next two.
        take_profit: fraction.
        trailing_stop: fraction.
        risk_free: the rate per bar.
        periods_per_year: bars in a year.
        at_open: fill at the next open rather than at the same close.
        target: bool[n] or float64[n], finite; the position decided at each bar's close, as a fraction of equity.
        metrics: float64[len(METRICS)], written in that order.
        equity: float64[n], written at each close; or float64[0], not written.
        trades: float64[m, len(TRADE_COLUMNS)], m above the number of changes of the target; or float64[0, ...],
            not written.
    """
    n = len(close)
    ledger = np.zeros(1, _BOOK)
    book = ledger[0]
    _open_book(book, cash, fees, slippage, stop_loss, take_profit, trailing_stop)
    has_stops = stop_loss > 0.0 or take_profit > 0.0 or trailing_stop > 0.0
    lag = 1 if at_open else 0
    units = decided = 0.0

    value = previous = peak = cash
    depth = 1.0  # lowest equity as a share of its running peak
    below = longest = held = 0
    first = deviations = squares = shortfalls = 0.0
    lowest, highest = math.inf, -math.inf

    bar = 0
    while bar < n:
        # Out of the market nothing moves: each return is 0, and adding 0 changes no sum. Only the next order matters.
        if units == 0.0 and previous == cash and first == 0.0 and risk_free <= 0.0 and cash > 0.0:
            until = _next_order(target, decided, bar, lag)
            if until > bar:
                below += until - bar if value < peak else 0
                longest = max(longest, below)
                lowest, highest = min(lowest, 0.0), max(highest, 0.0)
                equity[bar:until] = cash  # of no bar when equity is not recorded
                bar = until
                continue

        changed = bar >= lag and target[bar - lag] != decided
        watched = has_stops and units != 0.0 and not changed
        stopped = watched and _reached(book, open_[bar], high[bar], low[bar])
        if changed or stopped or cash + units * close[bar] <= 0.0:
            wanted = 1.0 * target[bar - lag] if changed else decided
            _trade(book, open_[bar], high[bar], low[bar], close[bar], wanted, bar, at_open, trades)
            cash, units, decided = book.cash, book.units, book.decided

        value = cash + units * close[bar]
        if len(equity) > 0:
            equity[bar] = value

        change = value / previous - 1.0 if previous > 0.0 else 0.0
        previous = value
        first = change if bar == 0 else first
        deviation = change - first
        deviations += deviation
        squares += deviation * deviation
        shortfall = min(change - risk_free, 0.0)
        shortfalls += shortfall * shortfall
        lowest = min(lowest, change)
        highest = max(highest, change)

        held += units != 0.0
        peak = max(peak, value)
        below = below + 1 if value < peak else 0
        longest = max(longest, below)
        depth = min(depth, value / peak)
        bar += 1

    _measure_returns(metrics, first, deviations, squares, shortfalls, highest - lowest, risk_free, periods_per_year, n)
    _measure_growth(metrics, value / book.initial, depth, periods_per_year, n)
    metrics[7] = longest
    metrics[8] = held / n
    metrics[9] = book.turnover * periods_per_year / n
    _measure_trades(metrics, book)
    metrics[17] = book.fees
    metrics[18] = value
    if len(trades) > 0 and book.units != 0.0:
        _mark_open_trade(book, close[n - 1], n - 1, trades)
    return int(ledger[0].trades)


@_jit
def _measure_growth(metrics: Floats, growth: float, depth: float, periods_per_year: float, n: int) -> None:
    """Total return, CAGR, Calmar and maximum drawdown."""
    cagr = math.pow(growth, periods_per_year / n) - 1.0 if growth > 0.0 else -1.0
    metrics[0] = growth - 1.0
    metrics[1] = cagr
    metrics[5] = cagr / abs(depth - 1.0) if depth < 1.0 else math.nan
    metrics[6] = depth - 1.0


@_jit
def _next_order(target: Any, decided: float, bar: int, lag: int) -> int:
    """The first bar from ``bar`` on at which the target, ``lag`` bars ago, was another than the decided one."""
    n = len(target)
    bar = max(bar, lag)
    while bar < n and target[bar - lag] == decided:
        bar += 1
    return min(bar, n)


@_jit
def _measure_returns(
    metrics: Floats,
    first: float,
    deviations: float,
    squares: float,
    shortfalls: float,
    spread: float,
    risk_free: float,
    periods_per_year: float,
    n: int,
) -> None:
    """Volatility, Sharpe and Sortino from the sums of deviations from the first return."""
    metrics[2] = metrics[3] = metrics[4] = math.nan
    excess = first + deviations / n - risk_free
    if n > 1:
        deviation = math.sqrt(max(squares - deviations * deviations / n, 0.0) / (n - 1))
        if spread <= _NO_DISPERSION:
            deviation = 0.0
        metrics[2] = deviation * math.sqrt(periods_per_year)
        if deviation > 0.0:
            metrics[3] = excess / deviation * math.sqrt(periods_per_year)
        if shortfalls > 0.0:
            metrics[4] = excess / math.sqrt(shortfalls / n) * math.sqrt(periods_per_year)


@_jit
def _measure_trades(metrics: Floats, book: Any) -> None:
    """The metrics of the closed trades."""
    count = book.trades
    metrics[10] = count
    for k in range(11, 17):
        metrics[k] = math.nan
    if count == 0.0:
        return
    metrics[11] = book.wins / count
    if book.losses > 0.0:
        metrics[12] = book.gains / book.losses
    elif book.gains > 0.0:
        metrics[12] = math.inf
    metrics[13] = book.returns / count
    if book.high_pnl - book.low_pnl > _NO_DISPERSION * book.initial:
        mean = book.first_pnl + book.deviations / count
        variance = max(book.squares - book.deviations * book.deviations / count, 0.0) / (count - 1.0)
        metrics[14] = math.sqrt(count) * mean / math.sqrt(variance)
    metrics[15] = book.best
    metrics[16] = book.worst


@_jit
def _open_book(
    book: Any, cash: float, fees: float, slippage: float, stop_loss: float, take_profit: float, trailing_stop: float
) -> None:
    book.initial = book.cash = cash
    book.fee_rate = fees
    book.slippage = slippage
    book.stop_loss = stop_loss
    book.take_profit = take_profit
    book.trailing_stop = trailing_stop
    book.has_stops = stop_loss > 0.0 or take_profit > 0.0 or trailing_stop > 0.0
    book.low_pnl = book.worst = math.inf
    book.high_pnl = book.best = -math.inf


@_jit
def _trade(
    book: Any,
    open_: float,
    high: float,
    low: float,
    close: float,
    target: float,
    bar: int,
    at_open: bool,  # noqa: FBT001 - numba passes arguments by position
    trades: Floats,
) -> None:
    """All that trades at one bar, in the order of the day: the open, inside the bar, the close."""
    if at_open and target != book.decided:
        _order(book, target, open_, bar, trades)
    if book.has_stops != 0.0 and book.units != 0.0 and _reached(book, open_, high, low):
        price = book.exit_price
        _leave(book, -book.units, price, book.cash + book.units * price, bar, int(book.exit_reason), trades)
    if not at_open and target != book.decided:
        _order(book, target, close, bar, trades)
    equity = book.cash + book.units * close
    if equity <= 0.0 and book.units != 0.0:
        _leave(book, -book.units, close, equity, bar, _RUIN, trades)


@_jit
def _order(book: Any, target: float, price: float, bar: int, trades: Floats) -> None:
    """Trade towards a target position at a quoted price."""
    book.decided = target
    equity = book.cash + book.units * price
    wanted = target * equity / price if equity > 0.0 else 0.0
    delta = wanted - book.units
    if delta > 0.0:
        delta = min(delta, _affordable(book, target, price, equity))
    if delta == 0.0:
        return
    if book.units == 0.0 or (delta > 0.0) == (book.units > 0.0):
        _enter(book, delta, price, equity, bar)
    elif abs(delta) < abs(book.units):
        _leave(book, delta, price, equity, bar, _SIGNAL, trades)
    else:
        rest = delta + book.units
        _leave(book, -book.units, price, equity, bar, _SIGNAL, trades)
        if rest != 0.0:
            _enter(book, rest, price, equity, bar)


@_jit
def _affordable(book: Any, target: float, price: float, equity: float) -> float:
    """Most units that a buy may add."""
    least_cash = min(0.0, (1.0 - target) * equity)
    cost = price * (1.0 + book.slippage) * (1.0 + book.fee_rate)
    affordable: float = max((book.cash - least_cash) / cost, -book.units, 0.0)
    return affordable


@_jit
def _enter(book: Any, delta: float, price: float, equity: float, bar: int) -> None:
    """Open a trade or add to it."""
    if book.units == 0.0:
        book.side = 1.0 if delta > 0.0 else -1.0
        book.entry_bar = bar
        book.entry_units = book.entry_value = 0.0
        book.exit_units = book.exit_value = 0.0
        book.trade_fees = 0.0
        book.extreme = -math.inf * book.side
    book.entry_units += abs(delta)
    book.entry_value += _pay(book, delta, price, equity)
    if book.has_stops != 0.0:
        _set_levels(book)


@_jit
def _leave(book: Any, delta: float, price: float, equity: float, bar: int, reason: int, trades: Floats) -> None:
    """Reduce a trade or close it."""
    book.exit_units += abs(delta)
    book.exit_value += _pay(book, delta, price, equity)
    if book.units == 0.0:
        _count_trade(book)
        if len(trades) > 0:
            _record_trade(book, bar, reason, trades[int(book.trades) - 1])


@_jit
def _pay(book: Any, delta: float, price: float, equity: float) -> float:
    """Exchange cash for units at a quoted price; return the absolute value traded."""
    paid = price * (1.0 + book.slippage) if delta > 0.0 else price * (1.0 - book.slippage)
    value: float = delta * paid
    fee = book.fee_rate * abs(value)
    book.cash = book.cash - value - fee
    book.units += delta
    book.fees += fee
    book.trade_fees += fee
    if equity > 0.0:
        book.turnover += abs(value) / equity
    return abs(value)


@_jit
def _set_levels(book: Any) -> None:
    """Prices at which the open trade's stop and take-profit lie; out of reach where not set."""
    side = book.side
    entry = book.entry_value / book.entry_units
    book.take = entry * (1.0 + side * book.take_profit) if book.take_profit > 0.0 else side * math.inf
    book.stop = -side * math.inf
    if book.stop_loss > 0.0:
        book.stop = entry * (1.0 - side * book.stop_loss)
        book.stop_reason = _STOP_LOSS
    if book.trailing_stop > 0.0:
        best = side * max(side * entry, side * book.extreme)
        level = best * (1.0 - side * book.trailing_stop)
        if side * level > side * book.stop:
            book.stop = level
            book.stop_reason = _TRAILING_STOP


@_jit
def _reached(book: Any, open_: float, high: float, low: float) -> bool:
    """Whether this bar reached a level, and the price and reason of the exit; where it could be both, the worse one.

    A bar that opens beyond a level fills at its open. Multiplied by the side, a short's prices compare as a long's.
    """
    side = book.side
    worst, best = (low, high) if side > 0.0 else (high, low)
    book.exit_reason = book.stop_reason
    if side * open_ <= side * book.stop:
        book.exit_price = open_
    elif side * open_ >= side * book.take:
        book.exit_price = open_
        book.exit_reason = _TAKE_PROFIT
    elif side * worst <= side * book.stop:
        book.exit_price = book.stop
    elif side * best >= side * book.take:
        book.exit_price = book.take
        book.exit_reason = _TAKE_PROFIT
    else:
        if book.trailing_stop > 0.0 and side * best > side * book.extreme:
            book.extreme = best  # counts from the next bar on
            _set_levels(book)
        return False
    return True


@_jit
def _count_trade(book: Any) -> None:
    """Add the trade just closed to the tally."""
    pnl = book.side * (book.exit_value - book.entry_value) - book.trade_fees
    if book.trades == 0.0:
        book.first_pnl = pnl
    deviation = pnl - book.first_pnl
    book.trades += 1.0
    book.deviations += deviation
    book.squares += deviation * deviation
    book.low_pnl = min(book.low_pnl, pnl)
    book.high_pnl = max(book.high_pnl, pnl)
    if pnl > 0.0:
        book.wins += 1.0
        book.gains += pnl
    else:
        book.losses -= pnl
    gain = pnl / book.entry_value
    book.returns += gain
    book.best = max(book.best, gain)
    book.worst = min(book.worst, gain)


@_jit
def _record_trade(book: Any, bar: int, reason: int, row: Floats) -> None:
    """Write one row of the trades table."""
    pnl = book.side * (book.exit_value - book.entry_value) - book.trade_fees
    row[0] = book.entry_bar
    row[1] = bar
    row[2] = book.side
    row[3] = book.entry_units
    row[4] = book.entry_value / book.entry_units
    row[5] = book.exit_value / book.exit_units
    row[6] = pnl
    row[7] = pnl / book.entry_value
    row[8] = book.trade_fees
    row[9] = reason


@_jit
def _mark_open_trade(book: Any, price: float, bar: int, trades: Floats) -> None:
    """Record the position still open, its rest valued at the last close."""
    book.exit_units += abs(book.units)
    book.exit_value += abs(book.units) * price
    _record_trade(book, bar, _OPEN, trades[int(book.trades)])
    book.trades += 1.0
