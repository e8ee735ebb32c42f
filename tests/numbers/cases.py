"""The signals and prices on which the oracles must agree."""

import numpy as np

from runner.bars import Bars, sample_data
from runner.engine.batch import FloatArray
from runner.single import Backtest
from runner.spec import Execution

SERIES = ("SP500", "AAPL", "GOOG", "IBM")
SHAPES = ("long", "long and short", "fractions")


def signals(bars: Bars, shape: str) -> FloatArray:
    """Target positions; 0 at the first bars, which some engines skip."""
    n = len(bars)
    above = bars.sma(10) > bars.sma(30)
    if shape == "long":
        target = above.astype(np.float64)
    elif shape == "long and short":
        target = np.where(above, 1.0, -1.0)
    else:
        steps = np.random.default_rng(n).choice([0.0, 0.25, 0.5, 0.75, 1.0, -0.5, -1.0], n // 7 + 1)
        target = np.repeat(steps, 7)[:n]
    target[:30] = 0.0
    return target


def run(series: str, shape: str, execution: Execution) -> Backtest:
    bars = sample_data(series)
    return Backtest(bars, {}, execution, signals(bars, shape))
