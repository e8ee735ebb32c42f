"""The numbered points that axes make: counter in, values out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runner import draws
from runner.axes import Axis, Choices, Scalar, Uniform
from runner.draws import Counters

MAX_STREAM = 2**62  # counters are 64-bit


class Points:
    """Without a seed counter i is point i of the full grid, last axis fastest; with one it is the seed's draw i.

    Attributes:
        axes: by parameter.
        seed: of the draws, or None.
        size: how many counters there are; an interval makes as many as there can be.
    """

    __slots__ = ("_listed", "axes", "seed", "size")

    def __init__(self, axes: Mapping[str, Axis], seed: int | None) -> None:
        self.axes = dict(axes)
        self.seed = seed
        choices = {name: axis for name, axis in axes.items() if isinstance(axis, Choices)}
        self.size = (
            math.prod(len(axis.values) for axis in choices.values()) if len(choices) == len(axes) else MAX_STREAM
        )
        self._listed = {name: axis.objects() for name, axis in choices.items() if isinstance(axis.values, tuple)}

    def lists(self, counters: Counters) -> dict[str, list[Scalar]]:
        """Plain Python values, one list for each parameter."""
        at = self._coordinates(counters)
        return {name: _values(axis, at[name], self._listed.get(name)).tolist() for name, axis in self.axes.items()}

    def rows(self, counters: Counters) -> list[dict[str, Scalar]]:
        """Plain Python values, one dictionary for each point."""
        if not self.axes:
            return [{} for _ in counters]
        return [dict(zip(self.axes, row, strict=True)) for row in zip(*self.lists(counters).values(), strict=True)]

    def columns(self, counters: Counters) -> dict[str, npt.NDArray[Any]]:
        """One numpy column for each parameter, of its values' own type where they have one."""
        at = self._coordinates(counters)
        return {name: _values(axis, at[name], _typed(axis)) for name, axis in self.axes.items()}

    def _coordinates(self, counters: Counters) -> dict[str, npt.NDArray[Any]]:
        """For each parameter the positions on its axis, or the values themselves when it is an interval."""
        if self.seed is not None:
            if any(isinstance(axis, Uniform) for axis in self.axes.values()):
                return {name: _drawn(axis, counters, self.seed, i) for i, (name, axis) in enumerate(self.axes.items())}
            counters = draws.permuted(counters, self.size, self.seed)
        at: dict[str, npt.NDArray[Any]] = {}
        for name, axis in reversed(self.axes.items()):
            length = len(axis.values) if isinstance(axis, Choices) else 1
            rest = counters // length
            at[name] = counters - rest * length
            counters = rest
        return at


def _values(axis: Axis, at: npt.NDArray[Any], listed: npt.NDArray[Any] | None) -> npt.NDArray[Any]:
    if listed is not None:
        return np.asarray(listed[at])
    if isinstance(axis, Choices) and isinstance(axis.values, range):
        return np.asarray(axis.values.start + at * axis.values.step)
    return at


def _typed(axis: Axis) -> npt.NDArray[Any] | None:
    return axis.array() if isinstance(axis, Choices) else None


def _drawn(axis: Axis, counters: Counters, seed: int, stream: int) -> npt.NDArray[Any]:
    if isinstance(axis, Choices):
        return draws.below(counters, seed, stream, len(axis.values))
    share = draws.unit(counters, seed, stream)
    if axis.log:
        return np.clip(axis.low * draws.exp2(share * axis.octaves), axis.low, axis.high)
    return np.clip(axis.low + share * (axis.high - axis.low), axis.low, axis.high)
