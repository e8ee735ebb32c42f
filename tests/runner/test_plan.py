from __future__ import annotations

import pytest

import runner
from runner.errors import BarsError
from runner.plan import as_bars, make_plan
from runner.strategies import sma_cross

IBM = runner.sample_data("IBM")


def test_prices_may_come_as_bars_a_frame_or_a_mapping_of_either() -> None:
    frame = IBM.to_frame()
    assert list(as_bars(IBM)) == ["IBM"]
    assert next(iter(as_bars(frame).values())) == IBM
    mapped = as_bars({"one": IBM, "two": frame})
    assert [(name, bars.symbol) for name, bars in mapped.items()] == [("one", "one"), ("two", "two")]


def test_a_frame_of_several_symbols_is_taken_apart() -> None:
    import pandas as pd

    both = pd.concat([IBM.to_frame().assign(symbol="A"), IBM.to_frame().assign(symbol="B")])
    assert list(as_bars(both)) == ["A", "B"]


@pytest.mark.parametrize(
    ("data", "words"), [({}, "empty mapping"), ([1, 2], "is a list"), ({"A": 3}, r"data\['A'\] is a int")]
)
def test_anything_else_is_named(data: object, words: str) -> None:
    with pytest.raises(BarsError, match=words):
        as_bars(data)  # type: ignore[arg-type]  # the point of the test


def test_a_plan_runs_one_of_its_points_here() -> None:
    plan = make_plan(sma_cross, IBM, runner.grid(fast=[5, 10], slow=[50]))
    assert len(plan) == 2
    assert plan.backtest("IBM", {"fast": 5, "slow": 50}).stats["trades"] > 0
