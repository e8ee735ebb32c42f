from __future__ import annotations

import itertools
import json
import tracemalloc
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import runner
from runner.errors import SpaceError
from runner.space import Space

HUNDRED: Any = range(100)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.floats(-5, 5).map(lambda x: x + 0.25), st.sampled_from("abc")
)
AXIS = st.one_of(
    st.builds(range, st.integers(-9, 0), st.integers(1, 9), st.integers(1, 4)),
    st.lists(SCALARS, min_size=1, max_size=5, unique_by=lambda value: value),
    SCALARS,
)
AXES = st.dictionaries(st.sampled_from(["a", "b", "c", "n", "items"]), AXIS, max_size=4)


def listed(axis: Any) -> list[Any]:
    return list(axis) if isinstance(axis, range | list) else [axis]


def product(axes: dict[str, Any]) -> list[dict[str, Any]]:
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*map(listed, axes.values()))]


def bucket(modulus: int) -> Callable[[Any], bool]:
    """A condition without pattern that works for values of any type."""
    return lambda p: zlib.crc32(repr(sorted(map(str, p.values()))).encode()) % modulus != 0


def exact(points: list[dict[str, Any]]) -> list[list[tuple[str, type, Any]]]:
    """1, 1.0 and True are equal; a strategy can tell them apart."""
    return [[(name, type(value), value) for name, value in point.items()] for point in points]


@settings(deadline=None, max_examples=150)
@given(AXES, st.one_of(st.none(), st.integers(1, 5)))
def test_a_grid_is_the_product_of_its_axes_filtered(axes: dict[str, Any], modulus: int | None) -> None:
    condition = None if modulus is None else bucket(modulus)
    expected = [point for point in product(axes) if condition is None or condition(runner.where.Point(point))]
    if not expected:
        with pytest.raises(SpaceError, match="where leaves none"):
            runner.grid(where=condition, **axes)
        return
    space = runner.grid(where=condition, **axes)
    assert len(space) == len(expected)
    assert exact(list(space)) == exact(expected)
    assert exact([space[i] for i in range(-len(space), 0)]) == exact(expected)
    assert space.names == tuple(axes)


