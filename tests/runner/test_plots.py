"""Plots: the numbers behind each picture, and that the picture shows them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest

from runner import plots
from runner.bars import Bars
from runner.engine.metrics import METRICS
from runner.single import Backtest, backtest
from runner.spec import Execution


def table(values: Any, x: Any = (1, 2, 3), y: Any = (10, 20)) -> pd.DataFrame:
    index, columns = pd.Index(list(x), name="fast", dtype=object), pd.Index(list(y), name="slow", dtype=object)
    return pd.DataFrame(np.asarray(values, dtype=float), index=index, columns=columns)


SHARPES = table([[0.1, 0.2], [np.nan, 0.9], [-0.3, 0.0]])


# heatmap


def test_heatmap_data_has_x_across_and_y_up() -> None:
    data = plots.heatmap_data({"sharpe": SHARPES}, "sharpe")
    assert (data.x, data.y) == ([1, 2, 3], [10, 20])
    np.testing.assert_array_equal(data.z, [[0.1, np.nan, -0.3], [0.2, 0.9, 0.0]])


def test_heatmap_data_marks_the_best_cell() -> None:
    assert plots.heatmap_data({"sharpe": SHARPES}, "sharpe").best == plots.Best(2, 20, 0.9)
    assert plots.heatmap_data({"volatility": SHARPES}, "volatility").best == plots.Best(3, 10, -0.3)
    assert plots.heatmap_data({"sharpe": table(np.ones((3, 2)))}, "sharpe").best == plots.Best(1, 10, 1.0)
    assert plots.heatmap_data({"sharpe": table(np.full((3, 2), np.nan))}, "sharpe").best is None


def test_colours_change_at_the_neutral_value_when_cells_lie_on_both_sides() -> None:
    assert plots.heatmap_data({"sharpe": SHARPES}, "sharpe").centre == 0.0
    assert plots.heatmap_data({"profit_factor": SHARPES + 1}, "profit_factor").centre == 1.0
    assert plots.heatmap_data({"sharpe": SHARPES + 1}, "sharpe").centre is None
    assert plots.heatmap_data({"max_drawdown": SHARPES}, "max_drawdown").centre is None


def test_hover_shows_the_point_and_every_metric_given() -> None:
    data = plots.heatmap_data({"sharpe": SHARPES, "total_return": SHARPES}, "sharpe")
    assert data.hover[1][1] == "fast 2, slow 20<br>sharpe 0.900<br>total_return 90.0%"
    assert data.hover[0][1] == "fast 2, slow 10<br>sharpe n/a<br>total_return n/a"


def test_heatmap_draws_the_data_its_best_cell_and_its_names() -> None:
    figure = plots.plot_heatmap({"sharpe": SHARPES}, "sharpe", title="SP500")
    cells, star = figure.data
    np.testing.assert_array_equal(cells.z, plots.heatmap_data({"sharpe": SHARPES}, "sharpe").z)
    assert (cells.zmid, cells.reversescale) == (0.0, False)
    assert (star.x[0], star.y[0]) == (2, 20)
    assert figure.layout.title.text == "sharpe by fast and slow · SP500"
    assert figure.layout.title.subtitle.text == "best 0.900 at fast=2, slow=20"
    assert (figure.layout.xaxis.title.text, figure.layout.yaxis.title.text) == ("fast", "slow")


def test_the_good_end_of_the_scale_is_the_bright_one_for_costs_too() -> None:
    assert plots.plot_heatmap({"volatility": SHARPES}, "volatility").data[0].reversescale


def test_uneven_values_and_texts_get_cells_of_equal_size() -> None:
    figure = plots.plot_heatmap({"sharpe": table(np.eye(3, 2), x=[5, 20, 100], y=["a", None])}, "sharpe")
    assert (figure.layout.xaxis.type, figure.layout.yaxis.type) == ("category", "category")
    assert (list(figure.data[0].x), list(figure.data[0].y)) == (["5", "20", "100"], ["a", "None"])
    assert plots.plot_heatmap({"sharpe": SHARPES}, "sharpe").layout.xaxis.type == "linear"


def test_an_infinite_cell_is_drawn_as_the_largest_finite_one_and_named_infinite() -> None:
    values = {"profit_factor": table([[np.inf, 2.0], [0.5, 1.0], [0.7, np.nan]])}
    figure = plots.plot_heatmap(values, "profit_factor")
    assert figure.data[0].z[0][0] == 2.0
    assert "profit_factor inf" in figure.data[0].text[0][0]


def test_a_heatmap_without_a_number_says_so() -> None:
    figure = plots.plot_heatmap({"sharpe": table(np.full((3, 2), np.nan))}, "sharpe")
    assert len(figure.data) == 1
    assert figure.layout.title.subtitle.text == "no run has this metric"


def test_texts_from_outside_are_never_markup() -> None:
    evil = "<b>x</b>"
    figure = plots.plot_heatmap({"sharpe": table(np.eye(2), x=[evil, "b"])}, "sharpe", title=evil)
    assert "<b>" not in figure.to_json().replace("<br>", "")


def test_every_metric_has_a_format_that_python_and_plotly_read_alike() -> None:
    shown = {name: plots.show_number(name, 1234.5678) for name in METRICS}
    assert shown["sharpe"] == "1,234.568"
    assert shown["total_return"] == "123456.8%"
    assert shown["trades"] == "1,235"
    assert plots.show_number("sharpe", float("nan")) == "n/a"
    assert set(METRICS) >= plots.FRACTIONS | plots.WHOLE | set(plots.NEUTRAL)


# one run


@pytest.fixture(scope="module")
def run() -> Backtest:
    """Long from bar 1 to 3 with a gain, short from 4 to 6 with a loss, long from 7 on."""
    close = np.array([100.0, 100.0, 110.0, 120.0, 120.0, 130.0, 140.0, 140.0, 141.0])
    frame = pd.DataFrame(
        {"Open": close, "High": close, "Low": close, "Close": close},
        index=pd.date_range("2024-01-01", periods=9, freq="D"),
    )

    def targets(bars: Bars) -> np.ndarray:
        return np.array([0, 1, 1, 0, -1, -1, 0, 1, 1], dtype=float)[: len(bars)]

    return backtest(targets, Bars.from_frame(frame, "<b>X</b>"), execution=Execution(fill="close", cash=1_000.0))


def test_backtest_data_is_the_run_bar_by_bar(run: Backtest) -> None:
    data = plots.backtest_data(run)
    assert data.time[0] == np.datetime64("2024-01-01")
    np.testing.assert_array_equal(data.price, run.bars.close)
    np.testing.assert_array_equal(data.equity, run.equity)
    np.testing.assert_allclose(data.hold[[0, -1]], [1_000.0, 1_410.0])
    assert data.drawdown.max() == 0.0
    assert data.drawdown.min() == pytest.approx(run.stats["max_drawdown"])


def test_backtest_data_marks_entries_and_exits_by_kind(run: Backtest) -> None:
    markers = plots.backtest_data(run).markers
    days = {kind: [str(time)[8:10] for time in each.time] for kind, each in markers.items()}
    assert days == {"long": ["02", "08"], "short": ["05"], "gain": ["04"], "loss": ["07"]}
    assert markers["gain"].price.tolist() == [120.0]
    assert "+20.00%" in markers["gain"].hover[0]
    assert markers["short"].hover[0].startswith("short ")


def test_backtest_draws_price_equity_and_drawdown_above_one_another(run: Backtest) -> None:
    figure = plots.plot_backtest(run)
    panels = {trace.name: trace.yaxis for trace in figure.data}
    assert panels["close"] == panels["long entry"] == panels["exit with a loss"] == "y"
    assert panels["equity"] == panels["buy and hold"] == "y2"
    assert panels["drawdown"] == "y3"
    titles = [figure.layout[axis].title.text for axis in ("yaxis", "yaxis2", "yaxis3", "xaxis3")]
    assert titles == ["price", "equity", "drawdown", "time (UTC)"]
    assert figure.layout.yaxis3.tickformat == ".0%"
    assert figure.layout.title.text == "&lt;b&gt;X&lt;/b&gt;"
    assert "trades 2" in figure.layout.title.subtitle.text


def test_a_run_without_trades_can_be_drawn(run: Backtest) -> None:
    flat = backtest(lambda bars: np.zeros(len(bars)), run.bars)
    assert {kind: len(each.time) for kind, each in plots.backtest_data(flat).markers.items()} == {
        "long": 0,
        "short": 0,
        "gain": 0,
        "loss": 0,
    }
    assert plots.plot_backtest(flat).data


def test_long_series_are_drawn_by_webgl(run: Backtest, monkeypatch: pytest.MonkeyPatch) -> None:
    assert {trace.type for trace in plots.plot_backtest(run).data} == {"scatter"}
    monkeypatch.setattr(plots, "MAX_SVG_BARS", 5)
    assert "scattergl" in {trace.type for trace in plots.plot_backtest(run).data}


def test_plotly_loads_on_first_use() -> None:
    heavy = "{'plotly', 'pandas', 'pyarrow', 'numba'}"
    code = f"import sys, runner.plots, runner.results; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
