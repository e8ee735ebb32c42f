"""Strategies to start from. Each takes Bars and parameters and returns the target position decided at each bar's close.

A target is a fraction of equity: 0 or False is out, 1 or True is all in. They only ever hold long, and what they decide
at bar i rests on bars 0..i.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runner.bars import Bars
from runner.errors import InputError

Flags = npt.NDArray[np.bool_]


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


def buy_and_hold(bars: Bars) -> Flags:
    """In from the first bar on."""
    return np.ones(len(bars), dtype=np.bool_)


def _held(enter: Flags, leave: Flags) -> Flags:
    """True from a bar that enters until one that leaves; a bar that does both leaves."""
    bars = np.arange(len(enter))
    latest = np.maximum.accumulate(np.where(enter | leave, bars, 0))
    return (enter & ~leave)[latest]


def _previous(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = np.full(len(values), np.nan)
    shifted[1:] = values[:-1]
    return shifted
