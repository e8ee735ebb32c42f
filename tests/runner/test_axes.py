from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pandas as pd
import pytest

from runner.axes import Choices, Uniform, axis_from_wire, axis_of, uniform
from runner.errors import SpaceError


class Kind(enum.IntEnum):
    A = 1


@pytest.mark.parametrize(
    ("given", "values"),
    [
        (range(5, 60, 5), range(5, 60, 5)),
        (range(60, 5, -5), range(60, 5, -5)),
        ([1, 2.5, "a", None, False], (1, 2.5, "a", None, False)),
        ((3, 1, 2), (3, 1, 2)),
        ({3, 1, 2}, (1, 2, 3)),
        (frozenset("ba"), ("a", "b")),
        (np.arange(3), (0, 1, 2)),
        (np.array([0.1, 0.2]), (0.1, 0.2)),
        ([np.int32(1), np.float64(0.5), np.bool_(0), np.str_("a")], (1, 0.5, False, "a")),
        (pd.Series([1, 2]), (1, 2)),
        (pd.Index(["a", "b"]), ("a", "b")),
        (7, (7,)),
        ("abc", ("abc",)),
        (None, (None,)),
    ],
)
def test_an_axis_is_plain_python_values(given: Any, values: Any) -> None:
    axis = axis_of("x", given)
    assert axis == Choices(values)
    assert isinstance(axis, Choices)
    assert [type(one) for one in axis.values] == [type(one) for one in values]  # noqa: PD011 - no pandas object


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "axis x=.* is empty: expected range"),
        (range(5, 5), "is empty"),
        (np.array([]), "is empty"),
        ([1, 2, 1], "axis x holds 1 twice"),
        ([1, 1.0], "axis x holds 1.0 twice"),
        ([0, False], "axis x holds False twice"),
        ([1, float("nan")], "holds nan: expected finite"),
        ([float("inf")], "holds inf: expected finite"),
        ([[1, 2]], r"holds \[1, 2\] \(list\): expected int, float, str, bool or None"),
        ({"a": 1}, r"\(dict\): expected int"),
        ((i for i in range(3)), r"\(generator\): expected int"),
        ([b"a"], r"\(bytes\)"),
        ([1j], r"\(complex\)"),
        ([Kind.A], r"\(Kind\)"),
        ([pd.Timestamp("2020-01-01")], r"\(Timestamp\)"),
        (np.zeros((2, 2)), r"\(ndarray\)"),
        ({1, "a"}, "cannot be sorted .*pass a list"),
        ([2**63], "beyond 64 bits"),
        (range(2**63, 2**63 + 2), "beyond 64 bits"),
    ],
)
def test_an_axis_that_cannot_be_listed_is_refused(given: Any, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        axis_of("x", given)


@pytest.mark.parametrize(
    "axis", [Choices(range(1, 9, 2)), Choices((1, 2.5, "a", None, False)), Uniform(1.0, 2.0, log=True)]
)
def test_an_axis_survives_the_wire(axis: Choices | Uniform) -> None:
    assert axis_from_wire("x", axis.to_wire()) == axis


def test_an_axis_of_another_version_is_refused() -> None:
    with pytest.raises(SpaceError, match="different versions"):
        axis_from_wire("x", {"normal": [0, 1]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 2, "high": 1}, "low below high"),
        ({"low": 1, "high": 1}, "low below high"),
        ({"low": float("nan"), "high": 1}, "finite"),
        ({"low": -1e308, "high": 1.7e308}, "low below high"),
        ({"low": "1", "high": 2}, "finite"),
        ({"low": True, "high": 2}, "finite"),
        ({"low": 0, "high": 1, "log": True}, "low above 0"),
    ],
)
def test_an_interval_without_meaning_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        uniform(**arguments)


@pytest.mark.parametrize(
    ("values", "dtype"), [((1, 2), "int64"), ((0.5,), "float64"), ((True,), "bool"), ((1, None), "O")]
)
def test_values_of_one_type_have_their_numpy_type(values: Any, dtype: str) -> None:
    array = Choices(values).array()
    assert array is not None
    assert array.dtype == dtype
