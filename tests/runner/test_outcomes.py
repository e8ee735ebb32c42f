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
    columns = [np.array(fill) for _ in METRICS]
    back = decode(encode(Outcome(start, columns, failed)))
    assert (back.start, back.stop) == (start, start + len(fill))
    assert [column.tobytes() for column in back.columns] == [column.tobytes() for column in columns]
    assert back.errors == failed


def test_a_million_equal_tracebacks_stay_small() -> None:
    error = RunError("ValueError", "no", "Traceback ...\n" * 100)
    columns = [np.full(10_000, np.nan) for _ in METRICS]
    blob = encode(Outcome(0, columns, dict.fromkeys(range(10_000), error)))
    assert len(blob) < 500_000