def some_space(axes: dict[str, Any], kind: str, modulus: int) -> Space:
    condition = bucket(modulus)
    if kind == "grid":
        return runner.grid(**axes)
    if kind == "filtered":
        first = list(product(axes)[0].values())
        return runner.grid(where=lambda p: condition(p) or list(p.values()) == first, **axes)
    if kind == "sample":
        return runner.sample(max(1, len(product(axes)) // 2), seed=modulus, **axes)
    return runner.sample(
        20, seed=modulus, where=condition, x=runner.uniform(1, 2), y=runner.uniform(1, 9, log=True), **axes
    )


KINDS = st.sampled_from(["grid", "filtered", "sample", "uniform"])


@settings(deadline=None, max_examples=150)
@given(AXES, KINDS, st.integers(2, 5), st.data())
def test_a_block_is_the_items_in_it(axes: dict[str, Any], kind: str, modulus: int, data: st.DataObject) -> None:
    space = some_space(axes, kind, modulus)
    start = data.draw(st.integers(0, len(space)))
    stop = data.draw(st.integers(start, len(space)))
    items = [space[i] for i in range(start, stop)]
    block = space.block(start, stop)
    assert list(block) == list(space.names)
    assert all(isinstance(column, list) and len(column) == stop - start for column in block.values())
    assert exact(space.rows(start, stop)) == exact(items)
    if space.names:
        assert exact([dict(zip(block, row, strict=True)) for row in zip(*block.values(), strict=True)]) == exact(items)


@settings(deadline=None, max_examples=150)
@given(AXES, KINDS, st.integers(2, 5))
def test_a_space_survives_the_wire(axes: dict[str, Any], kind: str, modulus: int) -> None:
    space = some_space(axes, kind, modulus)
    again = Space.from_wire(json.loads(json.dumps(space.to_wire(), allow_nan=False)))
    assert again == space
    assert again.digest == space.digest
    assert exact(list(again)) == exact(list(space))
    assert all(type(value) in (int, float, str, bool, type(None)) for point in again for value in point.values())


def test_the_digest_tells_points_order_and_names_apart() -> None:
    spaces = [
        runner.grid(a=[1, 2], b=[1, 2]),
        runner.grid(b=[1, 2], a=[1, 2]),
        runner.grid(a=[2, 1], b=[1, 2]),
        runner.grid(a=[1, 2], c=[1, 2]),
        runner.grid(a=[1.0, 2.0], b=[1, 2]),
        runner.grid(a=[1, 2], b=[1, 2], where=lambda p: p.a <= p.b),
        runner.sample(4, a=[1, 2], b=[1, 2]),
        runner.sample(4, seed=1, a=[1, 2], b=[1, 2]),
        runner.sample(3, a=[1, 2], b=[1, 2]),
    ]
    assert len({space.digest for space in spaces}) == len(set(spaces)) == len(spaces)
    assert spaces[0] != "space"


def test_a_space_is_the_same_on_every_platform() -> None:
    # Frozen: the client counts, the worker computes, and neither sends the points.
    drawn = runner.sample(3, seed=7, fast=range(5, 60), slow=[20, 40, 80], kind=["a", None])
    assert list(drawn) == [
        {"fast": 53, "slow": 80, "kind": None},
        {"fast": 23, "slow": 40, "kind": None},
        {"fast": 42, "slow": 80, "kind": "a"},
    ]
    interval = runner.sample(
        2, seed=7, stop=runner.uniform(0.01, 0.2, log=True), share=runner.uniform(-1, 1), n=[5, 10]
    )
    assert [(p["stop"].hex(), p["share"].hex(), p["n"]) for p in interval] == [
        ("0x1.102a3d8203813p-6", "-0x1.1851e06b5a4f0p-1", 5),
        ("0x1.23b83e947e804p-5", "-0x1.38c5080a75422p-1", 10),
    ]
    grid = runner.grid(fast=range(5, 9), slow=[6, 8], where=lambda p: p.fast < p.slow)
    assert grid.digest == "1eb87aac094517463fc76eba6b10d28005611bc8b9c0fefd30e6cd1ea24cb672"


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**63 - 1))
def test_a_sample_repeats_no_point_and_all_of_them_are_the_grid(a: int, b: int, seed: int) -> None:
    points = [tuple(point.values()) for point in runner.sample(a * b, seed=seed, a=range(a), b=range(b))]
    assert len(set(points)) == a * b
    half = runner.sample((a * b + 1) // 2, seed=seed, a=range(a), b=range(b))
    assert [tuple(point.values()) for point in half] == points[: len(half)]


def test_a_sample_reaches_every_corner_of_the_axes_evenly() -> None:
    space = runner.sample(5000, a=range(100), b=range(1000))
    columns = {name: np.array(column) for name, column in space.block(0, 5000).items()}
    assert np.bincount(columns["a"] // 10) == pytest.approx(500, rel=0.2)
    assert np.bincount(columns["b"] // 100) == pytest.approx(500, rel=0.2)
    assert abs(np.corrcoef(columns["a"], columns["b"])[0, 1]) < 0.05


def test_a_sample_of_a_filtered_space_is_of_points_let_through() -> None:
    space = runner.sample(50, a=range(20), b=range(20), where=lambda p: p.a < p.b)
    points = {tuple(point.values()) for point in space}
    assert len(points) == len(space) == 50
    assert all(a < b for a, b in points)
    every = runner.sample(190, a=range(20), b=range(20), where=lambda p: p.a < p.b)
    assert len(every) == 190


def test_uniform_draws_stay_in_their_interval_and_are_even() -> None:
    space = runner.sample(10_000, x=runner.uniform(-1, 3), y=runner.uniform(0.01, 100, log=True), k=["a", "b"])
    columns = space.block(0, 10_000)
    x, y = np.array(columns["x"], dtype=float), np.array(columns["y"], dtype=float)
    assert -1 <= x.min() < -0.99
    assert 2.99 < x.max() <= 3
    assert 0.01 <= y.min() < 0.0101
    assert 99 < y.max() <= 100
    assert np.histogram(x, 10)[0] == pytest.approx(1000, rel=0.15)
    assert np.histogram(np.log(y), 10)[0] == pytest.approx(1000, rel=0.15)
    assert columns["k"].count("a") == pytest.approx(5000, rel=0.06)


def test_a_sample_is_drawn_from_spaces_too_large_for_a_grid() -> None:
    space = runner.sample(1000, **dict.fromkeys(map(str, range(9)), HUNDRED))
    assert len({tuple(point.values()) for point in space}) == 1000
    with pytest.raises(SpaceError, match="at most 2\\*\\*62"):
        runner.sample(1000, **dict.fromkeys(map(str, range(10)), HUNDRED))


def test_parameters_may_be_named_like_the_arguments_of_others() -> None:
    assert runner.sample(2, n=[1, 2], seed=3).names == ("n",)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: runner.grid(a=[]), "axis a=.* is empty"),
        (
            lambda: runner.grid(a=range(10**5), b=range(10**5)),
            "10,000,000,000 points .a: 100,000, b: 100,000.*runner.sample",
        ),
        (lambda: runner.grid(a=runner.uniform(0, 1)), "axis a is an interval.*runner.sample"),
        (lambda: runner.sample(7, a=range(3), b=range(2)), r"sample\(7\): there are only 6 points"),
        (lambda: runner.sample(2), "there are only 1 points"),
        (lambda: runner.sample(7, a=range(9), where=lambda p: p.a > 3), "let through only 5 of all 9 points"),
        (lambda: runner.sample(0, a=[1]), "n=0: expected a whole number from 1"),
        (lambda: runner.sample(2.0, a=[1, 2]), "n=2.0"),  # type: ignore[arg-type]  # the point of the test
        (lambda: runner.sample(True, a=[1, 2]), "n=True"),
        (lambda: runner.sample(1, seed=-1, a=[1]), "seed=-1: expected"),
        (lambda: runner.sample(1, seed="a", a=[1]), "seed='a'"),  # type: ignore[arg-type]  # the point of the test
    ],
)
def test_a_space_that_cannot_be_is_refused(build: Callable[[], Space], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        build()


def test_a_hopeless_condition_on_draws_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runner.space.LEAST_TRIES", 10_000)
    with pytest.raises(SpaceError, match="let through only 0 of the first 10,000 draws"):
        runner.sample(5, x=runner.uniform(0, 1), where=lambda p: p.x > 2)


def test_a_grid_without_axes_is_one_point_without_parameters() -> None:
    space = runner.grid()
    assert (len(space), space[0], list(space), space.block(0, 1)) == (1, {}, [{}], {})
    assert Space.from_wire(space.to_wire()) == space


@pytest.mark.parametrize("i", [6, -7, 10**30])
def test_a_point_beyond_the_end_is_an_index_error(i: int) -> None:
    space = runner.grid(a=range(3), b=range(2))
    with pytest.raises(IndexError, match="of a space of 6 points"):
        space[i]


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (3, 2), (0, 7)])
def test_a_block_beyond_the_end_is_an_index_error(start: int, stop: int) -> None:
    with pytest.raises(IndexError, match="of a space of 6 points"):
        runner.grid(a=range(3), b=range(2)).block(start, stop)


