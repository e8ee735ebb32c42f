"""What the commands print: tables of results, a heatmap of characters, the state of a deployment."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from runner.settings import starred

if TYPE_CHECKING:
    import pandas as pd

    from runner.fetching import Fetched
    from runner.results import Results
    from runner.stack import StackInfo
    from runner.store import Ledger

SHOWN = ("cagr", "sharpe", "max_drawdown", "trades", "win_rate")
PERCENT = frozenset({"total_return", "cagr", "volatility", "max_drawdown", "exposure", "win_rate", "expectancy"})
SHADES = " ░▒▓█"
# A square of the map is two characters wide; this fits a terminal of 80.
MAP_COLUMNS, MAP_ROWS = 32, 12
RECENT_SWEEPS = 20
# Of the shares of health, to fit a terminal of 80.
HEADINGS = {"cache_l1": "L1", "cache_l2": "L2", "http_requests": "HTTP", "http_attempts": "tries"}


def best_runs(results: Results, count: int, metric: str) -> RenderableType:
    """The best rows as a table."""
    top = results.top(count, metric)
    table = Table(title=f"best of {len(results):,} runs by {metric}", title_justify="left")
    if len(results.symbols) == 1:
        top = top.droplevel("symbol")
    for name in top.index.names:
        table.add_column(str(name), justify="right", style="cyan")
    columns = [metric, *(name for name in SHOWN if name != metric and name in top)]
    for name in columns:
        table.add_column(name, justify="right", style="bold" if name == metric else "")
    for index, row in zip(top.index, top[columns].itertuples(index=False), strict=True):
        point = index if isinstance(index, tuple) else (index,)
        cells = [number(name, value) for name, value in zip(columns, row, strict=True)]
        table.add_row(*(str(part) for part in point), *cells)
    return table


def fetched(found: Fetched) -> RenderableType:
    """What a fetch brought, a row a symbol, and why the rest could not be had."""
    from runner.bars import Bars
    from runner.columns import shown_time

    table = Table(title=repr(found)[1:-1], title_justify="left")
    for name in ("symbol", "rows", "from", "to", ""):
        table.add_column(name, overflow="fold")
    for symbol, value in found.items():
        stamps = value.time if isinstance(value, Bars) else value.index.as_unit("ns").asi8
        note = f"stale, of {found.stale[symbol]}" if symbol in found.stale else ""
        table.add_row(symbol, f"{len(value):,}", shown_time(stamps[0]), shown_time(stamps[-1]), note)
    for symbol, error in found.errors.items():
        table.add_row(symbol, "-", "", "", Text(str(error), style="red"))
    return table


def number(name: str, value: Any) -> str:
    """One metric as people write it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if name in PERCENT:
        return f"{value:,.1%}"
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.2f}"


def heatmap(frame: pd.DataFrame, metric: str) -> RenderableType:
    """A table of one metric by two parameters as shaded squares; neighbours share one when there are many."""
    import numpy as np

    rows = np.array_split(np.arange(frame.shape[0]), min(frame.shape[0], MAP_ROWS))
    columns = np.array_split(np.arange(frame.shape[1]), min(frame.shape[1], MAP_COLUMNS))
    values = frame.to_numpy(dtype=float)
    cells = np.array([[_mean(values[np.ix_(row, column)]) for column in columns] for row in rows])
    low, high = _span(cells)
    label = max(len(str(frame.index[row[0]])) for row in rows)
    lines: list[RenderableType] = [
        Text(f"{metric} by {frame.index.name} (down) and {frame.columns.name} (across)", style="italic")
    ]
    for row, line in zip(rows, cells, strict=True):
        text = Text(f"{frame.index[row[0]]!s:>{label}} ", style="dim")
        for cell in line:
            text.append(*_square(cell, low, high))
        lines.append(text)
    first, last = str(frame.columns[0]), str(frame.columns[-1])
    lines.append(Text(" " * label + f" {first}{last:>{2 * len(columns) - len(first)}}", style="dim"))
    lines.append(Text(f"{SHADES[1]} {low:.2f}   {SHADES[-1]} {high:.2f}", style="dim"))
    return Group(*lines)


def _mean(block: Any) -> float:
    import numpy as np

    known = block[~np.isnan(block)]
    return float(known.mean()) if known.size else math.nan


def _span(cells: Any) -> tuple[float, float]:
    import numpy as np

    known = cells[~np.isnan(cells)]
    return (float(known.min()), float(known.max())) if known.size else (math.nan, math.nan)


