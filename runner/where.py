"""Which points of a space a user's condition lets through, as runs of neighbours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runner.draws import Counters, permuted
from runner.errors import SpaceError
from runner.points import Points

Flags: TypeAlias = npt.NDArray[np.bool_]
Condition: TypeAlias = Callable[[Any], Any]

BLOCK = 2**17  # points whose columns are in memory at once
MAX_RUNS = 5_000_000  # 80 MB, and some 10 MB on the wire
MAX_ONE_BY_ONE = 50_000_000  # about a minute
PROBES = 256


class Point(Mapping[str, Any]):
    """Parameters by attribute and by item: ``p.fast``, ``p["fast"]``. In ``where`` they may be numpy columns."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.__dict__.update(values)  # so that a parameter wins over a method of Mapping, such as items

    def __getattr__(self, name: str) -> Any:
        close = get_close_matches(name, self.__dict__, n=1)
        hint = f": did you mean {close[0]!r}?" if close else f"; there are {', '.join(self.__dict__)}"
        raise AttributeError(f"no parameter {name!r}{hint}")

    def __getitem__(self, name: str) -> Any:
        return self.__dict__[name] if name in self.__dict__ else self.__getattr__(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)


class Filter:
    """A condition over a numbered stream of points.

    It is evaluated on whole numpy columns when that works and agrees with plain evaluation on some of the points, else
    point by point: ``p.fast < p.slow`` takes a hundredth of the time of ``p.fast < p.slow and p.n > 3``, at which numpy
    balks.
    """

    def __init__(self, where: Condition, points: Points) -> None:
        if not callable(where):
            raise SpaceError(f"where={where!r}: expected a function of one point, such as lambda p: p.fast < p.slow.")
        self._where, self._points = where, points

    def runs(
        self, total: int, *, wanted: int | None = None, limit: int | None = None
    ) -> tuple[Counters, Counters, int]:
        """Starts and lengths of the runs of points let through, in order, and how many points were tried.

        Args:
            total: the points are numbered 0..total-1.
            wanted: stop when so many were let through.
            limit: give up after so many points.
        """
        end = min(total, limit or total)
        vectorised = self._vectorises(end)
        if not vectorised and wanted is None and end > MAX_ONE_BY_ONE:
            raise SpaceError(
                f"where cannot be evaluated on numpy columns, and {end:,} points are too many to look at one by one: "
                "write & and | with brackets instead of 'and' and 'or', as in (p.fast < p.slow) & (p.n > 3)."
            )
        found, tried = _Runs(), 0
        step = BLOCK if wanted is None else min(BLOCK, wanted + PROBES)
        while tried < end and (wanted is None or found.points < wanted):
            stop = min(tried + step, end)
            found.add(tried, self._flags(np.arange(tried, stop), vectorised=vectorised))
            tried, step = stop, min(BLOCK, 2 * step)
        starts, lengths = found.joined(wanted)
        return starts, lengths, tried

    def _flags(self, counters: Counters, *, vectorised: bool) -> Flags:
        flags = self._at_once(counters) if vectorised else None
        if flags is not None:
            return flags
        return np.fromiter(map(self._one, self._points.rows(counters)), dtype=np.bool_, count=len(counters))

    def _vectorises(self, total: int) -> bool:
        spread = np.linspace(0, total - 1, PROBES // 2).astype(np.int64)
        scattered = permuted(np.arange(min(total, PROBES // 2)), total, 0)
        probes = np.unique(np.concatenate([spread, scattered]))
        plain = self._flags(probes, vectorised=False)
        flags = self._at_once(probes)
        return flags is not None and bool((flags == plain).all())

    def _at_once(self, counters: Counters) -> Flags | None:
        """None when the condition does not work on columns."""
        try:
            with np.errstate(all="raise"):  # where numpy would go on with inf, plain Python raises
                flags = self._where(Point(self._points.columns(counters)))
        except Exception:  # noqa: BLE001 - the user's code; point by point it raises again, if it is at fault
            return None
        good = isinstance(flags, np.ndarray) and flags.dtype == np.bool_ and flags.shape == counters.shape
        return flags if good else None

    def _one(self, values: dict[str, Any]) -> bool:
        try:
            flag = self._where(Point(values))
        except Exception as error:
            raise SpaceError(
                f"where raised {type(error).__name__}: {error} at the point {values}: expected a function of one point "
                "that returns True or False, such as lambda p: p.fast < p.slow."
            ) from error
        if isinstance(flag, bool | np.bool_):
            return bool(flag)
        raise SpaceError(
            f"where returned {flag!r} at the point {values}: expected True or False. "
            "Write 'not' rather than ~, and bool(...) around a number."
        )


class _Runs:
    """Collects runs block by block and joins those that touch."""

    def __init__(self) -> None:
        self.points = 0
        self._runs = 0
        self._starts: list[Counters] = []
        self._stops: list[Counters] = []

    def add(self, offset: int, flags: Flags) -> None:
        edges = np.flatnonzero(np.diff(flags, prepend=False, append=False)) + offset
        self._starts.append(edges[::2])
        self._stops.append(edges[1::2])
        self.points += int(np.count_nonzero(flags))
        self._runs += len(edges) // 2
        if self._runs > MAX_RUNS:
            raise SpaceError(
                f"where cuts the space into more than {MAX_RUNS:,} pieces: make the axes shorter, "
                "put the axis that it thins out first, or use a range with a step."
            )

    def joined(self, wanted: int | None) -> tuple[Counters, Counters]:
        starts, stops = np.concatenate(self._starts), np.concatenate(self._stops)
        apart = starts[1:] != stops[:-1]
        starts = starts[np.concatenate([[True], apart])[: len(starts)]]
        stops = stops[np.concatenate([apart, [True]])[-len(stops) :]] if len(stops) else stops
        lengths = stops - starts
        if wanted is not None and self.points > wanted:
            before = np.cumsum(lengths) - lengths
            kept = before < wanted
            starts, lengths = starts[kept], np.minimum(lengths[kept], wanted - before[kept])
        return starts, lengths