def test_numpy_integers_are_indices() -> None:
    assert runner.grid(a=range(3))[np.int64(1)] == {"a": 1}


def test_a_billion_points_take_no_memory() -> None:
    tracemalloc.start()
    try:
        space = runner.grid(a=range(10**5), b=range(10**4))
        assert space[-1] == {"a": 10**5 - 1, "b": 10**4 - 1}
        assert space.block(5 * 10**8, 5 * 10**8 + 2) == {"a": [50_000, 50_000], "b": [0, 1]}
        assert len(space.to_wire()["runs"]) < 100
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000  # laid out it would be 16 GB


def test_the_wire_of_a_triangle_is_short() -> None:
    space = runner.grid(a=range(1000), b=range(1000), where=lambda p: p.a < p.b)
    assert len(json.dumps(space.to_wire())) < 6000


@pytest.mark.parametrize(
    "change",
    [
        {"axes": 3},
        {"axes": [["a", {"normal": [0, 1]}]]},
        {"axes": [["a", {"range": [0, 3, 1]}]]},
        {"runs": "!"},
        {"runs": ""},
        {"seed": "a"},
        {"seed": -1},
    ],
)
def test_a_wire_that_is_no_space_is_refused(change: dict[str, Any]) -> None:
    wire = runner.grid(a=range(4)).to_wire()
    with pytest.raises(SpaceError):
        Space.from_wire({**wire, **change})
    for name in wire:
        with pytest.raises(SpaceError, match="different versions"):
            Space.from_wire({key: value for key, value in wire.items() if key != name})


def test_repr_says_how_many_and_over_what() -> None:
    space = runner.grid(fast=range(5, 60), kind=["a", "b"])
    assert repr(space) == "<Space of 110 points over fast=range(5, 60), kind=['a', 'b']>"
    drawn = runner.sample(1, seed=3, x=runner.uniform(1, 2, log=True), y=list(range(9)))
    assert repr(drawn) == "<Space of 1 point drawn with seed 3 over x=uniform(1.0, 2.0, log=True), y=[0, 1, 2, 3, ...]>"
    assert repr(runner.grid()) == "<Space of 1 point over no parameters>"
