"""Claim (c): a worker's memory is flat within 10 % between run 1,000 and run 1,000,000."""

from __future__ import annotations

import psutil

import runner
from benchmarks.measure import Row
from benchmarks.speedup import COSTS, grid
from runner import strategies

TARGET = 0.10


def children(client: runner.Client) -> list[psutil.Process]:
    """The worker's processes that run backtests."""
    family = psutil.Process(int(client.workers()["pid"].iloc[0])).children()
    return [child for child in family if "spawn_main" in " ".join(child.cmdline())]


def resident_mib(processes: list[psutil.Process]) -> float:
    """Of all of them."""
    return float(sum(process.memory_info().rss for process in processes)) / 2**20


def measure(client: runner.Client, *, runs: int = 1_000_000) -> Row:
    """Memory after the first thousand runs of a sweep of a million, and after the last."""
    prices = runner.sample_data("SP500")
    before, base = children(client), 0.0
    sweep = client.sweep(strategies.sma_cross, prices, grid(runs), execution=COSTS)
    for part in sweep:
        base = base or resident_mib(before) * (len(part) > 0)
    after = children(client)
    growth = resident_mib(after) / base - 1
    same = {process.pid for process in before} == {process.pid for process in after}
    return Row(
        claim=f"memory of two worker processes after {sweep.progress().done:,} runs, over after the first thousands",
        figure=f"{growth:+.1%}{'' if same else ' (a child was replaced)'}",
        target=f"within {TARGET:.0%}",
        reached=abs(growth) <= TARGET and same,
        made_of=f"{base:,.0f} MiB, then {resident_mib(after):,.0f} MiB",
    )
