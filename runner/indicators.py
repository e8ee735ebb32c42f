"""Indicators: TA-Lib's arithmetic, and the memo that computes each of them once."""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from cachetools import LRUCache

from runner.columns import Floats
from runner.errors import InputError

if TYPE_CHECKING:
    from runner.bars import Bars

MEMO_BYTES = 128 * 2**20  # 3,000 indicators of 5,000 bars, or 30 of half a million
ENTRY_BYTES = 600  # what Python needs beside the numbers: key, array header, two dictionary entries
MAX_WINDOW = 100_000  # TA-Lib's own limit
# Wilder's index has no meaning for one bar, and TA-Lib refuses it.
LEAST_WINDOW = {"rsi": 2}


class Memo:
    """Results by function and arguments: the least recently used go first, any number of threads may ask."""

    __slots__ = ("_lock", "_results")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._results: LRUCache[Any, Any] = LRUCache(MEMO_BYTES, getsizeof=_size)

    def windowed(self, bars: Bars, name: str, n: int) -> Floats:
        """The indicator of that name in this file over a window of n bars."""
        if n.__class__ is not int:  # 10 and 10.0 are one key: refuse the float before it is looked up
            n = check_window(name, n)
        key = (name, n)
        try:
            with self._lock:
                known: Floats = self._results[key]
        except KeyError:
            computed: Floats = self._keep(key, _windowed(bars, name, n))
            return computed
        return known

    def get(self, bars: Bars, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """What ``function(bars, *args)`` returns, arrays made read-only."""
        key = (function, args, *map(type, args))  # 10 and 10.0 are equal, and may not be the same to it
        try:
            with self._lock:
                return self._results[key]
        except KeyError:
            pass
        except TypeError as error:
            raise InputError(
                f"indicator {_name(function)}{args}: arguments have to be hashable; pass a tuple, not a list."
            ) from error
        return self._keep(key, _arrays(function(bars, *args), function, len(bars)))

    def _keep(self, key: Any, value: Any) -> Any:
        """The value to use from now on: that of the first thread that computed it."""
        with self._lock:
            known = self._results.get(key)
            if known is not None:
                return known
            try:
                self._results[key] = value
            except ValueError:  # larger than the whole memo
                pass
            except KeyError:  # a run that was interrupted inside the cache by its time limit left it torn
                self._results = LRUCache(MEMO_BYTES, getsizeof=_size)
            return value


def check_window(name: str, n: Any) -> int:
    """The window as an int from 1 (rsi: 2) to 100,000, or an InputError."""
    least = LEAST_WINDOW.get(name, 1)
    try:
        window = operator.index(n)
    except TypeError:
        window = 0
    if isinstance(n, bool | np.bool_) or not least <= window <= MAX_WINDOW:
        raise InputError(f"{name}({n!r}): expected a whole number of bars from {least} to {MAX_WINDOW:,}.")
    return window


def macd(bars: Bars, fast: int, slow: int, signal: int) -> tuple[Floats, Floats, Floats]:
    """MACD line, signal line, histogram."""
    import talib

    windows = [check_window("macd", n) for n in (fast, slow, signal)]
    if not 2 <= windows[0] < windows[1]:  # TA-Lib would swap them without a word
        raise InputError(f"macd(fast={fast}, slow={slow}): expected 2 <= fast < slow.")
    if windows[1] + windows[2] - 1 > len(bars):
        return _nothing(bars), _nothing(bars), _nothing(bars)
    line, signal_line, histogram = talib.MACD(bars.close, *windows)
    return line, signal_line, histogram


def bollinger(bars: Bars, n: int, k: float) -> tuple[Floats, Floats, Floats]:
    """Lower, middle and upper band."""
    if isinstance(k, bool) or not isinstance(k, int | float | np.floating) or not 0 <= k < np.inf:
        raise InputError(f"bollinger(k={k!r}): expected a number of standard deviations of at least 0.")
    middle, width = bars.sma(n), k * bars.stdev(n)
    return middle - width, middle, middle + width


def _windowed(bars: Bars, name: str, n: int) -> Floats:
    check_window(name, n)
    values = _nothing(bars) if n > len(bars) else _WINDOWED[name](bars, n)
    values.flags.writeable = False
    return values


def _sma(bars: Bars, n: int) -> Floats:
    import talib

    return np.asarray(talib.SMA(bars.close, n))


def _ema(bars: Bars, n: int) -> Floats:
    import talib

    return np.asarray(talib.EMA(bars.close, n))


def _wma(bars: Bars, n: int) -> Floats:
    import talib

    return np.asarray(talib.WMA(bars.close, n))


def _rsi(bars: Bars, n: int) -> Floats:
    import talib

    return np.asarray(talib.RSI(bars.close, n))


def _atr(bars: Bars, n: int) -> Floats:
    import talib

    return np.asarray(talib.ATR(bars.high, bars.low, bars.close, n))


def _roc(bars: Bars, n: int) -> Floats:
    import talib

    return np.asarray(talib.ROC(bars.close, n))


def _stdev(bars: Bars, n: int) -> Floats:
    import talib

    return np.zeros(len(bars)) if n == 1 else np.asarray(talib.STDDEV(bars.close, n))


def _highest(bars: Bars, n: int) -> Floats:
    import talib

    return bars.high.copy() if n == 1 else np.asarray(talib.MAX(bars.high, n))


def _lowest(bars: Bars, n: int) -> Floats:
    import talib

    return bars.low.copy() if n == 1 else np.asarray(talib.MIN(bars.low, n))


_WINDOWED: dict[str, Callable[[Bars, int], Floats]] = {
    "sma": _sma,
    "ema": _ema,
    "wma": _wma,
    "rsi": _rsi,
    "atr": _atr,
    "roc": _roc,
    "stdev": _stdev,
    "highest": _highest,
    "lowest": _lowest,
}


def _nothing(bars: Bars) -> Floats:
    return np.full(len(bars), np.nan)


def _arrays(result: Any, function: Callable[..., Any], length: int) -> Any:
    """Read-only copies of what a user's function returned."""
    if isinstance(result, tuple):
        return tuple(_array(part, function, length) for part in result)
    return _array(result, function, length)


def _array(values: Any, function: Callable[..., Any], length: int) -> Any:
    array = np.asarray(values)
    if array.shape[:1] != (length,) or array.dtype.kind not in "fiub":
        raise InputError(
            f"indicator {_name(function)} returned {type(values).__name__} of shape {array.shape} and type "
            f"{array.dtype}: expected one number for each of the {length} bars, or a tuple of such arrays."
        )
    if array.flags.writeable or array.base is not None:  # whoever holds the original could still change it
        array = array.copy()
        array.flags.writeable = False
    return array


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", repr(function))


def _size(value: Any) -> int:
    parts = value if isinstance(value, tuple) else (value,)
    return sum(part.nbytes + ENTRY_BYTES for part in parts)
