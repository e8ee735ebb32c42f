"""Claim (d): 3,000 no-op Python functions, from the call to the table, at 5,000 a second or more."""

from __future__ import annotations

from typing import Any

import runner
from benchmarks.measure import Row, median, spread, timed

JOBS, TARGET = 3_000, 5_000.0


def nothing(bars: Any, job: int) -> Any:  # noqa: ARG001 - a no-op takes what it is given
    """Stay out of the market."""
    return bars.close < 0.0


def measure(client: runner.Client, *, repeats: int = 7) -> Row:
    """A job is a call of the function in a worker process, its row in the finished frame included."""
    prices = runner.sample_data("SP500")[:2]
    space = runner.grid(job=range(JOBS))

    def run() -> None:
        assert len(client.sweep(nothing, prices, space).result(progress=False).frame) == JOBS

    run()
    rates = [JOBS / timed(run) for _ in range(repeats)]
    return Row(
        claim=f"{JOBS:,} no-op Python functions through chunks, call to frame",
        figure=f"{spread(rates)} a second",
        target=f"{TARGET:,.0f} a second",
        reached=median(rates) >= TARGET,
        made_of=f"{spread([1000 * JOBS / rate for rate in rates])} ms for all",
    )
