"""Pictures. Each is a data function, tested by its numbers, and a thin drawing function; plotly loads on first use."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from runner.engine.metrics import LOWER_IS_BETTER

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

    from runner.single import Backtest

FRACTIONS = frozenset(
    {
        "total_return",
        "cagr",
        "volatility",
        "max_drawdown",
        "exposure",
        "win_rate",
        "expectancy",
        "best_trade",
        "worst_trade",
    }
)
WHOLE = frozenset({"trades", "max_drawdown_bars", "fees", "final_equity"})

# The value that is neither good nor bad; colours change there when a heatmap has both sides.
NEUTRAL = {
    **dict.fromkeys(("total_return", "cagr", "sharpe", "sortino", "calmar", "expectancy", "sqn"), 0.0),
    **dict.fromkeys(("best_trade", "worst_trade"), 0.0),
    "win_rate": 0.5,
    "profit_factor": 1.0,
}

# Above this many bars a browser draws SVG lines too slowly to pan and zoom.
MAX_SVG_BARS = 20_000

BLUE, GREEN, RED, ORANGE, GREY = "#1f5fa8", "#1a9850", "#d73027", "#f28e2b", "#9aa0a6"
MISSING = "#e4e6e9"  # cells without a run: white would read as neutral


def number_format(metric: str) -> str:
    """The format of a metric's numbers; d3, which plotly uses, and Python read it alike."""
    if metric in FRACTIONS:
        return ".1%"
    return ",.0f" if metric in WHOLE else ",.3f"


def show_number(metric: str, value: float) -> str:
    """A metric's value for people: ``12.3%``, ``0.612``, ``1,204``; ``n/a`` when there is none."""
    return "n/a" if math.isnan(value) else format(value, number_format(metric))


def show_point(point: Mapping[str, Any]) -> str:
    """Parameters for people: ``fast=12, slow=48``; floats to six digits."""
    return ", ".join(f"{name}={show_value(value)}" for name, value in point.items())


