"""Many backtests of one strategy over one symbol's bars: a failing run is a row, not a crash."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.bars import Bars
from runner.engine import deadline as deadlines
from runner.engine.metrics import METRICS
from runner.errors import StrategyError
from runner.spec import Execution

FloatArray = npt.NDArray[np.float64]
TargetArray = npt.NDArray[np.float64] | npt.NDArray[np.bool_]

# Far above any leverage one can get, far below most prices: beyond it, a strategy has returned something else.
MAX_TARGET = 100.0

# An error row must stay small however deep or talkative the failure: a million of them travel through Redis.
MAX_MESSAGE_CHARS = 500
MAX_TRACEBACK_CHARS = 4_000
MAX_FRAMES = 20

_OWN_FILES = (__file__, deadlines.__file__)


@dataclass(frozen=True, slots=True)
class RunError:
    """Why a run has no numbers.

    Attributes:
        kind: the exception's class name.
        message: what it said, cut to `MAX_MESSAGE_CHARS`.
        traceback: where, in the user's own frames, cut to `MAX_TRACEBACK_CHARS`.
    """

    kind: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """What a batch of runs came to.

    Attributes:
        metrics: float64[n, len(METRICS)], one row a run that was made; NaN where it failed.
        errors: the failed runs, by row.
        seconds: how long the runs took.
    """

    metrics: FloatArray
    errors: dict[int, RunError]
    seconds: float


def run_batch(
    function: Callable[..., Any],
    bars: Bars,
    points: Iterable[Mapping[str, Any]],
    execution: Execution,
    *,
    run_timeout_s: float | None = None,
    budget_s: float | None = None,
) -> BatchOutcome:
    """Run a strategy once for each point, in order.

    Args:
        function: ``function(bars, **point)`` returns the target positions, see `target_of`.
        bars: the prices.
        points: the parameters of each run.
        execution: costs, fills, stops.
        run_timeout_s: what a call of the strategy may last; a longer one is an error row.
        budget_s: start no further run after this time; at least one is made.

    Raises:
        KeyboardInterrupt: the only thing of a strategy that ends the batch.
    """
    simulate = simulator(bars, execution)
    metrics = np.full((256, len(METRICS)), np.nan)
    errors: dict[int, RunError] = {}
    count = 0
    started = monotonic()
    stop_at = float("inf") if budget_s is None else started + budget_s
    with deadlines.deadline(run_timeout_s) as deadline:
        for point in points:
            if count == len(metrics):
                metrics = np.concatenate([metrics, np.full_like(metrics, np.nan)])
            try:
                simulate(deadline.call(target_of, function, bars, point), metrics[count])
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - whatever a user's function raises, SystemExit too, is its row
                errors[count] = run_error(error)
            count += 1
            if monotonic() >= stop_at:
                break
    return BatchOutcome(metrics[:count], errors, monotonic() - started)


def simulator(bars: Bars, execution: Execution) -> Callable[..., int]:
    """The kernel with all bound that stays the same between runs: call it with (target, metrics[, equity, trades])."""
    from runner.engine.kernel import TRADE_COLUMNS, simulate

    periods_per_year = float(execution.periods_per_year or bars.periods_per_year)
    constants = (
        bars.open,
        bars.high,
        bars.low,
        bars.close,
        float(execution.cash),
        float(execution.fees),
        float(execution.slippage),
        float(execution.stop_loss or 0.0),
        float(execution.take_profit or 0.0),
        float(execution.trailing_stop or 0.0),
        (1.0 + execution.risk_free) ** (1.0 / periods_per_year) - 1.0,
        periods_per_year,
        execution.fill == "open",
    )
    nothing, no_trades = np.empty(0), np.empty((0, len(TRADE_COLUMNS)))

    def run(
        target: TargetArray, metrics: FloatArray, equity: FloatArray = nothing, trades: FloatArray = no_trades
    ) -> int:
        return int(simulate(*constants, target, metrics, equity, trades))

    return run


def target_of(function: Callable[..., Any], bars: Bars, params: Mapping[str, Any]) -> TargetArray:
    """Call a strategy and check what it returned.

    Args:
        function: the strategy, called as ``function(bars, **params)``.
        bars: n prices.
        params: its parameters.

    Returns:
        bool[n] or float64[n], writeable and contiguous: the fraction of equity to hold from each bar's close on.

    Raises:
        StrategyError: it is no array of n finite numbers or booleans; the message says what to return instead.
    """
    result = function(bars, **params)
    target = _as_array(result)
    if target.shape != (len(bars),):
        raise StrategyError(
            f"the strategy returned {_described(result, target)}: expected an array of one target position per bar, "
            f"shape ({len(bars)},); return one value for each of bars.close."
        )
    if target.dtype != np.bool_:
        target = _finite(target, result)
    if not (target.flags.writeable and target.flags.c_contiguous):
        target = target.copy()  # the kernel is compiled for one layout
    return target


def _as_array(result: Any) -> npt.NDArray[Any]:
    if hasattr(result, "to_numpy"):  # a pandas Series
        return np.asarray(result.to_numpy())
    try:
        return np.asarray(result)
    except ValueError:  # a ragged list
        return np.empty(0, dtype=object)


def _described(result: Any, target: npt.NDArray[Any]) -> str:
    if result is None:
        return "None"
    if target.ndim == 0:
        return f"a single {type(result).__name__}"
    return f"{type(result).__name__} of shape {target.shape}"


def _finite(target: npt.NDArray[Any], result: Any) -> FloatArray:
    """The target as float64, or StrategyError where it holds anything but finite fractions."""
    if target.dtype.kind not in "fiu":
        raise StrategyError(
            f"the strategy returned {type(result).__name__} of {target.dtype.name}: expected booleans or numbers; "
            "return bars.close > level, or a float array of fractions of equity."
        )
    values = target.astype(np.float64, copy=False)
    # One dot product bounds every value and is not finite if one is not: four times faster than looking at each.
    if np.dot(values, values) <= MAX_TARGET**2:
        return values
    wrong = np.flatnonzero(~(np.abs(values) <= MAX_TARGET))
    if not len(wrong):
        return values
    first = int(wrong[0])
    if np.isfinite(values[first]):
        raise StrategyError(
            f"the strategy returned {values[first]:g} at bar {first}: expected a fraction of equity between "
            f"-{MAX_TARGET:g} and {MAX_TARGET:g} (1 is fully invested); "
            "return a position rather than a price or a number of shares."
        )
    raise StrategyError(
        f"the strategy returned {values[first]} at bar {first}: expected finite "
        "numbers; compare indicators (comparing with NaN is False) or use np.nan_to_num(target)."
    )


def run_error(error: BaseException) -> RunError:
    """What a failed run leaves in the table: bounded text that any codec can carry."""
    report = traceback.TracebackException.from_exception(error, limit=-MAX_FRAMES)
    report.stack = traceback.StackSummary.from_list(
        [frame for frame in report.stack if frame.filename not in _OWN_FILES]
    )
    try:
        message = str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        message = "<the exception's own text failed>"
    return RunError(
        kind=type(error).__name__,
        message=_bounded(message, MAX_MESSAGE_CHARS),
        traceback=_bounded("".join(report.format()), MAX_TRACEBACK_CHARS),
    )


def _bounded(text: str, most: int) -> str:
    """The text without lone surrogates, its middle left out when it is long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) <= most:
        return text
    head = most // 4
    return f"{text[:head]} [...] {text[-(most - head - 7) :]}"
