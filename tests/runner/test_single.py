from typing import Any

import numpy as np
import pytest

import runner
from runner.bars import Bars, sample_data
from runner.engine.metrics import METRICS
from runner.errors import StrategyError
from runner.single import Backtest, backtest, sparkline
from runner.spec import Execution

BARS = sample_data("SP500")


def sma_cross(bars: Bars, fast: int = 10, slow: int = 30) -> Any:
    return bars.sma(fast) > bars.sma(slow)


@pytest.fixture(scope="module")
def result() -> Backtest:
    return backtest(sma_cross, BARS, {"fast": 20}, execution=Execution(fees=0.001))


def test_stats_are_the_metrics_by_name(result: Backtest) -> None:
    assert tuple(result.stats.index) == METRICS
    assert result.stats["final_equity"] == result.equity.iloc[-1]
    assert result.params == {"fast": 20}


def test_drawdown_is_below_the_running_peak(result: Backtest) -> None:
    assert result.drawdown.min() == pytest.approx(result.stats["max_drawdown"])
    assert result.drawdown.max() == 0
    assert result.drawdown.index.equals(result.equity.index)
    assert result.equity.index.equals(BARS.to_frame().index)


def test_trades_add_up_to_the_stats(result: Backtest) -> None:
    closed = result.trades[~result.trades["open"]]
    assert len(closed) == result.stats["trades"]
    assert closed["return"].max() == result.stats["best_trade"]
    assert closed["return"].min() == result.stats["worst_trade"]
    assert (closed["bars"] == closed["exit_bar"] - closed["entry_bar"]).all()
    assert result.trades["pnl"].sum() == pytest.approx(result.stats["final_equity"] - result.execution.cash)
    assert result.trades["entry_time"].tolist() == list(result.equity.index[result.trades["entry_bar"]])


def test_an_open_position_is_listed_at_the_last_close() -> None:
    held = Backtest(BARS, {}, Execution(), np.ones(len(BARS)))
    assert held.trades["open"].tolist() == [True]
    assert held.trades["exit_price"].tolist() == pytest.approx([BARS.close[-1]])
    assert held.stats["trades"] == 0


def test_a_frame_is_as_good_as_bars(result: Backtest) -> None:
    again = backtest(sma_cross, BARS.to_frame(), {"fast": 20}, execution=Execution(fees=0.001))
    assert again.stats.to_numpy().tobytes() == result.stats.to_numpy().tobytes()


def test_an_unknown_parameter_is_offered_the_nearest() -> None:
    with pytest.raises(StrategyError, match="fast"):
        backtest(sma_cross, BARS, {"fsat": 20})


def test_the_public_name_is_this_function() -> None:
    assert runner.backtest is backtest
    assert runner.Backtest is Backtest


def test_representations_name_the_run_and_escape_it() -> None:
    result = Backtest(BARS.with_symbol("<b>"), {"x": "<script>"}, Execution(), np.ones(len(BARS)))
    assert "final_equity" in repr(result)
    page = result._repr_html_()
    assert "<script>" not in page
    assert "<b>&lt;b&gt;" not in page.replace("<div><b>", "")
    assert "<svg" in page
    assert "http" not in page


def test_a_sparkline_of_one_or_equal_values_is_drawn() -> None:
    assert "0.0,80.0" in sparkline(np.array([5.0]))
    assert "nan" not in sparkline(np.full(10, 5.0))
