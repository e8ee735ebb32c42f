"""Claim: `import runner` costs less than 0.35 s over bare Python."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.measure import Row, spread, timed

TARGET_S = 0.35


def measure(*, repeats: int = 15) -> Row:
    """Fresh processes, alternating; the figure is the difference of the fastest ones."""
    bare, ours = [], []
    for _ in range(repeats):
        bare.append(timed(lambda: subprocess.run([sys.executable, "-c", ""], check=True)))
        ours.append(timed(lambda: subprocess.run([sys.executable, "-c", "import runner"], check=True)))
    cost_s = min(ours) - min(bare)
    return Row(
        claim="`import runner` over bare Python",
        figure=f"{cost_s:.3f} s",
        target=f"below {TARGET_S} s",
        reached=cost_s < TARGET_S,
        made_of=f"{spread(ours)} s, bare {spread(bare)} s",
    )
