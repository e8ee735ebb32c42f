"""The promise of the first page, in a real kernel: cells as people type them, edited and run again."""

from __future__ import annotations

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import SECRET, Deployment

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


def run(cells: list[str]) -> list[list[nbformat.NotebookNode]]:
    """Each cell's outputs; raises what a cell raises."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
    return [cell.outputs for cell in notebook.cells]


@pytest.fixture(autouse=True)
def kernels_find_the_deployment(deployment: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNER_URL", deployment.url)
    monkeypatch.setenv("RUNNER_SECRET", SECRET)


def test_a_strategy_typed_edited_and_run_again_is_always_the_one_on_the_screen() -> None:
    outputs = run([SETUP, STRATEGY, SWEEP, EDITED, SWEEP, "sweep", AWAITED])
    first, second = (next(out.text for out in outputs[cell] if out.get("name") == "stdout") for cell in (2, 4))
    assert float(first) + float(second) == pytest.approx(1.0, abs=0.05)
    assert any("text/html" in out.get("data", {}) for out in outputs[4])
    assert "50 of" not in str(outputs[5])
    assert "10 of 10 runs" in str(outputs[5])
    assert "plotly" in str(outputs[6])
