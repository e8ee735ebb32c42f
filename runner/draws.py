"""Random numbers by counter: draw i is computed alone, and is the same on every platform.

Only integer arithmetic and the exactly rounded operations on floats are used. numpy's own generators would have to be
run from the start to reach draw i, and exp and log differ between machines in the last bit.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Counters: TypeAlias = npt.NDArray[np.int64]
Words: TypeAlias = npt.NDArray[np.uint64]
Floats: TypeAlias = npt.NDArray[np.float64]

GOLDEN = 0x9E3779B97F4A7C15
ROUNDS = 8  # four make a Luby-Rackoff permutation that cannot be told from a random one; twice that for small sizes
TAYLOR_TERMS = 14  # the rest is below 1e-17 for |x| <= log(2) / 2


def permuted(counters: Counters, size: int, seed: int) -> Counters:
    """Where each counter of 0..size-1 goes in the seed's permutation of 0..size-1.

    A Feistel network over a rectangle of at least size cells, walked until it lands inside: Black and Rogaway,
    "Ciphers with arbitrary finite domains" (2002).
    """
    rows = math.isqrt(size - 1) + 1 if size > 1 else 1
    columns = -(-size // rows)
    keys = _keys(seed, ROUNDS)
    cells = _shuffled(counters.astype(np.uint64), rows, columns, keys)
    while (outside := cells >= np.uint64(size)).any():
        cells[outside] = _shuffled(cells[outside], rows, columns, keys)
    return cells.astype(np.int64)


def unit(counters: Counters, seed: int, stream: int) -> Floats:
    """Floats in [0, 1), 53 bits each; streams of one seed are independent."""
    key = _keys(seed, stream + 1)[stream:]
    words = _mixed(_mixed(counters.astype(np.uint64) * np.uint64(GOLDEN) + key) ^ key)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def below(counters: Counters, seed: int, stream: int, size: int) -> Counters:
    """Whole numbers in 0..size-1."""
    return np.minimum((unit(counters, seed, stream) * size).astype(np.int64), size - 1)


def exp2(exponents: Floats) -> Floats:
    """2 to each power, with additions and multiplications only."""
    whole = np.floor(exponents + 0.5)
    x = (exponents - whole) * math.log(2)
    power = np.ones_like(x)
    for term in range(TAYLOR_TERMS, 0, -1):
        power = 1.0 + power * x / term
    return np.ldexp(power, whole.astype(np.int32))


def _shuffled(cells: Words, rows: int, columns: int, keys: Words) -> Words:
    height, width = np.uint64(rows), np.uint64(columns)
    row, column = cells // width, cells % width
    for i in range(0, ROUNDS, 2):
        row = (row + _mixed(column ^ keys[i]) % height) % height
        column = (column + _mixed(row ^ keys[i + 1]) % width) % width
    return row * width + column


def _keys(seed: int, count: int) -> Words:
    return _mixed(
        _mixed(np.array([seed], dtype=np.uint64)) + np.arange(1, count + 1, dtype=np.uint64) * np.uint64(GOLDEN)
    )


def _mixed(words: Words) -> Words:
    """Steele, Lea and Flood's SplitMix64 finaliser (2014)."""
    words = words + np.uint64(GOLDEN)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))
