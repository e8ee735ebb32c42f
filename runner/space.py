"""Parameter spaces: a grid or a random sample of one, pure and indexable. Point i is computed; no grid is laid out."""

from __future__ import annotations

import base64
import hashlib
import json
import operator
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, SupportsIndex

import numpy as np

from runner.axes import Axis, Choices, Uniform, axis_from_wire, axis_of, uniform
from runner.draws import Counters
from runner.errors import SpaceError
from runner.points import MAX_STREAM, Points
from runner.where import Condition, Filter

__all__ = ["Space", "grid", "sample", "uniform"]

MAX_POINTS = 10**9
ITERATION_BLOCK = 4096
# A condition that lets fewer than one in a thousand random draws through is better written as narrower axes.
TRIES_PER_POINT, LEAST_TRIES = 1000, 1_000_000


def grid(*, where: Condition | None = None, **axes: Any) -> Space:
    """Every combination of the axes, last one fastest, as itertools.product orders them.

    Args:
        where: keeps the points for which it is True. It is given one point p with its values as ``p.fast`` or
            ``p["fast"]``.
        axes: a range, list, tuple, set or array of int, float, str, bool or None, or a single value. No axes at all
            make a space of one point, for a strategy without parameters.

    Raises:
        SpaceError: an empty axis, a value twice or of another type, over 10**9 points, or none left by ``where``.
    """
    parsed = {name: axis_of(name, given) for name, given in axes.items()}
    for name, axis in parsed.items():
        if isinstance(axis, Uniform):
            raise SpaceError(
                f"axis {name} is an interval, which has no grid: use runner.sample(n, ...), or list values."
            )
    points = Points(parsed, None)
    if points.size > MAX_POINTS:
        raise SpaceError(
            f"the grid has {points.size:,} points ({_shape(parsed)}), at most {MAX_POINTS:,} are allowed: "
            "take larger steps, or draw some of them with runner.sample(n, ...)."
        )
    if where is None:
        return Space(points, *_one_run(points.size))
    starts, lengths, _ = Filter(where, points).runs(points.size)
    if not len(starts):
        raise SpaceError(f"where leaves none of the {points.size:,} points ({_shape(parsed)}): loosen it.")
    return Space(points, starts, lengths)


def sample(n: int, /, *, seed: int = 0, where: Condition | None = None, **axes: Any) -> Space:
    """Points drawn at random; the same seed gives the same points on every platform.

    Without intervals no point is drawn twice. With one, the draws are independent.

    Args:
        n: how many.
        seed: a whole number of at least 0.
        where: as in `grid`; n points that it lets through are drawn.
        axes: as in `grid`, or an interval ``runner.uniform(low, high, log=False)``.

    Raises:
        SpaceError: as `grid`, and when there are fewer than n points.
    """
    n, seed = _whole("n", n, 1, MAX_POINTS), _whole("seed", seed, 0, 2**63 - 1)
    parsed = {name: axis_of(name, given) for name, given in axes.items()}
    points = Points(parsed, seed)
    if points.size > MAX_STREAM:
        raise SpaceError(f"the axes make {points.size:,} points ({_shape(parsed)}), at most 2**62 can be drawn from.")
    if n > points.size:
        raise SpaceError(f"sample({n:,}): there are only {points.size:,} points ({_shape(parsed)}). Draw fewer.")
    if where is None:
        return Space(points, *_one_run(n))
    limit = max(LEAST_TRIES, TRIES_PER_POINT * n)
    starts, lengths, tried = Filter(where, points).runs(points.size, wanted=n, limit=limit)
    if lengths.sum() < n:
        tries = f"all {tried:,} points" if tried == points.size else f"the first {tried:,} draws"
        raise SpaceError(
            f"sample({n:,}): where let through only {int(lengths.sum()):,} of {tries}: "
            "draw fewer, loosen it, or narrow the axes."
        )
    return Space(points, starts, lengths)


