"""Axes of a parameter space: a list of choices, or an interval to draw from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runner.errors import SpaceError

Scalar: TypeAlias = int | float | str | bool | None
Positions: TypeAlias = npt.NDArray[np.int64]

INT64 = 2**63
LIKE = "range(5, 60), [0.1, 0.2], a set, an array, or a single value"


@dataclass(frozen=True, slots=True)
class Choices:
    """A finite axis. A range stays a range: its values are computed, never listed."""

    values: range | tuple[Scalar, ...]

    def array(self) -> npt.NDArray[Any] | None:
        """The values with their common numpy type, as objects when they have none; None for a range."""
        if isinstance(self.values, range):
            return None
        kinds = {type(value) for value in self.values}
        if len(kinds) == 1 and kinds <= {int, float, bool, str}:
            return np.array(self.values)
        return self.objects()

    def objects(self) -> npt.NDArray[Any]:
        """The values as they are, in an array that can be indexed by many positions at once."""
        array = np.empty(len(self.values), dtype=object)
        array[:] = self.values
        return array

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values."""
        if isinstance(self.values, range):
            return {"range": [self.values.start, self.values.stop, self.values.step]}
        return {"values": list(self.values)}


@dataclass(frozen=True, slots=True)
class Uniform:
    """An interval that `sample` draws floats from, evenly, or evenly in the logarithm."""

    low: float
    high: float
    log: bool = False

    @property
    def octaves(self) -> float:
        """log2(high / low), rounded correctly: libraries differ in the last bit, and points must not."""
        with localcontext(prec=40):
            return float((Decimal(self.high) / Decimal(self.low)).ln() / Decimal(2).ln())

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"uniform": [self.low, self.high, self.log]}


Axis: TypeAlias = Choices | Uniform


def uniform(low: float, high: float, *, log: bool = False) -> Uniform:
    """An interval for `sample`: ``runner.sample(500, stop=runner.uniform(0.01, 0.2, log=True))``.

    Args:
        low: the least value.
        high: the greatest value, above low.
        log: draw evenly in the logarithm; low has to be above 0.
    """
    for name, value in (("low", low), ("high", high)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not math.isfinite(value):
            raise SpaceError(f"uniform({name}={value!r}): expected a finite number.")
    if not low < high or not math.isfinite(float(high) - float(low)):
        raise SpaceError(f"uniform({low!r}, {high!r}): expected low below high.")
    if log and low <= 0:
        raise SpaceError(f"uniform({low!r}, {high!r}, log=True): a logarithm needs low above 0.")
    return Uniform(float(low), float(high), bool(log))


def axis_of(name: str, given: Any) -> Axis:
    """The axis that a keyword of `grid` or `sample` stands for, or a SpaceError that names it."""
    if isinstance(given, Uniform):
        return given
    values = _listed(name, given)
    if not len(values):
        raise SpaceError(f"axis {name}={given!r} is empty: expected {LIKE}.")
    if isinstance(values, range):
        if max(abs(values[0]), abs(values[-1])) >= INT64:
            raise SpaceError(f"axis {name}={values!r} goes beyond 64 bits.")
        return Choices(values)
    seen: set[Scalar] = set()
    for value in values:
        if value in seen:
            raise SpaceError(f"axis {name} holds {value!r} twice: each run is one row, so list each value once.")
        seen.add(value)
    return Choices(values)


def axis_from_wire(name: str, wire: Mapping[str, Any]) -> Axis:
    """The inverse of `to_wire`."""
    [(kind, values)] = wire.items()
    if kind == "uniform":
        low, high, log = values
        return uniform(low, high, log=log)
    if kind not in ("range", "values"):
        raise SpaceError(f"axis {name} is of an unknown kind {kind!r}: client and worker run different versions.")
    return axis_of(name, range(*values) if kind == "range" else values)


def _listed(name: str, given: Any) -> range | tuple[Scalar, ...]:
    if isinstance(given, range):
        return given
    if isinstance(given, set | frozenset):
        try:
            given = sorted(given)
        except TypeError as error:
            raise SpaceError(f"axis {name}={given!r} cannot be sorted ({error}): pass a list.") from error
    if not isinstance(given, list | tuple) and getattr(given, "ndim", 0) == 1:  # an array, Series or Index
        given = given.tolist()
    if isinstance(given, list | tuple):
        return tuple(_scalar(name, value) for value in given)
    return (_scalar(name, given),)


def _scalar(name: str, given: Any) -> Scalar:
    value = given.item() if isinstance(given, np.generic) else given
    if type(value) not in (int, float, str, bool, type(None)):
        raise SpaceError(
            f"axis {name} holds {given!r} ({type(given).__name__}): expected int, float, str, bool or None. "
            f"An axis is {LIKE}; pass the name of anything else and look it up in the strategy."
        )
    if isinstance(value, float) and not math.isfinite(value):
        raise SpaceError(f"axis {name} holds {value!r}: expected finite numbers; None can stand for 'not set'.")
    if type(value) is int and abs(value) >= INT64:
        raise SpaceError(f"axis {name} holds {value!r}, which goes beyond 64 bits.")
    return value  # type: ignore[no-any-return]  # checked above
