"""Results: every run of a sweep as one table, and what people ask of it."""

from __future__ import annotations

import html
import json
import platform
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runner import plots
from runner.engine.metrics import LOWER_IS_BETTER, METRICS, metric_name
from runner.errors import InputError, RunFailed
from runner.space import Space
from runner.spec import Execution

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go
    import pyarrow as pa

    from runner.engine.batch import RunError
    from runner.single import Backtest

TAKEN = frozenset({"symbol", "error", *METRICS})  # names of other columns, not free for a parameter
COUNTS = ("max_drawdown_bars", "trades")
SHOWN = ("sharpe", "total_return", "max_drawdown", "trades")  # beside the metric asked for, in cards and hover texts
SHOWN_ROWS = 5
SHOWN_KINDS = 3
MAX_ERROR_CHARS = 200  # the whole message and its traceback are in Results.errors

# A table of more cells than this is nearly empty (two continuous parameters) and takes gigabytes.
MAX_HEATMAP_CELLS = 10_000_000

PARQUET_KEY = b"backtest-runner"


class _Level(NamedTuple):
    """One level of the index: its values, and for each point the position of its value."""

    choices: list[Any]
    codes: np.ndarray


class Results:
    """The runs of one sweep. Nothing here changes once it is made; tables handed out may be changed freely.

    Rows come in run order: symbols as given, then the points of the space. A parameter named like a metric, or
    ``symbol`` or ``error``, appears in tables as ``params_<name>``, so that no table has two columns of one name.

    Args:
        name: the sweep's.
        symbols: in the order of the runs.
        space: the parameter points; run k is symbol ``k // len(space)`` at point ``k % len(space)``.
        execution: costs, fills and stops of every run.
        metrics: float64[len(symbols) * len(space), len(METRICS)]; NaN in the row of a failed run.
        errors: the failed runs, by run number.
        rerun: runs one point of one symbol again, here; None when the strategy or the prices are not at hand.
        elapsed_s: seconds from the call to the last outcome; None when unknown.
        cancelled: the sweep was ended early on purpose.
        done: bool, one per run; runs that are not done are no rows. None when all are.
    """

    def __init__(
        self,
        *,
        name: str,
        symbols: Sequence[str],
        space: Space,
        execution: Execution,
        metrics: np.ndarray,
        errors: Mapping[int, RunError],
        rerun: Callable[[str, dict[str, Any]], Backtest] | None = None,
        elapsed_s: float | None = None,
        cancelled: bool = False,
        done: np.ndarray | None = None,
    ) -> None:
        total = len(symbols) * len(space)
        if metrics.shape != (total, len(METRICS)):
            raise InputError(f"metrics has shape {metrics.shape}: expected one row a run, {(total, len(METRICS))}.")
        self.name, self.symbols, self.space, self.execution = name, tuple(symbols), space, execution
        self.elapsed_s, self.cancelled = elapsed_s, cancelled
        self._total, self._rerun = total, rerun
        self._runs = np.arange(total) if done is None else np.flatnonzero(done)
        partial = len(self._runs) < total
        self._metrics = metrics[self._runs] if partial else metrics.view()
        self._metrics.flags.writeable = False
        failed = np.array(sorted(errors), dtype=np.int64)
        failed = failed[np.isin(failed, self._runs)] if partial else failed
        self._errors = [errors[run] for run in failed.tolist()]
        self._failed_rows = np.searchsorted(self._runs, failed)

    def __len__(self) -> int:
        """How many runs are done: the rows of `frame`."""
        return len(self._runs)

    @property
    def frame(self) -> pd.DataFrame:
        """One row a run, indexed by (symbol, *parameters); a column a metric, and ``error``, missing unless it failed.

        ``trades`` and ``max_drawdown_bars`` are int64 when no run failed. Changing one frame leaves the next as it was.
        """
        return self._frame.copy(deep=False)

    @cached_property
    def _frame(self) -> pd.DataFrame:
        import pandas as pd

        frame = pd.DataFrame(self._metrics, index=self._index, columns=list(METRICS), copy=False)
        if not self._errors:
            for name in COUNTS:
                frame[name] = self._metrics[:, METRICS.index(name)].astype(np.int64)
        messages = np.full(len(self), None, dtype=object)
        messages[self._failed_rows] = [_one_line(error) for error in self._errors]
        frame["error"] = pd.Series(messages, index=frame.index, dtype=object)
        return frame

    @cached_property
    def _index(self) -> pd.MultiIndex:
        import pandas as pd

        levels, codes = [], list[Any]()
        for label in self._labels:
            level = self._level(label)
            levels.append(pd.Index(level.choices))
            codes.append(level.codes)
        return pd.MultiIndex(levels=levels, codes=codes, names=list(self._labels))

    @property
    def errors(self) -> pd.DataFrame:
        """The failed runs, indexed like `frame`: columns kind (the exception's class), message and traceback."""
        import pandas as pd

        columns = ("kind", "message", "traceback")
        texts = {name: [getattr(error, name) for error in self._errors] for name in columns}
        return pd.DataFrame(texts, index=self._index[self._failed_rows], columns=list(columns), dtype=object)

    def best(self, metric: str = "sharpe") -> pd.Series:
        """The best run's metrics; ``.name`` is its (symbol, *parameters). The earliest run wins a tie.

        Best is the largest, or the smallest of volatility, drawdown length and costs.

        Raises:
            RunFailed: no run has this metric: all failed, or the metric is NaN in each of them.
            InputError: the metric is unknown.
        """
        import pandas as pd

        name = metric_name(metric)
        rows = self._ranked(name, 1)
        if not len(rows):
            raise RunFailed(self._why_no_best(name))
        symbol, point = self._run(rows[0])
        return pd.Series(self._metrics[rows[0]], index=list(METRICS), name=(symbol, *point.values()))

    def top(self, n: int = 10, metric: str = "sharpe", *, ascending: bool | None = None) -> pd.DataFrame:
        """The n best rows of `frame`, best first, ties in run order; failed runs and NaN are left out.

        Args:
            n: how many rows at most.
            metric: what to rank by; names of backtesting.py and vectorbt work too.
            ascending: True puts the smallest first; None follows what is better for the metric.
        """
        if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
            raise InputError(f"top({n!r}): expected how many rows, a whole number of at least 1.")
        return self.frame.iloc[self._ranked(metric_name(metric), int(n), ascending=ascending)]

    def _ranked(self, name: str, n: int, *, ascending: bool | None = None) -> np.ndarray:
        """Rows of the n best values, best first; ties in run order."""
        up = name in LOWER_IS_BETTER if ascending is None else ascending
        values = self._values(name) if up else -self._values(name)
        rows = np.flatnonzero(~np.isnan(values))
        values = values[rows]
        if n < len(rows):  # a full sort of a million rows takes ten times as long
            candidates = values <= np.partition(values, n - 1)[n - 1]
            rows, values = rows[candidates], values[candidates]
        return rows[np.argsort(values, kind="stable")[:n]]

    def _values(self, name: str) -> np.ndarray:
        """One metric, a value a row; NaN where the run failed."""
        values = self._metrics[:, METRICS.index(name)].copy()
        values[self._failed_rows] = np.nan
        return values

    def _why_no_best(self, name: str) -> str:
        if not len(self):
            return f"{self.name}: no run is done yet, so none is best; wait for the first."
        if len(self._errors) == len(self):
            first = _one_line(self._errors[0])
            return f"{self.name}: every run failed, so none is best; see result.errors. The first with {first}"
        return f"{self.name}: {name} is NaN in every run (no trades, or no dispersion); choose another metric."

    def heatmap(
        self,
        x: str,
        y: str,
        metric: str = "sharpe",
        *,
        symbol: str | None = None,
        agg: str | Callable[[pd.Series], float] = "mean",
    ) -> pd.DataFrame:
        """One metric by two parameters: a row a value of x, a column a value of y, both ascending.

        Args:
            x: a parameter, or "symbol".
            y: another.
            metric: names of backtesting.py and vectorbt work too.
            symbol: only this one's runs; None takes all of them.
            agg: what makes one number of the runs that share a cell (further parameters, several symbols), as pandas'
                `groupby().agg` takes it. Failed runs and NaN are left out; a cell without a number is NaN.
        """
        import pandas as pd

        name, labels = metric_name(metric), [self._label(x), self._label(y)]
        if labels[0] == labels[1]:
            raise InputError(f"heatmap({x!r}, {y!r}): expected two different parameters.")
        levels = [self._level(label) for label in labels]
        if len(levels[0].choices) * len(levels[1].choices) > MAX_HEATMAP_CELLS:
            shape = " by ".join(f"{len(level.choices):,}" for level in levels)
            raise InputError(
                f"a heatmap of {shape} values would be nearly empty: bin result.frame with pandas.cut instead."
            )
        rows = self._rows_of(symbol)
        orders = [_ascending(level.choices) for level in levels]
        ranks = [np.argsort(order)[level.codes[rows]] for order, level in zip(orders, levels, strict=True)]
        table = pd.Series(self._values(name)[rows]).groupby(ranks).agg(agg).unstack()  # noqa: PD010 - one value a cell
        named = [
            _axis_index(label, [level.choices[order[rank]] for rank in axis])
            for label, level, order, axis in zip(labels, levels, orders, table.axes, strict=True)
        ]
        return table.set_axis(named[0], axis=0).set_axis(named[1], axis=1)

    def plot_heatmap(
        self,
        x: str,
        y: str,
        metric: str = "sharpe",
        *,
        symbol: str | None = None,
        agg: str | Callable[[pd.Series], float] = "mean",
    ) -> go.Figure:
        """`heatmap` drawn, its best cell marked; a plotly figure."""
        name = metric_name(metric)
        tables = {each: self.heatmap(x, y, each, symbol=symbol, agg=agg) for each in dict.fromkeys((name, *SHOWN))}
        only = symbol if symbol is not None else self.symbols[0] if len(self.symbols) == 1 else self.name
        return plots.plot_heatmap(tables, name, title=only)

    def replay(self, /, symbol: str | None = None, **params: Any) -> Backtest:
        """Run one point again, here, for its equity and trades, or under a debugger: a failed run raises its own error.

        Args:
            symbol: may be left out when there is one.
            **params: the point; what is not needed to tell it from the others may be left out.

        Raises:
            InputError: no run has these parameters, or several have; or the strategy or the prices are not at hand.
        """
        if self._rerun is None:
            raise InputError(
                f"{self.name} was loaded without its strategy and prices: use runner.backtest(strategy, bars, params)."
            )
        return self._rerun(*self._find(symbol, params))

    def to_parquet(self, path: str | Path) -> None:
        """Write every row to one Parquet file, the index as columns.

        The schema's metadata has, under ``backtest-runner``, JSON with name, symbols, execution, parameters, how many
        runs there were to do, and versions. A parameter whose values are of several types is written as JSON texts.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        columns = {label: _arrow(self._level(label)) for label in self._labels}
        for name in METRICS:
            columns[name] = pa.array(self._frame[name].to_numpy())
        columns["error"] = pa.array(self._frame["error"].to_numpy(), type=pa.string(), from_pandas=True)
        table = pa.table(columns).replace_schema_metadata({PARQUET_KEY: json.dumps(self._about())})
        # Floats hardly ever repeat: looking for repeats in them takes twice the time of all the rest.
        repeating = [name for name in columns if name in COUNTS or name not in METRICS]
        pq.write_table(table, path, compression="zstd", use_dictionary=repeating)

    def _about(self) -> dict[str, Any]:
        packages = ("backtest-runner", "numpy", "pandas", "pyarrow", "numba")
        return {
            "name": self.name,
            "symbols": self.symbols,
            "parameters": self.space.names,
            "execution": self.execution.to_wire(),
            "runs": self._total,
            "cancelled": self.cancelled,
            "elapsed_s": self.elapsed_s,
            "versions": {"python": platform.python_version(), **{name: version(name) for name in packages}},
        }

    def __repr__(self) -> str:
        lines = [f"Results {self.name!r}: {self._counts()}"]
        for row in self._ranked("sharpe", 1):
            symbol, point = self._run(row)
            sharpe = self._metrics[row, METRICS.index("sharpe")]
            lines.append(
                f"best sharpe {plots.show_number('sharpe', sharpe)}: {symbol} {plots.show_point(point)}".rstrip()
            )
        return "\n".join(lines + [f"{count:,} failed with {kind}" for kind, count, _ in self._failures()])

    def _repr_html_(self) -> str:
        rows = self._ranked("sharpe", SHOWN_ROWS)
        head = [*self._labels, *SHOWN]
        body = [self._cells(row) for row in rows]
        caption = f"{self._counts()}; {'best by sharpe:' if body else 'no run has a sharpe'}"
        failures = [
            f"<div>{count:,} failed with {html.escape(kind)}, first: <code>{html.escape(text)}</code></div>"
            for kind, count, text in self._failures()
        ]
        return "".join(
            [
                f"<div><strong>{html.escape(self.name)}</strong> {html.escape(caption)}</div>",
                _table(head, body) if body else "",
                *failures,
            ]
        )

    def _cells(self, row: int) -> list[str]:
        symbol, point = self._run(row)
        numbers = [plots.show_number(name, self._metrics[row, METRICS.index(name)]) for name in SHOWN]
        return [symbol, *map(plots.show_value, point.values()), *numbers]

    def _counts(self) -> str:
        text = f"{self._total:,} runs"
        if len(self) < self._total or self.cancelled:
            text = f"{len(self):,} of {text} ({'cancelled' if self.cancelled else 'so far'})"
        if self._errors:
            text += f", {len(self._errors):,} failed"
        return text if self.elapsed_s is None else f"{text}, {self.elapsed_s:,.1f} s"

    def _failures(self) -> list[tuple[str, int, str]]:
        """The commonest kinds of error: kind, how many runs, the first one's message."""
        counts = Counter(error.kind for error in self._errors).most_common(SHOWN_KINDS)
        firsts = {kind: next(error for error in self._errors if error.kind == kind) for kind, _ in counts}
        return [(kind, count, _one_line(firsts[kind])) for kind, count in counts]

    def _run(self, row: int) -> tuple[str, dict[str, Any]]:
        symbol, point = divmod(int(self._runs[row]), len(self.space))
        return self.symbols[symbol], self.space[point]

    # Names and places: a label is a level's name in tables, a level its values and each row's.

    @cached_property
    def _labels(self) -> dict[str, str]:
        """The index's names, and the parameter that each stands for."""
        labels = {"symbol": "symbol"}
        for name in self.space.names:
            label = name
            while label in TAKEN or (label != name and label in self.space.names):
                label = f"params_{label}"
            labels[label] = name
        return labels

    def _label(self, name: str) -> str:
        """The level for a parameter's own name or for its label."""
        if name in self._labels:
            return name
        for label, parameter in self._labels.items():
            if parameter == name:
                return label
        raise _unknown("parameter", name, self._labels)

    def _level(self, label: str) -> _Level:
        """A level with one code a row."""
        symbol, point = np.divmod(self._runs, len(self.space))
        if label == "symbol":
            return _Level(list(self.symbols), symbol)
        values, codes = self._axes[self._labels[label]]
        return _Level(values, codes[point])

    @cached_property
    def _axes(self) -> dict[str, _Level]:
        """By parameter, a level with one code a point."""
        columns = self.space.block(0, len(self.space))
        return {name: _factorize(columns[name]) for name in self.space.names}

    def _rows_of(self, symbol: str | None) -> slice | np.ndarray:
        if symbol is None:
            return slice(None)
        return np.flatnonzero(self._runs // len(self.space) == self._symbol_number(symbol))

    def _symbol_number(self, symbol: str) -> int:
        if symbol not in self.symbols:
            raise _unknown("symbol", symbol, self.symbols)
        return self.symbols.index(symbol)

    def _find(self, symbol: str | None, given: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        """The only point with these values; a million points take milliseconds once the axes are known."""
        if symbol is None and len(self.symbols) > 1:
            raise InputError(f"{self.name} ran several symbols: add symbol=, one of {_listing(self.symbols)}.")
        symbol = self.symbols[0 if symbol is None else self._symbol_number(symbol)]
        wanted = {self._labels[self._label(name)]: _plain(value) for name, value in given.items()}
        matches = np.ones(len(self.space), dtype=bool)
        for name, value in wanted.items():
            values, codes = self._axes[name]
            matches &= codes == (values.index(value) if value in values else -1)
        points = np.flatnonzero(matches)
        if len(points) == 1:
            return symbol, self.space[int(points[0])]
        raise InputError(self._no_such_point(wanted) if not len(points) else self._too_many(wanted, len(points)))

    def _no_such_point(self, wanted: Mapping[str, Any]) -> str:
        axes = {name: self._axes[name] for name in wanted}
        distance = sum(_distances(axis.choices, wanted[name])[axis.codes] for name, axis in axes.items())
        nearest = plots.show_point(self.space[int(np.argmin(distance))])
        ranges = "; ".join(f"{name} is {_span(axis.choices)}" for name, axis in axes.items())
        return f"no run has {plots.show_point(wanted)}: the nearest has {nearest}. Here {ranges}."

    def _too_many(self, wanted: Mapping[str, Any], count: int) -> str:
        which = f"have {plots.show_point(wanted)}" if wanted else "are there"
        missing = [name for name in self.space.names if name not in wanted and len(self._axes[name].choices) > 1]
        return f"{count:,} runs {which}: add {', '.join(missing)}."


def _factorize(column: Sequence[Hashable]) -> _Level:
    """Values in ascending order where they have one, and each row's."""
    values = list(dict.fromkeys(column))
    values = [values[i] for i in _ascending(values)]
    place = {value: i for i, value in enumerate(values)}
    return _Level(values, np.fromiter(map(place.__getitem__, column), dtype=np.int64, count=len(column)))


def _ascending(values: Sequence[Any]) -> np.ndarray:
    """Positions in ascending order; as they are when they cannot be compared (numbers beside texts or None)."""
    try:
        return np.array(sorted(range(len(values)), key=values.__getitem__), dtype=np.int64)
    except TypeError:
        return np.arange(len(values))


def _axis_index(label: str, choices: list[Any]) -> pd.Index:
    import pandas as pd

    index: pd.Index = pd.Index(choices, name=label, dtype=object if None in choices else None)  # else NaN for None
    return index


def _arrow(level: _Level) -> pa.ChunkedArray:
    import pyarrow as pa

    kinds = {type(value) for value in level.choices if value is not None}
    mixed = len(kinds) > 1 and kinds != {int, float}
    values = [json.dumps(value) for value in level.choices] if mixed else level.choices
    return pa.array(values).take(pa.array(level.codes))


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _distances(values: Sequence[Any], wanted: Any) -> np.ndarray:
    """How far each value is: numbers by the share of their range, anything else 0 or 1."""
    if _number(wanted) and all(map(_number, values)):
        numbers = np.asarray(values, dtype=float)
        distances: np.ndarray = np.abs(numbers - wanted) / (np.ptp(numbers) or 1.0)
        return distances
    return np.array([0.0 if value == wanted else 1.0 for value in values])


def _span(values: Sequence[Any]) -> str:
    if len(values) > SHOWN_ROWS and all(map(_number, values)):
        return f"{len(values):,} values from {plots.show_value(min(values))} to {plots.show_value(max(values))}"
    return _listing(values)


def _listing(values: Sequence[Any]) -> str:
    shown = ", ".join(map(plots.show_value, values[:SHOWN_ROWS]))
    return f"{shown} and {len(values) - SHOWN_ROWS:,} more" if len(values) > SHOWN_ROWS else shown


def _unknown(what: str, given: object, known: Iterable[str]) -> InputError:
    names = list(known)
    close = get_close_matches(str(given), names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected one of {_listing(names)}."
    return InputError(f"unknown {what} {given!r}: {hint}")


def _one_line(error: RunError) -> str:
    text = f"{error.kind}: {error.message}".split("\n", 1)[0]
    return text if len(text) <= MAX_ERROR_CHARS else text[: MAX_ERROR_CHARS - 1] + "…"


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    rows = [_row("th", head), *(_row("td", cells) for cells in body)]
    return f"<table>{''.join(rows)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