class Space:
    """Numbered points: dictionaries from parameter to int, float, str, bool or None. Made by `grid` and `sample`.

    Attributes:
        names: the parameters, in the order given.
        digest: SHA-256 in hex of the points and their order.
    """

    __slots__ = ("_before", "_points", "_starts", "names")

    def __init__(self, points: Points, starts: Counters, lengths: Counters) -> None:
        """The counters starts[k]..starts[k]+lengths[k]-1 of the points, for each k in order."""
        self.names = tuple(points.axes)
        self._points = points
        self._starts = starts
        self._before = np.concatenate([[0], np.cumsum(lengths)])

    def __len__(self) -> int:
        return int(self._before[-1])

    def __getitem__(self, i: SupportsIndex) -> dict[str, Any]:
        """Point i; negative i count from the end."""
        position = operator.index(i)
        if not -len(self) <= position < len(self):
            raise IndexError(f"point {i} of a space of {len(self):,} points")
        position %= len(self)
        return self.rows(position, position + 1)[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self.points(0, len(self))

    def points(self, start: int, stop: int) -> Iterator[dict[str, Any]]:
        """Points start..stop-1 one after the other; a block of them is in memory at a time."""
        for first in range(start, stop, ITERATION_BLOCK):
            yield from self.rows(first, min(first + ITERATION_BLOCK, stop))

    def rows(self, start: int, stop: int) -> list[dict[str, Any]]:
        """Points start..stop-1, one dictionary each."""
        return self._points.rows(self._counters(start, stop))

    def block(self, start: int, stop: int) -> dict[str, list[Any]]:
        """Points start..stop-1 as one list of plain Python values for each parameter; {} when there are none."""
        return self._points.lists(self._counters(start, stop))

    @property
    def digest(self) -> str:
        """SHA-256 in hex."""
        # Over the runs themselves: zlib's output may differ between its versions.
        sha = hashlib.sha256(json.dumps(self._head(), sort_keys=True).encode())
        sha.update(self._packed_runs())
        return sha.hexdigest()

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values. A condition does not travel: what it let through does."""
        return {**self._head(), "runs": base64.b64encode(zlib.compress(self._packed_runs())).decode()}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Space:
        """The inverse of `to_wire`; raises SpaceError for anything else."""
        try:
            axes: dict[str, Axis] = {name: axis_from_wire(name, axis) for name, axis in wire["axes"]}
            packed = np.frombuffer(zlib.decompress(base64.b64decode(wire["runs"], validate=True)), dtype="<i8")
            gaps, lengths = packed.reshape(2, -1).astype(np.int64)
            seed = None if wire["seed"] is None else _whole("seed", wire["seed"], 0, 2**63 - 1)
        except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
            raise SpaceError(f"this is no space ({error!r}): client and worker run different versions.") from error
        points = Points(axes, seed)
        stops = np.cumsum(gaps + lengths)
        if not len(lengths) or (lengths < 1).any() or (gaps < 0).any() or stops[-1] > points.size:
            raise SpaceError("this is no space: its runs are not in order, or go beyond its axes.")
        return cls(points, stops - lengths, lengths)

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Space) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        axes = ", ".join(f"{name}={_shown(axis)}" for name, axis in self._points.axes.items())
        drawn = "" if self._points.seed is None else f"drawn with seed {self._points.seed} "
        return f"<Space of {len(self):,} point{'s'[: len(self) != 1]} {drawn}over {axes or 'no parameters'}>"

    def _head(self) -> dict[str, Any]:
        axes = [[name, axis.to_wire()] for name, axis in self._points.axes.items()]
        return {"axes": axes, "seed": self._points.seed}

    def _packed_runs(self) -> bytes:
        lengths = np.diff(self._before)
        gaps = np.diff(self._starts + lengths, prepend=0) - lengths
        return np.concatenate([gaps, lengths]).astype("<i8").tobytes()

    def _counters(self, start: int, stop: int) -> Counters:
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"points {start}..{stop} of a space of {len(self):,} points")
        first = int(np.searchsorted(self._before, start, side="right")) - 1
        last = int(np.searchsorted(self._before, stop, side="left"))
        counts = np.diff(np.clip(self._before[first : last + 1], start, stop))
        shifts = self._starts[first:last] - self._before[first:last]
        return np.arange(start, stop, dtype=np.int64) + np.repeat(shifts, counts).astype(np.int64, copy=False)


def _one_run(size: int) -> tuple[Counters, Counters]:
    return np.zeros(1, dtype=np.int64), np.array([size], dtype=np.int64)


def _shape(axes: Mapping[str, Axis]) -> str:
    return ", ".join(f"{name}: {len(axis.values):,}" for name, axis in axes.items() if isinstance(axis, Choices))


def _shown(axis: Axis) -> str:
    if isinstance(axis, Uniform):
        return f"uniform({axis.low}, {axis.high}{', log=True' if axis.log else ''})"
    if isinstance(axis.values, range):
        return repr(axis.values)
    shown = ", ".join(map(repr, axis.values[:4]))
    return f"[{shown}{', ...' if len(axis.values) > 4 else ''}]"


def _whole(name: str, given: Any, least: int, greatest: int) -> int:
    try:
        value = operator.index(given)
    except TypeError:
        value = least - 1
    if isinstance(given, bool) or not least <= value <= greatest:
        raise SpaceError(f"{name}={given!r}: expected a whole number from {least:,} to {greatest:,}.")
    return value
