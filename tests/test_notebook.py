"""The promise of the first page, in a real kernel: cells as people type them, edited and run again."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT, SECRET, Deployment

SETUP = """
import runner
prices = runner.sample_data("SP500")
client = runner.connect()
space = runner.grid(n=range(10, 60, 5))
"""
STRATEGY = """
def strategy(bars, n):
    return bars.close > bars.sma(n)
"""
SWEEP = """
sweep = client.sweep(strategy, prices, space)
result = sweep.result()
local = runner.sweep(strategy, prices, space, progress=False)
assert result.frame.equals(local.frame)
print(result.best("sharpe")["exposure"])
result
"""
EDITED = """
def strategy(bars, n):
    return bars.close < bars.sma(n)
"""
AWAITED = """
awaited = await client.sweep(strategy, prices, space)
assert awaited.frame.equals(result.frame)
awaited.replay(n=10).plot()
"""


def run(cells: list[str], folder: Path) -> list[list[nbformat.NotebookNode]]:
    """Each cell's outputs; raises what a cell raises."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=60, kernel_name="python3", resources=resources).execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.fixture(autouse=True)
def kernels_find_the_deployment(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_URL", deployment.url)
    monkeypatch.setenv("RUNNER_SECRET", SECRET)


def test_a_strategy_typed_edited_and_run_again_is_always_the_one_on_the_screen(tmp_path: Path) -> None:
    outputs = run([SETUP, STRATEGY, SWEEP, EDITED, SWEEP, "sweep", AWAITED], tmp_path)
    first, second = (next(out.text for out in outputs[cell] if out.get("name") == "stdout") for cell in (2, 4))
    assert float(first) + float(second) == pytest.approx(1.0, abs=0.05)
    assert any("text/html" in out.get("data", {}) for out in outputs[4])
    assert "50 of" not in str(outputs[5])
    assert "10 of 10 runs" in str(outputs[5])
    assert "plotly" in str(outputs[6])


def test_the_code_of_the_readme_runs_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks) == 2
    run([block.replace('"sma-cross-sp500-7f3a"', "sweep.id") for block in blocks], tmp_path)
    assert (tmp_path / "result.parquet").stat().st_size > 100_000
