"""Results: one row a run, and what people ask of the table."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from runner.engine.batch import RunError
from runner.engine.metrics import METRICS
from runner.errors import InputError, RunFailed
from runner.results import Results
from runner.space import Space, grid, sample, uniform
from runner.spec import Execution

SHARPE, TRADES = METRICS.index("sharpe"), METRICS.index("trades")
BOOM = RunError(
    "ZeroDivisionError", "division by zero\nin line 3", "Traceback ...\nZeroDivisionError: division by zero"
)


def make(space: Space | None = None, symbols: tuple[str, ...] = ("SP500",), **options: Any) -> Results:
    """Every metric of run k is k, except where a test says otherwise; failed runs are NaN."""
    space = grid(fast=[1, 2, 3], slow=[10, 20]) if space is None else space
    runs = len(symbols) * len(space)
    metrics = np.repeat(np.arange(runs, dtype=float)[:, None], len(METRICS), axis=1)
    if "sharpe" in options:
        metrics[:, SHARPE] = options.pop("sharpe")
    errors = options.pop("errors", {})
    metrics[list(errors)] = np.nan
    given: dict[str, Any] = {"name": "a-sweep", "execution": Execution(fees=0.001), "elapsed_s": 2.1} | options
    return Results(symbols=symbols, space=space, metrics=metrics, errors=errors, **given)


# frame


def test_frame_has_one_row_a_run_indexed_by_symbol_and_parameters() -> None:
    frame = make(symbols=("AAPL", "IBM")).frame
    assert list(frame.index.names) == ["symbol", "fast", "slow"]
    assert frame.index.tolist()[:3] == [("AAPL", 1, 10), ("AAPL", 1, 20), ("AAPL", 2, 10)]
    assert frame.index.tolist()[6] == ("IBM", 1, 10)
    assert list(frame.columns) == [*METRICS, "error"]
    assert frame["sharpe"].tolist() == list(range(12))
    assert frame.loc[("IBM", 3, 20), "sharpe"] == 11


def test_one_symbol_is_a_level_too() -> None:
    assert make().frame.index[0] == ("SP500", 1, 10)


def test_frame_agrees_with_the_space_point_by_point_whatever_the_space() -> None:
    for space in (
        grid(fast=range(2, 9), slow=range(3, 12), where=lambda p: p.fast < p.slow),
        grid(window=[30, 5, 10], kind=["b", "a"], flag=[True, False]),
        sample(25, seed=3, fast=range(100), slow=range(100)),
        sample(25, seed=3, k=uniform(0.0, 1.0), n=[1, 2]),
    ):
        frame = make(space).frame
        points = [tuple(point.values()) for point in space]
        assert [row[1:] for row in frame.index.tolist()] == points
        assert frame["sharpe"].tolist() == list(range(len(space)))


def test_unstack_spreads_a_parameter() -> None:
    table = make().frame["sharpe"].unstack("slow")  # noqa: PD010 - the claim is about unstack
    assert table.index[2] == ("SP500", 3)
    assert list[Any](table.columns) == [10, 20]
    assert table.iloc[2].tolist() == [4.0, 5.0]


def test_counts_are_whole_numbers_unless_a_run_failed() -> None:
    assert make().frame["trades"].dtype == np.int64
    assert make(errors={1: BOOM}).frame["trades"].dtype == np.float64


def test_a_failed_run_is_a_row_with_a_short_error() -> None:
    frame = make(errors={1: BOOM}).frame
    assert frame["error"].iloc[1] == "ZeroDivisionError: division by zero"
    assert frame["error"].isna().tolist() == [row != 1 for row in range(6)]
    assert np.isnan(frame["sharpe"].iloc[1])


def test_a_space_without_parameters_is_indexed_by_symbol_alone() -> None:
    result = make(grid(), symbols=("A", "B"), rerun=lambda symbol, params: (symbol, params))
    assert result.frame.index.tolist() == [("A",), ("B",)]
    assert result.best().name == ("B",)
    assert repr(result).endswith(": B")
    assert result.replay("A") == ("A", {})  # type: ignore[comparison-overlap]  # what would have run


def test_changing_a_frame_changes_neither_the_result_nor_the_next_frame() -> None:
    result = make()
    frame = result.frame
    frame["mine"] = 1
    frame.loc[("SP500", 1, 10), "sharpe"] = 99.0
    assert frame["sharpe"].iloc[0] == 99.0
    assert "mine" not in result.frame
    assert result.frame["sharpe"].iloc[0] == 0.0
    assert result.best().name == ("SP500", 3, 20)


def test_the_callers_metrics_stay_writable_and_are_not_copied() -> None:
    metrics = np.zeros((6, len(METRICS)))
    space = grid(fast=[1, 2, 3], slow=[10, 20])
    result = Results(name="x", symbols=["A"], space=space, execution=Execution(), metrics=metrics, errors={})
    assert np.shares_memory(metrics, result.frame["sharpe"].to_numpy())
    metrics[0, 0] = 1.0


def test_metrics_of_another_length_are_refused() -> None:
    with pytest.raises(InputError, match="one row a run"):
        Results(
            name="x", symbols=["A"], space=grid(a=[1, 2]), execution=Execution(), metrics=np.zeros((3, 19)), errors={}
        )


def test_a_parameter_named_like_a_column_keeps_every_table_unambiguous() -> None:
    result = make(grid(symbol=["x", "y"], trades=[1, 2], error=[0]))
    assert list(result.frame.index.names) == ["symbol", "params_symbol", "params_trades", "params_error"]
    assert result.frame.reset_index().columns.is_unique
    assert result.heatmap("trades", "params_symbol").loc[2, "y"] == 3.0


def test_a_none_among_the_values_is_a_missing_label() -> None:
    result = make(grid(stop=[None, 5, 10]))
    assert result.frame.index.get_level_values("stop").isna().tolist() == [True, False, False]
    assert result.heatmap("stop", "symbol").index.tolist() == [None, 5, 10]


# best, top


def test_best_is_the_row_with_the_largest_metric_named_by_its_index() -> None:
    best = make(sharpe=[0.1, 0.9, 0.3, np.nan, 0.2, 0.0]).best("sharpe")
    assert best.name == ("SP500", 1, 20)
    assert best["sharpe"] == 0.9
    assert best["trades"] == 1


def test_best_looks_at_every_symbol() -> None:
    assert make(symbols=("A", "B")).best().name == ("B", 3, 20)


def test_best_of_a_cost_is_the_smallest() -> None:
    result = make()
    assert result.best("volatility").name == ("SP500", 1, 10)
    assert result.best("max_drawdown").name == ("SP500", 3, 20)


def test_the_earliest_run_wins_a_tie() -> None:
    result = make(sharpe=[0.0, 1.0, 1.0, 1.0, 0.5, 1.0])
    assert result.best().name == ("SP500", 1, 20)
    assert result.top(3).index.tolist() == [("SP500", 1, 20), ("SP500", 2, 10), ("SP500", 2, 20)]


def test_names_of_other_libraries_are_accepted_everywhere() -> None:
    result = make()
    assert result.best("Sharpe Ratio").name == result.best("sharpe").name
    pd.testing.assert_frame_equal(result.top(2, "Return [%]"), result.top(2, "total_return"))
    pd.testing.assert_frame_equal(
        result.heatmap("fast", "slow", "Sharpe Ratio"), result.heatmap("fast", "slow", "sharpe")
    )


def test_an_unknown_metric_is_told_the_nearest() -> None:
    for ask in (make().best, lambda m: make().top(3, m), lambda m: make().heatmap("fast", "slow", m)):
        with pytest.raises(InputError, match="sharpe"):
            ask("sharp")


def test_best_never_returns_a_failed_run() -> None:
    metrics = np.ones((2, len(METRICS)))
    metrics[1] = 2.0  # numbers left in a failed run's row must not count
    space = grid(a=[1, 2])
    result = Results(name="x", symbols=["A"], space=space, execution=Execution(), metrics=metrics, errors={1: BOOM})
    assert result.best().name == ("A", 1)
    assert len(result.top(10)) == 1


def test_best_says_why_there_is_none() -> None:
    with pytest.raises(RunFailed, match=r"every run failed.*ZeroDivisionError"):
        make(errors=dict.fromkeys(range(6), BOOM)).best()
    with pytest.raises(RunFailed, match="NaN in every run"):
        make(sharpe=np.nan).best()
    with pytest.raises(RunFailed, match="no run is done yet"):
        make(done=np.zeros(6, dtype=bool)).best()


def test_top_ranks_best_first_and_can_be_turned_round() -> None:
    result = make(sharpe=[0.1, 0.9, 0.3, np.nan, 0.2, 0.0])
    assert result.top(2)["sharpe"].tolist() == [0.9, 0.3]
    assert result.top(2, ascending=True)["sharpe"].tolist() == [0.0, 0.1]
    assert len(result.top(100)) == 5
    assert result.top(2, "fees")["fees"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "3"])
def test_top_wants_a_whole_number(n: Any) -> None:
    with pytest.raises(InputError, match="at least 1"):
        make().top(n)


def test_an_infinite_profit_factor_is_the_best() -> None:
    assert make(sharpe=[0.1, np.inf, 0.3, -np.inf, 0.2, 0.0]).best().name == ("SP500", 1, 20)


# heatmap


def test_heatmap_has_x_down_and_y_across_both_ascending_and_named() -> None:
    table = make(grid(fast=[3, 1, 2], slow=[20, 10])).heatmap("fast", "slow", "sharpe")
    assert (table.index.name, table.columns.name) == ("fast", "slow")
    assert table.index.tolist() == [1, 2, 3]
    assert list[Any](table.columns) == [10, 20]
    assert table.to_numpy().tolist() == [[3.0, 2.0], [5.0, 4.0], [1.0, 0.0]]


def test_heatmap_leaves_failed_and_missing_cells_empty() -> None:
    space = grid(fast=[1, 2, 3], slow=[2, 3], where=lambda p: p.fast < p.slow)
    table = make(space, errors={1: BOOM}).heatmap("fast", "slow")
    assert table.index.tolist() == [1, 2]
    np.testing.assert_array_equal(table.to_numpy(), [[0.0, np.nan], [np.nan, 2.0]])


def test_heatmap_aggregates_what_shares_a_cell() -> None:
    result = make(grid(a=[1, 2], b=[1], c=[0, 10]))
    assert result.heatmap("a", "b")[1].tolist() == [0.5, 2.5]
    assert result.heatmap("a", "b", agg="max")[1].tolist() == [1.0, 3.0]
    assert result.heatmap("a", "b", agg=lambda cell: cell.min())[1].tolist() == [0.0, 2.0]


def test_heatmap_of_one_symbol_or_of_all() -> None:
    result = make(grid(a=[1, 2], b=[1]), symbols=("A", "B"))
    assert result.heatmap("a", "b", symbol="B")[1].tolist() == [2.0, 3.0]
    assert result.heatmap("a", "b")[1].tolist() == [1.0, 2.0]
    assert result.heatmap("a", "symbol").to_numpy().tolist() == [[0.0, 2.0], [1.0, 3.0]]


def test_heatmap_keeps_an_infinite_value() -> None:
    assert make(sharpe=[np.inf, 1, 2, 3, 4, 5]).heatmap("fast", "slow").loc[1, 10] == np.inf


def test_heatmap_says_what_is_wrong() -> None:
    result = make()
    with pytest.raises(InputError, match="did you mean 'fast'"):
        result.heatmap("fsat", "slow")
    with pytest.raises(InputError, match="two different"):
        result.heatmap("fast", "fast")
    with pytest.raises(InputError, match="unknown symbol 'SPY'"):
        result.heatmap("fast", "slow", symbol="SPY")
    scattered = make(sample(4_000, seed=1, a=uniform(0.0, 1.0), b=uniform(0.0, 1.0)))
    with pytest.raises(InputError, match=r"4,000 by 4,000.*pandas\.cut"):
        scattered.heatmap("a", "b")


# errors, partial results


def test_errors_is_a_table_that_groups() -> None:
    late = RunError("RunTimeoutError", "longer than 5 s", "")
    errors = make(errors={4: BOOM, 1: BOOM, 2: late}).errors
    assert errors.index.tolist() == [("SP500", 1, 20), ("SP500", 2, 10), ("SP500", 3, 10)]
    assert errors.groupby("kind").size().to_dict() == {"RunTimeoutError": 1, "ZeroDivisionError": 2}
    assert errors["traceback"].iloc[0] == BOOM.traceback


def test_errors_of_a_clean_sweep_is_an_empty_table_of_the_same_shape() -> None:
    errors = make().errors
    assert list(errors.columns) == ["kind", "message", "traceback"]
    assert list(errors.index.names) == ["symbol", "fast", "slow"]
    assert errors.empty


def test_only_done_runs_are_rows() -> None:
    done = np.array([False, True, True, False, True, False])
    result = make(done=done, cancelled=True, errors={2: BOOM})
    assert len(result) == len(result.frame) == 3
    assert result.frame.index.tolist() == [("SP500", 1, 20), ("SP500", 2, 10), ("SP500", 3, 10)]
    assert result.frame["error"].notna().tolist() == [False, True, False]
    assert result.errors.index.tolist() == [("SP500", 2, 10)]
    assert result.best().name == ("SP500", 3, 10)
    assert result.heatmap("fast", "slow").loc[1, 20] == 1.0


# repr


def test_repr_says_how_many_how_good_and_how_long() -> None:
    assert repr(make(errors={1: BOOM})) == (
        "Results 'a-sweep': 6 runs, 1 failed, 2.1 s\n"
        "best sharpe 5.000: SP500 fast=3, slow=20\n"
        "1 failed with ZeroDivisionError"
    )


def test_repr_of_a_partial_sweep_says_so() -> None:
    done = np.arange(9_450) < 4_000
    space = grid(fast=range(105), slow=range(90))
    assert "4,000 of 9,450 runs (cancelled)" in repr(make(space, done=done, cancelled=True))
    assert "4,000 of 9,450 runs (so far)" in repr(make(space, done=done))
    assert "failed" not in repr(make(elapsed_s=None))


def test_the_card_escapes_everything_and_touches_no_network() -> None:
    evil = "<script>alert(1)</script>"
    error = RunError(evil, evil, evil)
    result = make(grid(mode=[evil, "b"]), symbols=(evil,), name=evil, errors={1: error})
    card = result._repr_html_()
    assert "<script" not in card
    assert card.count("&lt;script&gt;") >= 5
    assert set(re.findall(r"<(\w+)", card)) <= {"div", "strong", "table", "tr", "th", "td", "code"}
    assert not re.search(r"https?:|src=|href=", card)


def test_the_card_of_a_sweep_without_a_number_still_shows() -> None:
    assert "every" not in make(sharpe=np.nan)._repr_html_()
    assert "no run has a sharpe" in make(sharpe=np.nan)._repr_html_()


def test_the_card_does_not_build_the_frame() -> None:
    result = make()
    result._repr_html_()
    repr(result)
    assert "_frame" not in vars(result)
    assert "_index" not in vars(result)


# replay


def replaying(space: Space | None = None, symbols: tuple[str, ...] = ("SP500",)) -> Any:
    """Results whose replay hands back what would have run."""
    return make(space, symbols, rerun=lambda symbol, params: (symbol, params))


def test_replay_runs_the_point_that_was_named() -> None:
    assert replaying().replay(fast=2, slow=20) == ("SP500", {"fast": 2, "slow": 20})


@pytest.mark.parametrize("two", [2.0, np.int64(2), np.float64(2.0), np.int8(2)])
def test_replay_matches_numbers_by_value(two: Any) -> None:
    _, params = replaying().replay(fast=two, slow=np.float32(20))
    assert params == {"fast": 2, "slow": 20}
    assert type(params["fast"]) is int


def test_replay_takes_the_index_of_the_best_row() -> None:
    result = replaying()
    best: Any = result.best().name
    point = dict(zip(result.frame.index.names, best, strict=True))
    assert result.replay(**point) == ("SP500", {"fast": 3, "slow": 20})


def test_replay_of_a_failed_run_raises_its_own_error() -> None:
    def rerun(symbol: str, params: dict[str, Any]) -> Any:
        return 1 / 0

    with pytest.raises(ZeroDivisionError):
        make(rerun=rerun, errors={0: BOOM}).replay(fast=1, slow=10)


def test_replay_asks_only_for_what_tells_points_apart() -> None:
    assert replaying(grid(fast=[1, 2], n=[7])).replay(fast=2) == ("SP500", {"fast": 2, "n": 7})
    with pytest.raises(InputError, match="2 runs have fast=1: add slow"):
        replaying().replay(fast=1)
    with pytest.raises(InputError, match="6 runs are there: add fast, slow"):
        replaying().replay()


def test_replay_of_an_unknown_point_names_the_nearest() -> None:
    space = grid(fast=range(5, 60), slow=range(20, 240, 2), where=lambda p: p.fast < p.slow)
    with pytest.raises(
        InputError, match=r"no run has fast=12, slow=49: the nearest has fast=12, slow=(48|50)\."
    ) as error:
        replaying(space).replay(fast=12, slow=49)
    assert "fast is 55 values from 5 to 59" in str(error.value)


def test_replay_of_an_unknown_text_lists_what_there_is() -> None:
    with pytest.raises(InputError, match="kind is ema, sma"):
        replaying(grid(kind=["sma", "ema"])).replay(kind="wma")


def test_replay_of_an_unknown_parameter_or_symbol_is_told_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown parameter 'fsat': did you mean 'fast'"):
        replaying().replay(fsat=1)
    with pytest.raises(InputError, match="unknown symbol 'AAPPL': did you mean 'AAPL'"):
        replaying(symbols=("AAPL", "IBM")).replay("AAPPL", fast=1, slow=10)


def test_replay_of_several_symbols_wants_one() -> None:
    result = replaying(symbols=("AAPL", "IBM"))
    assert result.replay("IBM", fast=1, slow=10) == ("IBM", {"fast": 1, "slow": 10})
    assert result.replay(symbol="AAPL", fast=1, slow=10) == ("AAPL", {"fast": 1, "slow": 10})
    with pytest.raises(InputError, match="add symbol=, one of AAPL, IBM"):
        result.replay(fast=1, slow=10)


def test_replay_reaches_a_parameter_called_symbol_or_self() -> None:
    assert replaying(grid(symbol=["x", "y"])).replay(params_symbol="y") == ("SP500", {"symbol": "y"})
    assert replaying(grid(self=[1, 2])).replay(self=2) == ("SP500", {"self": 2})


def test_replay_without_strategy_and_prices_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"runner\.backtest"):
        make().replay(fast=1, slow=10)


# to_parquet


def test_parquet_holds_every_row_the_index_and_how_it_came_about(tmp_path: Any) -> None:
    result = make(symbols=("A", "B"), errors={3: BOOM})
    result.to_parquet(tmp_path / "r.parquet")
    back = pd.read_parquet(tmp_path / "r.parquet")
    assert list(zip(back["symbol"], back["fast"], back["slow"], strict=True)) == result.frame.index.tolist()
    np.testing.assert_array_equal(back[list(METRICS)], result.frame[list(METRICS)])
    assert back["error"].dropna().to_dict() == {3: "ZeroDivisionError: division by zero"}
    about = json.loads(pq.read_schema(tmp_path / "r.parquet").metadata[b"backtest-runner"])
    assert about["name"] == "a-sweep"
    assert about["symbols"] == ["A", "B"]
    assert about["parameters"] == ["fast", "slow"]
    assert Execution.from_wire(about["execution"]) == result.execution
    assert about["versions"]["pandas"] == pd.__version__


def test_parquet_takes_any_axis(tmp_path: Any) -> None:
    space = grid(stop=[None, 0.1], mixed=[1, "auto"], flag=[True, False], trades=[1, 2.5])
    make(space).to_parquet(tmp_path / "r.parquet")
    back = pd.read_parquet(tmp_path / "r.parquet")
    assert back["stop"].isna().sum() == 8
    assert sorted(set(back["mixed"])) == ['"auto"', "1"]
    assert back["flag"].dtype == bool
    assert set(back["params_trades"]) == {1.0, 2.5}
