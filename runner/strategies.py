"""Strategies to start from. Each takes Bars and parameters and returns the target position decided at each bar's close.

A target is a fraction of equity: 0 or False is out, 1 or True is all in. They only ever hold long, and what they decide
at bar i rests on bars 0..i.
"""

from __future__ import annotations

import numpy as np

from runner.bars import Bars
from runner.columns import Flags, Floats
from runner.errors import InputError
from runner.indicators import check_window


def sma_cross(bars: Bars, fast: int = 10, slow: int = 30) -> Flags:
    """In while the average of the last `fast` closes is above that of the last `slow`."""
    return bars.sma(fast) > bars.sma(slow)


def rsi_reversion(bars: Bars, n: int = 14, low: float = 30.0, high: float = 70.0) -> Flags:
    """In from the close at which the n-bar RSI falls below `low` until the one at which it rises above `high`."""
    if not low < high:
        raise InputError(f"rsi_reversion(low={low}, high={high}): expected low below high.")
    rsi = bars.rsi(n)
    return _held(rsi < low, rsi > high)


def bollinger_reversion(bars: Bars, n: int = 20, k: float = 2.0) -> Flags:
    """In from a close below the lower Bollinger band until one above the middle band."""
    lower, middle, _ = bars.bollinger(n, k)
    return _held(bars.close < lower, bars.close > middle)


def donchian_breakout(bars: Bars, entry: int = 20, exit: int = 10) -> Flags:  # noqa: A002 - the field's name for it
    """In from a close above the high of the `entry` bars before it until one below the low of `exit` bars before."""
    return _held(bars.close > _previous(bars.highest(entry)), bars.close < _previous(bars.lowest(exit)))


def momentum(bars: Bars, n: int = 252) -> Flags:
    """In while the close is above that of n bars before."""
    return bars.roc(n) > 0


def alt_data_signal(
    bars: Bars,
    column: str = "alt",
    *,
    mode: str = "zscore",
    n: int = 60,
    enter: float = 1.0,
    leave: float = 0.0,
    direction: int = 1,
) -> Flags:
    """In while alternative data joined to the bars (`Bars.join`) is high, or with direction -1 while it is low.

    With x the column and, over the last n bars, m its mean and s its standard deviation (divisor n)::

        mode="zscore"       z = direction (x - m) / s       in from z > enter until z < leave <= enter
        mode="threshold"    direction 1                     in from x > enter until x < leave <= enter
                            direction -1                    in from x < enter until x > leave >= enter

    Out where there is no such number: x is NaN, there are no n bars of it yet, or it did not move (s = 0). For long and
    short, subtract the other direction's position, as floats.

    Args:
        bars: prices with the column.
        column: its name.
        mode: "zscore" or "threshold".
        n: bars in the window of a z-score, at least 2; a threshold has no use for it.
        enter: standard deviations, or a value of the column.
        leave: likewise.
        direction: 1 or -1.
    """
    if mode not in ("zscore", "threshold") or direction not in (1, -1):
        raise InputError(
            f"alt_data_signal(mode={mode!r}, direction={direction!r}): expected 'zscore' or 'threshold', 1 or -1."
        )
    sign = direction if mode == "threshold" else 1
    if not sign * leave <= sign * enter:
        beyond = "below" if sign > 0 else "above"
        raise InputError(f"alt_data_signal(enter={enter}, leave={leave}): expected leave at enter or {beyond} it.")
    values = bars[column] if mode == "threshold" else bars.indicator(_zscore, column, n)
    signal = direction * values
    return _held(signal > sign * enter, ~(signal >= sign * leave))


def buy_and_hold(bars: Bars) -> Flags:
    """In from the first bar on."""
    return np.ones(len(bars), dtype=np.bool_)


def _held(enter: Flags, leave: Flags) -> Flags:
    """True from a bar that enters until one that leaves; a bar that does both leaves."""
    bars = np.arange(len(enter))
    latest = np.maximum.accumulate(np.where(enter | leave, bars, 0))
    return (enter & ~leave)[latest]


def _zscore(bars: Bars, column: str, n: int) -> Floats:
    import pandas as pd

    if check_window("alt_data_signal", n) < 2:
        raise InputError(f"alt_data_signal(n={n}): a z-score needs at least 2 bars.")
    values = pd.Series(bars[column])
    window = values.rolling(n)
    spread = window.std(ddof=0)
    return ((values - window.mean()) / spread.where(spread > 0)).to_numpy()


def _previous(values: Floats) -> Floats:
    shifted = np.full(len(values), np.nan)
    shifted[1:] = values[:-1]
    return shifted
