from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from rich.console import Console, RenderableType

from runner import terminal


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
