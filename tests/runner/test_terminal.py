from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console, RenderableType

import runner
from runner import terminal
from runner.errors import SymbolUnknown
from runner.fetching import Fetched
from runner.store import Ledger

WORKER = {"host": "here", "pid": 1, "concurrency": 8, "python": "3.11"}


def printed(what: RenderableType) -> str:
    console = Console(width=100, color_system=None)
    with console.capture() as capture:
        console.print(what)
    return capture.get()


def table(values: np.ndarray) -> pd.DataFrame:
    rows = pd.Index(np.arange(values.shape[0]), name="fast")
    return pd.DataFrame(values, index=rows, columns=pd.Index(np.arange(values.shape[1]) + 100, name="slow"))


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("cagr", 0.0641, "6.4%"),
        ("total_return", 12.5, "1,250.0%"),
        ("sharpe", 0.593, "0.59"),
        ("trades", 1234, "1,234"),
        ("trades", 9.0, "9"),
        ("sharpe", math.nan, "-"),
        ("final_equity", 104_321.5, "104,321.50"),
        ("profit_factor", math.inf, "inf"),
    ],
)
def test_metrics_are_written_as_people_do(name: str, value: float, text: str) -> None:
    assert terminal.number(name, value) == text


def test_the_heatmap_is_darkest_at_its_best_and_blank_where_nothing_ran() -> None:
    lines = printed(terminal.heatmap(table(np.array([[0.0, 1.0], [math.nan, 0.5]])), "sharpe")).splitlines()
    assert lines[0].strip() == "sharpe by fast (down) and slow (across)"
    assert lines[1] == "0 ░░██"
    assert lines[2] == "1   ▒▒" or lines[2] == "1   ▓▓"
    assert lines[-1].split() == ["░", "0.00", "█", "1.00"]


def test_a_large_heatmap_fits_a_terminal() -> None:
    rows, columns = np.meshgrid(np.arange(300), np.arange(500), indexing="ij")
    lines = printed(terminal.heatmap(table((rows + columns).astype(float)), "sharpe")).splitlines()
    assert len(lines) == terminal.MAP_ROWS + 3
    assert max(map(len, lines)) <= 80
    assert lines[1][4:6] == "░░"
    assert lines[terminal.MAP_ROWS].endswith("██")


@pytest.mark.parametrize("value", [1.0, math.nan])
def test_a_heatmap_without_dispersion_or_numbers_is_still_drawn(value: float) -> None:
    assert "sharpe by" in printed(terminal.heatmap(table(np.full((2, 2), value)), "sharpe"))


def test_a_fetch_is_a_row_a_symbol_with_what_failed_and_what_is_old() -> None:
    found = Fetched()
    found["SP500"] = runner.sample_data("SP500")
    found["VIX"] = runner.sample_series("VIX")
    found.stale["VIX"] = pd.Timestamp("2026-01-02", tz="UTC")
    found.errors["X"] = SymbolUnknown("binance: X: unknown")
    lines = printed(terminal.fetched(found)).splitlines()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert lines[0].strip() == "2 symbols fetched, 1 failed, 1 stale"
    assert rows[0][:4] == ["SP500", "5,031", "1999-01-04", "2018-12-31"]
    assert rows[1][0] == "VIX"
    assert "2026-01-02" in rows[1][4]
    assert "binance: X: unknown" in rows[2][4]


def test_status_shows_health_against_its_targets(ledger: Ledger, url: str) -> None:
    ledger.beat("w@here", {**WORKER, "name": "w@here", "queues": ["fetch"]})
    ledger.server.hset(
        "runner:health", mapping={"cache_requests": 10, "cache_loads": 1, "tasks_ok": 3, "tasks_lost": 1}
    )
    text = printed(terminal.status(url, ledger, None))
    [everyone] = [line.split("│") for line in text.splitlines() if line.startswith("│ all")]
    assert [cell.strip() for cell in everyone[2:-1]] == ["90.0%", "0.0%", "0.0%", "-", "-", "75.0%", "9"]
    assert "80.0%" in text
    assert "99.0%" in text
