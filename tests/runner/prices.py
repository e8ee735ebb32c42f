"""Prices to test with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from hypothesis import strategies as st

from runner.bars import Bars

DAY_NS = 86_400_000_000_000


def ohlcv(n: int = 4, index: Any = None, **columns: Any) -> pd.DataFrame:
    """Title-case daily prices, one of 10, 11, 12, ... a day; keywords replace or add columns."""
    close = np.arange(10.0, 10.0 + n)
    prices = {"Open": close, "High": close + 1, "Low": close - 1, "Close": close, "Volume": np.arange(n) * 10}
    dates = pd.date_range("2020-01-01", periods=n) if index is None else index
    return pd.DataFrame({**prices, **columns}, index=dates)


def bars_of(close: Any, spread: float = 0.01) -> Bars:
    """Daily bars that open at the previous close."""
    close = np.asarray(close, dtype=np.float64)
    opening = np.concatenate([close[:1], close[:-1]])
    high, low = np.maximum(opening, close) * (1 + spread), np.minimum(opening, close) * (1 - spread)
    return Bars(time=np.arange(len(close)) * DAY_NS, open=opening, high=high, low=low, close=close)


def random_bars(n: int, seed: int = 0) -> Bars:
    steps = np.random.default_rng(seed).normal(0, 0.02, n)
    return bars_of(100 * np.exp(np.cumsum(steps)))


def walks(min_size: int = 1, max_size: int = 60) -> st.SearchStrategy[Bars]:
    """Bars with ties, jumps and flat stretches."""
    cents = st.integers(1, 20_000).map(lambda cent: cent / 100)
    return st.lists(cents, min_size=min_size, max_size=max_size).map(bars_of)
