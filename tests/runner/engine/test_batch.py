import itertools
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
import pytest

from runner.bars import Bars, sample_data
from runner.engine.batch import MAX_TRACEBACK_CHARS, run_batch, target_of
from runner.engine.metrics import METRICS
from runner.errors import StrategyError
from runner.single import Backtest
from runner.spec import Execution

BARS = sample_data("IBM")[:500]
N = len(BARS)


def sma_cross(bars: Bars, fast: int = 10, slow: int = 30) -> Any:
    return bars.sma(fast) > bars.sma(slow)


def returns(bars: Bars, value: Any) -> Any:
    return value


def fails(bars: Bars, how: str) -> Any:
    if how == "raises":
        raise ValueError("no luck \udc80")
    if how == "exits":
        sys.exit(3)
    if how == "recurses":
        return fails(bars, how)
    if how == "loops":
        while True:
            pass
    return np.ones(N)


WRONG = {
    "None": None,
    "a single float": 1.0,
    "a single str": "long",
    "list of shape \\(3,\\)": [1, 2, 3],
    f"ndarray of shape \\({N}, 1\\)": np.ones((N, 1)),
    "ndarray of complex128": np.ones(N) * 1j,
    "ndarray of object": np.array([None] * N),
    "ndarray of str": np.array(["long"] * N),
    "nan at bar 7": np.where(np.arange(N) == 7, np.nan, 1.0),
    "inf at bar 499": np.where(np.arange(N) == 499, np.inf, 1.0),
    "1000 at bar 0": np.full(N, 1_000.0),
}


@pytest.mark.parametrize("message", WRONG)
def test_what_is_no_position_is_refused_with_the_cure(message: str) -> None:
    with pytest.raises(StrategyError, match=f"the strategy returned {message}.*: expected .*(return|use) "):
        target_of(returns, BARS, {"value": WRONG[message]})


@pytest.mark.parametrize(
    "value",
    [
        np.ones(N, dtype=bool),
        np.ones(N, dtype=np.float32),
        np.ones(N, dtype=np.int8),
        np.ones(N, dtype=">f8"),
        np.ones(2 * N)[::2],
        pd.Series(np.ones(N)),
        [1] * N,
    ],
)
def test_positions_of_any_layout_give_the_same_run(value: Any) -> None:
    outcome = run_batch(returns, BARS, [{"value": value}, {"value": np.ones(N)}], Execution())
    assert not outcome.errors
    assert outcome.metrics[0].tobytes() == outcome.metrics[1].tobytes()


def test_a_strategys_own_array_is_left_alone() -> None:
    value = np.ones(N)
    value.flags.writeable = False
    assert not run_batch(returns, BARS, [{"value": value}], Execution()).errors
    assert not value.flags.writeable


@pytest.mark.parametrize(
    ("how", "kind"),
    [("raises", "ValueError"), ("exits", "SystemExit"), ("recurses", "RecursionError"), ("loops", "RunTimeoutError")],
)
def test_a_failing_run_is_an_error_in_its_own_row(how: str, kind: str) -> None:
    points = [{"how": "works"}, {"how": how}, {"how": "works"}]
    outcome = run_batch(fails, BARS, points, Execution(), run_timeout_s=0.5)
    assert list(outcome.errors) == [1]
    assert outcome.errors[1].kind == kind
    assert np.isnan(outcome.metrics[1]).all()
    assert outcome.metrics[0].tobytes() == outcome.metrics[2].tobytes()


def test_tracebacks_show_the_users_frames_alone_and_stay_short() -> None:
    outcome = run_batch(fails, BARS, [{"how": "raises"}, {"how": "recurses"}], Execution())
    text = outcome.errors[0].traceback
    assert "raise ValueError" in text
    assert 'batch.py", line' not in text.replace("test_batch.py", "")
    assert outcome.errors[0].message == "no luck \\udc80"
    text.encode()
    assert all(len(error.traceback) <= MAX_TRACEBACK_CHARS for error in outcome.errors.values())


def test_a_keyboard_interrupt_ends_the_batch() -> None:
    def interrupted(bars: Bars) -> Any:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_batch(interrupted, BARS, [{}], Execution())


def test_an_error_without_text_of_its_own_is_a_row() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise TypeError

    def mute(bars: Bars) -> Any:
        raise Mute

    assert run_batch(mute, BARS, [{}], Execution()).errors[0].kind == "Mute"


def test_a_spent_budget_stops_after_the_run_that_spent_it() -> None:
    def slow(bars: Bars, k: int) -> Any:
        time.sleep(0.02)
        return np.ones(N)

    outcome = run_batch(slow, BARS, ({"k": k} for k in itertools.count()), Execution(), budget_s=0.1)
    assert 1 < len(outcome.metrics) <= 6
    assert outcome.seconds >= 0.1
    assert len(run_batch(slow, BARS, [{"k": 0}, {"k": 1}], Execution(), budget_s=0.0).metrics) == 1


def test_rows_are_in_order_and_equal_single_runs_to_the_last_bit() -> None:
    points = [{"fast": fast, "slow": slow} for fast in range(5, 25) for slow in range(30, 50)]
    execution = Execution(fees=0.001, stop_loss=0.05)
    outcome = run_batch(sma_cross, BARS, points, execution)
    assert outcome.metrics.shape == (400, len(METRICS))
    for k in (0, 255, 256, 399):
        single = Backtest(BARS, points[k], execution, target_of(sma_cross, BARS, points[k]))
        assert single.stats.to_numpy().tobytes() == outcome.metrics[k].tobytes()


def test_no_points_make_no_rows() -> None:
    assert run_batch(sma_cross, BARS, [], Execution()).metrics.shape == (0, len(METRICS))
