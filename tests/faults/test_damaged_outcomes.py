"""Outcomes that were damaged on the server, by accident or on purpose: refused in words, and no notebook crashes."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from runner.engine.batch import RunError
from runner.engine.metrics import METRICS
from runner.outcomes import Outcome, encode
from tests.support import ROOT

DECODE = """
import random, sys
from collections import Counter
from pathlib import Path
from runner.errors import SweepError
from runner.outcomes import decode
from tests.faults.hostile import variants

blob, seed, count, canary = Path(sys.argv[1]).read_bytes(), int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
seen = Counter()
for damaged in variants(blob, seed, count, canary):
    try:
        outcome = decode(damaged)
        seen["read"] += all(float(column.sum()) is not None for column in outcome.columns)
    except SweepError:
        seen["refused"] += 1
print(seen["read"], seen["refused"])
"""


def decoded(tmp_path: Path, count: int) -> None:
    """Damaged outcomes in a process of their own: a segmentation fault is an exit code, not the end of the tests."""
    seed = secrets.randbelow(2**32)
    print(f"seed {seed}")  # noqa: T201 -- pytest shows it when the test fails
    outcome = Outcome(0, np.random.default_rng(1).random((len(METRICS), 200)), {3: RunError("E", "words", "trace")})
    (tmp_path / "blob").write_bytes(encode(outcome))
    arguments = [str(tmp_path / "blob"), str(seed), str(count), str(tmp_path / "canary")]
    done = subprocess.run(
        [sys.executable, "-c", DECODE, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    assert sum(map(int, done.stdout.split())) == count
    assert not (tmp_path / "canary").exists()


def test_damaged_outcomes_are_refused_in_words_and_crash_no_notebook(tmp_path: Path) -> None:
    decoded(tmp_path, 5_000)


@pytest.mark.chaos
@pytest.mark.timeout(900)
def test_a_hundred_thousand_damaged_outcomes_crash_no_notebook(tmp_path: Path) -> None:
    decoded(tmp_path, 100_000)
