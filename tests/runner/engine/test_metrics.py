import subprocess
import sys

import pytest

from runner.engine import metrics
from runner.engine.metrics import ALIASES, LOWER_IS_BETTER, METRICS, metric_name
from runner.errors import InputError


@pytest.mark.parametrize("name", METRICS)
def test_every_metric_has_a_formula_in_the_docstring(name: str) -> None:
    assert metrics.__doc__ is not None
    assert any(line.startswith(f"{name} ") for line in metrics.__doc__.splitlines())


def test_aliases_and_directions_name_metrics() -> None:
    assert set(ALIASES.values()) | LOWER_IS_BETTER <= set(METRICS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [("sharpe", "sharpe"), ("Sharpe Ratio", "sharpe"), ("# trades", "trades"), ("MAX. DRAWDOWN [%]", "max_drawdown")],
)
def test_names_and_aliases_are_found_whatever_their_case(given: str, expected: str) -> None:
    assert metric_name(given) == expected


def test_an_unknown_metric_is_offered_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'sharp'.*did you mean 'sharpe'"):
        metric_name("sharp")
    with pytest.raises(InputError, match="the metrics are total_return, cagr"):
        metric_name("zzz")


def test_names_load_neither_numba_nor_pandas() -> None:
    code = "import sys, runner.engine.metrics; print(*{'numba', 'pandas'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == ""
