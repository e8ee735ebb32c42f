"""Sweep a trading strategy over thousands of parameters and symbols with Celery workers, from a notebook.

Every name below loads the module that holds it on first use, so that `import runner` costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from runner.bars import Bars, sample_data
    from runner.client import Client, attach, connect
    from runner.errors import RunnerError
    from runner.handle import SweepHandle
    from runner.local import sweep
    from runner.results import Results
    from runner.samples import sample_series
    from runner.single import Backtest, backtest
    from runner.source import Source
    from runner.space import Space, grid, sample, uniform
    from runner.spec import Execution

__all__ = [
    "Backtest",
    "Bars",
    "Client",
    "Execution",
    "Results",
    "RunnerError",
    "Source",
    "Space",
    "SweepHandle",
    "__version__",
    "attach",
    "backtest",
    "connect",
    "grid",
    "sample",
    "sample_data",
    "sample_series",
    "sweep",
    "uniform",
]

__version__ = "0.1.0"

_HOME = {
    "Backtest": "single",
    "Bars": "bars",
    "Client": "client",
    "Execution": "spec",
    "Results": "results",
    "RunnerError": "errors",
    "Source": "source",
    "Space": "space",
    "SweepHandle": "handle",
    "attach": "client",
    "backtest": "single",
    "connect": "client",
    "grid": "space",
    "sample": "space",
    "sample_data": "bars",
    "sample_series": "samples",
    "sweep": "local",
    "uniform": "space",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(f"runner.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    try:  # submodules: runner.strategies, runner.local, ...
        return importlib.import_module(f"runner.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"runner.{name}":
            raise
    raise AttributeError(f"module 'runner' has no attribute {name!r}; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*__all__, "strategies"])
