from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runner.engine.batch import RunError
from runner.engine.metrics import METRICS
from runner.outcomes import Outcome, decode, encode

floats = st.floats(allow_nan=True, allow_infinity=True)
errors = st.builds(RunError, kind=st.text(max_size=5), message=st.text(max_size=20), traceback=st.text(max_size=20))


@given(
    start=st.integers(0, 10**9),
    fill=st.lists(floats, min_size=1, max_size=20),
    failed=st.dictionaries(st.integers(0, 10**9), errors),
)
def test_an_outcome_comes_back_to_the_last_bit(start: int, fill: list[float], failed: dict[int, RunError]) -> None:
    metrics = np.outer(np.array(fill), np.ones(len(METRICS)))
    back = decode(encode(Outcome(start, metrics, failed)))
    assert (back.start, back.stop) == (start, start + len(fill))
    assert back.metrics.tobytes("C") == metrics.tobytes("C")
    assert back.errors == failed


def test_a_million_equal_tracebacks_stay_small() -> None:
    error = RunError("ValueError", "no", "Traceback ...\n" * 100)
    blob = encode(Outcome(0, np.full((10_000, len(METRICS)), np.nan), dict.fromkeys(range(10_000), error)))
    assert len(blob) < 500_000
