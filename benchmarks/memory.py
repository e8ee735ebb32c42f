"""Claim (c): a worker's memory is flat within 10 % between run 1,000 and run 1,000,000.

The sweep has three parameters: 50 fast and 200 slow averages, which a worker keeps once computed (10 MB), and 100 sizes
of the position. A grid of thousands of averages would fill that cache to its limit of 128 MiB, and measure the cache.
"""

from __future__ import annotations

import time
from typing import Any

import psutil

import runner
from benchmarks.measure import Row
from benchmarks.speedup import COSTS

TARGET = 0.10
FIRST_RUNS = 1_000


def sized_cross(bars: Any, fast: int, slow: int, size: float) -> Any:
    """A moving-average cross that holds a fraction of the equity."""
    return (bars.sma(fast) > bars.sma(slow)) * size


def children(client: runner.Client) -> list[psutil.Process]:
    """The worker's processes that run backtests."""
    family = psutil.Process(int(client.workers()["pid"].iloc[0])).children()
    return [child for child in family if "spawn_main" in " ".join(child.cmdline())]


def resident_mib(processes: list[psutil.Process]) -> float:
    """Of all of them."""
    return float(sum(process.memory_info().rss for process in processes)) / 2**20


def measure(client: runner.Client, *, sizes: int = 100) -> Row:
    """Memory after the first thousand runs of a sweep of a million, and after the last."""
    prices = runner.sample_data("SP500")
    space = runner.grid(fast=range(5, 55), slow=range(60, 260), size=[n / sizes for n in range(1, sizes + 1)])
    before, base = children(client), 0.0
    sweep = client.sweep(sized_cross, prices, space, execution=COSTS)
    while not (seen := sweep.progress()).ended:
        if not base and seen.done >= FIRST_RUNS:
            base = resident_mib(before)
        time.sleep(0.01)
    after = children(client)
    growth = resident_mib(after) / base - 1
    same = {process.pid for process in before} == {process.pid for process in after}
    return Row(
        claim=f"memory of two worker processes after {sweep.progress().done:,} runs, over after the first thousand",
        figure=f"{growth:+.1%}{'' if same else ' (a child was replaced)'}",
        target=f"within {TARGET:.0%}",
        reached=abs(growth) <= TARGET and same,
        made_of=f"{base:,.0f} MiB, then {resident_mib(after):,.0f} MiB",
    )