def show_value(value: object) -> str:
    """One parameter's value for people; floats to six digits."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


class Best(NamedTuple):
    """The cell with the best value: where it stands and what it is."""

    x: Any
    y: Any
    value: float


class HeatmapData(NamedTuple):
    """What a heatmap shows.

    Attributes:
        x: values along the horizontal axis.
        y: values along the vertical axis.
        z: float64[len(y), len(x)], the metric; NaN where no run has it.
        best: the best cell, the first in order of x, then y, on a tie; None when every cell is NaN.
        centre: the metric's neutral value when cells lie on both sides of it, else None.
        hover: len(y) rows of len(x) texts.
    """

    x: list[Any]
    y: list[Any]
    z: np.ndarray
    best: Best | None
    centre: float | None
    hover: list[list[str]]


def heatmap_data(tables: Mapping[str, pd.DataFrame], metric: str) -> HeatmapData:
    """The numbers of a heatmap.

    Args:
        tables: by metric, tables of one shape as `Results.heatmap` makes them: one row per horizontal value, one column
            per vertical value. All of them appear in the hover text.
        metric: the table to colour by.
    """
    table = tables[metric]
    values = table.to_numpy()
    x, y = table.index.tolist(), table.columns.tolist()
    best = None
    if not np.isnan(values).all():
        flat = int(np.nanargmin(values) if metric in LOWER_IS_BETTER else np.nanargmax(values))
        row, column = divmod(flat, len(y))
        best = Best(x[row], y[column], float(values[row, column]))
    neutral = NEUTRAL.get(metric)
    both_sides = neutral is not None and bool((values < neutral).any() and (values > neutral).any())
    return HeatmapData(x, y, values.T, best, neutral if both_sides else None, _hover(tables))


def _hover(tables: Mapping[str, pd.DataFrame]) -> list[list[str]]:
    table = next(iter(tables.values()))
    x_name, y_name = (_safe(name) for name in (table.index.name, table.columns.name))
    by_metric = {metric: each.to_numpy() for metric, each in tables.items()}
    return [
        [
            "<br>".join(
                [f"{x_name} {_safe(show_value(x))}, {y_name} {_safe(show_value(y))}"]
                + [f"{metric} {show_number(metric, values[i, j])}" for metric, values in by_metric.items()]
            )
            for i, x in enumerate(table.index)
        ]
        for j, y in enumerate(table.columns)
    ]


def plot_heatmap(tables: Mapping[str, pd.DataFrame], metric: str, *, title: str = "") -> go.Figure:
    """A heatmap of one metric, its best cell marked; for the arguments see `heatmap_data`."""
    import plotly.graph_objects as go

    data = heatmap_data(tables, metric)
    x_name, y_name = _safe(tables[metric].index.name), _safe(tables[metric].columns.name)
    (x, x_axis), (y, y_axis) = _axis(data.x), _axis(data.y)
    figure = go.Figure(
        go.Heatmap(
            x=x, y=y, z=_drawable(data.z), text=data.hover, hovertemplate="%{text}<extra></extra>",
            zmid=data.centre, colorscale="Viridis" if data.centre is None else "RdBu",
            reversescale=metric in LOWER_IS_BETTER,
            colorbar={"title": {"text": metric, "side": "right"}, "tickformat": _tick_format(metric)},
        )
    )  # fmt: skip
    subtitle = "no run has this metric"
    if data.best is not None:
        at = {x_name: data.best.x, y_name: data.best.y}
        subtitle = f"best {show_number(metric, data.best.value)} at {_safe(show_point(at))}"
        marker = {"symbol": "star", "size": 15, "color": "white", "line": {"color": "black", "width": 1.5}}
        figure.add_scatter(
            x=[x[data.x.index(data.best.x)]], y=[y[data.y.index(data.best.y)]],
            mode="markers", marker=marker, hoverinfo="skip", showlegend=False,
        )  # fmt: skip
    heading = f"{metric} by {x_name} and {y_name}" + (f" · {_safe(title)}" if title else "")
    figure.update_layout(
        template="plotly_white", plot_bgcolor=MISSING, height=560, margin={"t": 90, "b": 60, "r": 20},
        title={"text": heading, "subtitle": {"text": subtitle}},
    )  # fmt: skip
    figure.update_xaxes(title_text=x_name, showgrid=False, zeroline=False, **x_axis)
    figure.update_yaxes(title_text=y_name, showgrid=False, zeroline=False, **y_axis)
    return figure


def _axis(values: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
    """Evenly spaced numbers keep a numeric axis; anything else gets one cell of equal size a value."""
    if len(values) > 1 and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        steps = np.diff(np.asarray(values, dtype=float))
        if np.allclose(steps, steps[0]):
            margin = steps[0] / 2
            return list(values), {"type": "linear", "range": [values[0] - margin, values[-1] + margin]}
    return [_safe(show_value(value)) for value in values], {"type": "category", "range": [-0.5, len(values) - 0.5]}


def _drawable(z: np.ndarray) -> np.ndarray:
    """Infinite values (a profit factor without losses) take the largest finite colour; JSON has no infinity."""
    finite = z[np.isfinite(z)]
    return np.clip(z, finite.min(), finite.max()) if finite.size else np.full_like(z, np.nan)


def _tick_format(metric: str) -> str:
    return {".1%": ".0%", ",.3f": "~g"}.get(number_format(metric), "~s")


class Markers(NamedTuple):
    """Fills of one kind, to be drawn on the price."""

    time: np.ndarray
    price: np.ndarray
    hover: list[str]


class BacktestData(NamedTuple):
    """What the picture of one run shows; every array but those of the markers has one value per bar.

    Attributes:
        time: datetime64[ns], UTC, the bar's open.
        price: close.
        equity: account currency at the bar's close.
        hold: the same cash put into the asset at the first bar's close, without costs.
        drawdown: fraction below the running peak of equity, zero or negative.
        markers: by kind: ``long``, ``short`` (entries), ``gain``, ``loss`` (exits).
    """

    time: np.ndarray
    price: np.ndarray
    equity: np.ndarray
    hold: np.ndarray
    drawdown: np.ndarray
    markers: dict[str, Markers]


def backtest_data(run: Backtest) -> BacktestData:
    """The numbers of `plot_backtest`."""
    bars, trades = run.bars, run.trades
    closed = trades[~trades["open"].to_numpy(dtype=bool)]
    gains = closed["pnl"] > 0
    return BacktestData(
        time=bars.time.astype("datetime64[ns]"),
        price=bars.close,
        equity=run.equity.to_numpy(),
        hold=run.execution.cash * bars.close / bars.close[0],
        drawdown=run.drawdown.to_numpy(),
        markers={
            "long": _entries(trades[trades["side"] == "long"]),
            "short": _entries(trades[trades["side"] == "short"]),
            "gain": _exits(closed[gains]),
            "loss": _exits(closed[~gains]),
        },
    )


def _entries(trades: pd.DataFrame) -> Markers:
    hover = [f"{t.side} {t.units:,.6g} at {t.entry_price:,.6g}" for t in trades.itertuples()]
    return Markers(_times(trades["entry_time"]), trades["entry_price"].to_numpy(), hover)


def _exits(trades: pd.DataFrame) -> Markers:
    hover = [
        f"{t.exit_reason} at {t.exit_price:,.6g}<br>{t.pnl:+,.2f} ({t.gain:+.2%}), {t.bars:,} bars"
        for t in trades.rename(columns={"return": "gain"}).itertuples()
    ]
    return Markers(_times(trades["exit_time"]), trades["exit_price"].to_numpy(), hover)


def _times(times: pd.Series) -> np.ndarray:
    return times.to_numpy(dtype="datetime64[ns]")


def plot_backtest(run: Backtest) -> go.Figure:
    """One run: close with entries and exits, equity beside buy and hold, drawdown; see `backtest_data`."""
    from plotly.subplots import make_subplots

    data = backtest_data(run)
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.5, 0.3, 0.2])
    line = _line_maker(data.time)
    figure.add_trace(line(data.price, "close", color=GREY, hover="%{y:,.6~g}"), 1, 1)
    for kind, markers in data.markers.items():
        figure.add_trace(_marker_trace(kind, markers), 1, 1)
    figure.add_trace(line(data.hold, "buy and hold", color=GREY, hover="%{y:,.0f}"), 2, 1)
    figure.add_trace(line(data.equity, "equity", color=BLUE, hover="%{y:,.0f}"), 2, 1)
    figure.add_trace(line(data.drawdown, "drawdown", color=RED, hover="%{y:.1%}", fill="tozeroy"), 3, 1)
    figure.update_yaxes(title_text="price", row=1, col=1)
    figure.update_yaxes(title_text="equity", tickformat="~s", row=2, col=1)
    figure.update_yaxes(title_text="drawdown", tickformat=".0%", row=3, col=1)
    figure.update_xaxes(title_text="time (UTC)", row=3, col=1)
    figure.update_layout(
        template="plotly_white", height=760, margin={"t": 120, "b": 60, "r": 20},
        hovermode="x unified", hoversubplots="axis",
        title={"text": _heading(run), "subtitle": {"text": _summary(run)}},
        legend={"orientation": "h", "y": 1.01, "yanchor": "bottom", "x": 0.0, "xanchor": "left"},
    )  # fmt: skip
    return figure


def _line_maker(time: np.ndarray) -> Callable[..., go.Scatter | go.Scattergl]:
    import plotly.graph_objects as go

    kind = go.Scatter if len(time) <= MAX_SVG_BARS else go.Scattergl

    def line(values: np.ndarray, name: str, *, color: str, hover: str, fill: str | None = None) -> Any:
        pen = {"color": color, "width": 1.2}
        return kind(x=time, y=values, name=name, mode="lines", line=pen, fill=fill, hovertemplate=hover)

    return line


def _marker_trace(kind: str, markers: Markers) -> go.Scatter:
    import plotly.graph_objects as go

    name, symbol, color = {
        "long": ("long entry", "triangle-up", BLUE),
        "short": ("short entry", "triangle-down", ORANGE),
        "gain": ("exit with a gain", "circle", GREEN),
        "loss": ("exit with a loss", "x", RED),
    }[kind]
    return go.Scatter(
        x=markers.time, y=markers.price, text=markers.hover, name=name,
        mode="markers", showlegend=len(markers.time) > 0,
        marker={"symbol": symbol, "size": 8, "color": color, "line": {"color": "white", "width": 0.5}},
        hovertemplate="%{text}",
    )  # fmt: skip


def _heading(run: Backtest) -> str:
    return _safe(" · ".join(part for part in (run.bars.symbol, show_point(run.params)) if part) or "backtest")


def _summary(run: Backtest) -> str:
    names = ("total_return", "cagr", "sharpe", "max_drawdown", "trades")
    return " · ".join(f"{name} {show_number(name, float(run.stats[name]))}" for name in names)


def _safe(text: object) -> str:
    """Plotly reads a few HTML tags in its texts; a symbol or a parameter must not be one."""
    return html.escape(str(text), quote=False)
