from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import runner
from runner import where
from runner.errors import SpaceError
from runner.where import Point

AXES: dict[str, Any] = {
    "a": range(-3, 9),
    "b": [0.5, 1.5, 4.0],
    "kind": ["x", "y"],
    "flag": [True, False],
    "odd": [None, 1, "z"],
}

CONDITIONS: list[Callable[[Any], Any]] = [
    lambda p: p.a < p.b,
    lambda p: p["a"] > p["b"],
    lambda p: p.a < p.b and p.kind == "x",
    lambda p: (p.a < p.b) & (p.kind == "x"),
    lambda p: 0 < p.a < 5,
    lambda p: not p.flag,
    lambda p: p.flag,
    lambda p: p.odd is None,
    lambda p: p.odd == 1,
    lambda p: p.kind in ("x", "z"),
    lambda p: max(p.a, p.b) < 3,
    lambda p: int(p.b) == 0,
    lambda p: p.a % 2 == 0,
    lambda p: p.a % 2 == 0 if p.flag else p.kind == "y",
    lambda p: bool(p.a),
    lambda p: any(value == "z" for value in p.values()),
    lambda p: True,
]


@pytest.mark.parametrize("condition", CONDITIONS)
def test_a_condition_lets_through_what_plain_python_does(condition: Callable[[Any], Any]) -> None:
    points = [dict(zip(AXES, values, strict=True)) for values in itertools.product(*AXES.values())]
    expected = [point for point in points if condition(Point(point))]
    assert list(runner.grid(where=condition, **AXES)) == expected


def looked_at(condition: Callable[[Any], Any], **axes: Any) -> int:
    """How many times a condition is asked."""
    calls = []

    def counted(p: Any) -> Any:
        calls.append(1)
        return condition(p)

    runner.grid(where=counted, **axes)
    return len(calls)


def test_a_condition_that_works_on_columns_is_asked_once_a_block() -> None:
    assert looked_at(lambda p: p.a < p.b, a=range(400), b=range(400)) < 300
    assert looked_at(lambda p: p.a < p.b and p.a > 1, a=range(100), b=range(100)) > 10_000


def test_a_condition_that_columns_would_answer_wrongly_is_asked_point_by_point() -> None:
    def overflows(p: Any) -> Any:
        return p.a**8 >= 0  # int64 wraps around, Python does not

    assert len(runner.grid(where=overflows, a=range(0, 10_000, 100), b=1)) == 100


def test_numpy_does_not_hide_a_division_by_zero() -> None:
    with pytest.raises(SpaceError, match=r"where raised ZeroDivisionError: .* at the point {'a': 1, 'b': 0}"):
        runner.grid(a=[1, 0], b=[1, 0], where=lambda p: p.a / p.b > 1)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        (lambda p: p.fats < 3, r"no parameter 'fats': did you mean 'fast'\? at the point {'fast': 1}"),
        (lambda p: p["zzz"] < 3, "no parameter 'zzz'; there are fast"),
        (lambda fast, slow: fast < slow, "TypeError: .*expected a function of one point"),
        (lambda p: p.fast < "a", "where raised TypeError"),
        (lambda p: None, "returned None at the point {'fast': 1}: expected True or False"),
        (lambda p: p.fast % 2, r"returned 1 at .*bool\(...\)"),
        (lambda p: ~(p.fast < 2), "returned -2 at .*'not' rather than ~"),
        ("fast < slow", "where='fast < slow': expected a function"),
        (lambda p: p.fast > 9, "where leaves none of the 3 points"),
    ],
)
@pytest.mark.filterwarnings("ignore:Bitwise inversion:DeprecationWarning")
def test_a_bad_condition_is_shown_with_its_point(condition: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        runner.grid(fast=[1, 2, 3], where=condition)


def test_a_parameter_may_be_named_like_a_method_of_a_mapping() -> None:
    assert len(runner.grid(items=[1, 2], keys=[3, 4], where=lambda p: (p.items < 2) & (p.keys > 3))) == 1
    assert dict(Point({"a": 1, "b": 2})) == {"a": 1, "b": 2}
    assert len(Point({"a": 1})) == 1


def test_runs_are_joined_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "BLOCK", 7)
    space = runner.grid(a=range(100), where=lambda p: (p.a > 4) & (p.a != 50))
    assert [point["a"] for point in space] == [a for a in range(100) if a > 4 and a != 50]
    assert len(space._starts) == 2


def test_a_condition_that_cuts_into_too_many_pieces_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "MAX_RUNS", 10)
    with pytest.raises(SpaceError, match="more than 10 pieces"):
        runner.grid(a=range(100), where=lambda p: p.a % 2 == 0)


def test_a_long_grid_is_not_looked_at_point_by_point(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, "MAX_ONE_BY_ONE", 1000)
    assert len(runner.grid(a=range(2000), where=lambda p: (p.a > 2) & (p.a < 9))) == 6
    with pytest.raises(SpaceError, match=r"write & and \| with brackets"):
        runner.grid(a=range(2000), where=lambda p: p.a > 2 and p.a < 9)


def test_columns_have_the_types_of_their_values() -> None:
    seen: dict[str, np.dtype[Any]] = {}

    def look(p: Any) -> Any:
        if isinstance(p.a, np.ndarray):
            seen.update({name: p[name].dtype for name in p})
        return p.a == p.a

    runner.grid(where=look, **AXES)
    assert {name: dtype.kind for name, dtype in seen.items()} == {
        "a": "i",
        "b": "f",
        "kind": "U",
        "flag": "b",
        "odd": "O",
    }
