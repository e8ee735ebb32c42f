from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner import draws

SEEDS = st.integers(0, 2**63 - 1)


@settings(deadline=None)
@given(st.integers(1, 3000), SEEDS)
def test_a_permutation_holds_every_number_once(size: int, seed: int) -> None:
    assert sorted(draws.permuted(np.arange(size), size, seed).tolist()) == list(range(size))


@settings(deadline=None)
@given(st.integers(1, 2**62), SEEDS, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_one_place_of_a_permutation_of_any_size_is_computed_alone(size: int, seed: int, at: list[int]) -> None:
    counters = np.array(at) % size
    together = draws.permuted(counters, size, seed)
    alone = [draws.permuted(counters[i : i + 1], size, seed)[0] for i in range(len(counters))]
    assert together.tolist() == alone
    assert ((together >= 0) & (together < size)).all()


def test_every_order_of_four_is_about_equally_likely() -> None:
    orders = [tuple(draws.permuted(np.arange(4), 4, seed).tolist()) for seed in range(4800)]
    counts = np.unique(orders, axis=0, return_counts=True)[1]
    assert len(counts) == 24
    assert 120 < counts.min() <= counts.max() < 290  # 200 each, standard deviation 14


def test_a_permutation_is_not_correlated_with_its_counters() -> None:
    size = 10_000
    for seed in range(5):
        permuted = draws.permuted(np.arange(size), size, seed)
        assert abs(np.corrcoef(np.arange(size), permuted)[0, 1]) < 0.05
        assert abs(np.corrcoef(permuted[1:], permuted[:-1])[0, 1]) < 0.05


def test_unit_draws_are_even_and_their_streams_independent() -> None:
    a, b = (draws.unit(np.arange(100_000), 1, stream) for stream in (0, 1))
    assert ((a >= 0) & (a < 1)).all()
    assert np.histogram(a, 20, (0, 1))[0] == pytest.approx(5000, rel=0.07)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.02
    assert abs(np.corrcoef(a[1:], a[:-1])[0, 1]) < 0.02


def test_whole_draws_cover_their_range_evenly() -> None:
    counts = np.bincount(draws.below(np.arange(70_000), 3, 0, 7), minlength=7)
    assert len(counts) == 7
    assert counts == pytest.approx(10_000, rel=0.05)


def test_draws_are_the_same_on_every_platform() -> None:
    # Frozen. The machine that asked for a sweep and the one that runs it must agree to the last bit.
    assert draws.permuted(np.arange(8), 1000, 42).tolist() == [245, 452, 19, 37, 251, 795, 884, 567]
    assert [value.hex() for value in draws.unit(np.arange(3), 42, 1).tolist()] == [
        "0x1.401cdc938df39p-1",
        "0x1.1a5177b744c8ep-1",
        "0x1.cca7b24c18c12p-1",
    ]
    assert [value.hex() for value in draws.exp2(np.array([0.1, -3.3, 20.5])).tolist()] == [
        "0x1.125fbee250664p+0",
        "0x1.9fdf8bcce533ep-4",
        "0x1.6a09e667f3bccp+20",
    ]


@settings(deadline=None)
@given(st.floats(-1000, 1000))
def test_exp2_is_a_power_of_two_to_the_last_bits(exponent: float) -> None:
    assert draws.exp2(np.array([exponent]))[0] == pytest.approx(math.exp2(exponent), rel=1e-14)