def _square(value: float, low: float, high: float) -> tuple[str, str]:
    if math.isnan(value):
        return "  ", ""
    share = (value - low) / (high - low) if high > low else 1.0
    shade = SHADES[1 + min(int(share * (len(SHADES) - 1)), len(SHADES) - 2)]
    return shade * 2, f"rgb({int(220 * (1 - share))},{int(60 + 140 * share)},70)"


def how_to_use(info: StackInfo) -> RenderableType:
    """What `runner up` says once everything answers."""
    lines = [
        f"server    {starred(info.url)}  (version {info.versions['server']})",
        f"workers   {info.workers} processes",
        *([f"Flower    {flower(info)}"] if info.flower_url else []),
        "",
        "notebook  import runner; client = runner.connect()",
        "shell     runner sweep sma_cross --data SP500 --grid fast=5:60 --grid slow=20:240:2 --where 'fast < slow'",
        "see       runner status",
        "stop      Ctrl-C here, or `runner down` anywhere",
    ]
    return _unwrapped("\n".join(lines))


def flower(info: StackInfo) -> str:
    """Flower's address and login."""
    return f"{info.flower_url}  (user {info.flower_user}, password {info.flower_password})"


def _unwrapped(text: str) -> Text:
    """Lines that are copied whole from a narrow terminal too."""
    return Text(text, no_wrap=True, overflow="ignore")


def status(url: str, ledger: Ledger, info: StackInfo | None) -> RenderableType:
    """Server, workers, queues and sweeps."""
    parts: list[RenderableType] = [
        _server(url, ledger),
        _workers(ledger),
        _queues(ledger),
        _health(ledger),
        _sweeps(ledger),
    ]
    if info and info.flower_url:
        parts.insert(1, _unwrapped(f"Flower    {flower(info)}"))
    return Group(*parts)


def _server(url: str, ledger: Ledger) -> Text:
    about: dict[str, Any] = ledger.server.info()
    version = about.get("valkey_version") or about["redis_version"]
    days, rest = divmod(int(about["uptime_in_seconds"]), 86_400)
    up = f"{days} d {rest // 3600:02}:{rest % 3600 // 60:02}"
    return _unwrapped(f"server    {starred(url)}  version {version}, up {up}, memory {about['used_memory_human']}")


def _workers(ledger: Ledger) -> Table:
    table = _table("workers", "name", "host", "pid", "queues", "slots", "Python", "heartbeat")
    for row in ledger.workers():
        queues, age = ", ".join(row["queues"]), f"{row['age_s']:.1f} s ago"
        table.add_row(
            *(str(row[key]) for key in ("name", "host", "pid")), queues, str(row["concurrency"]), row["python"], age
        )
    return table


def _queues(ledger: Ledger) -> Table:
    from runner.app import QUEUES

    table = _table("queues", "name", "messages", "slots")
    for queue in QUEUES:
        table.add_row(queue, f"{ledger.waiting(queue):,}", str(ledger.slots(queue)))
    return table


def _health(ledger: Ledger) -> Table:
    """Of all workers together since the server began, and of each that lives; below its target in red."""
    from runner.health import calls_saved, shares

    total, each = ledger.health()
    table = _table("health", "of", *(HEADINGS.get(share.name, share.name) for share in shares({})), "saved")
    for name, counts in {"all": total, **each}.items():
        cells = [Text(_share(share.value), style="red" if share.reached is False else "") for share in shares(counts)]
        table.add_row(name, *cells, f"{calls_saved(counts):,}")
    table.add_row("target", *(_share(math.nan if s.target is None else s.target) for s in shares({})), "", style="dim")
    return table


def _share(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.1%}"


def _sweeps(ledger: Ledger) -> Table:
    names = ledger.batches()
    title = "sweeps" if len(names) <= RECENT_SWEEPS else f"sweeps, the last {RECENT_SWEEPS} of {len(names):,}"
    table = _table(title, "name", "state", "done", "of", "failed", "runs/s")
    for name in names[:RECENT_SWEEPS]:
        seen = ledger.progress(name)
        rate = f"{seen.done / seen.elapsed_s:,.0f}" if seen.elapsed_s else "-"
        table.add_row(name, seen.state, f"{seen.done:,}", f"{seen.total:,}", f"{seen.failed:,}", rate)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim")
    for column in columns:
        table.add_column(column)
    return table
