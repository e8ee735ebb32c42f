"""Claim (a): two worker processes make 500,000 SMA crosses at least 1.8 times as fast as a plain loop in one process.

From the call in the client to the finished frame, against the same engine called in a loop in this process, which makes
no frame. Both sides alternate, so that a busy moment of the machine falls on both. What the machine itself allows is
measured too: two such loops at once, in two processes that share nothing, over one.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import runner
from benchmarks.measure import Row, median, spread, timed
from runner import strategies
from runner.engine.batch import run_batch

TARGET = 1.8
# A process of `limit`: says that it is ready, waits for its turn, prints its seconds.
LOOP = """
import sys, runner
from benchmarks import measure, speedup
prices = runner.sample_data("SP500")
speedup.loop(prices, speedup.grid(2_000))
print("ready", flush=True)
sys.stdin.readline()
print(measure.timed(lambda: speedup.loop(prices, speedup.grid(int(sys.argv[1])))))
"""
COSTS = runner.Execution(fees=0.001, slippage=0.0005)


def grid(runs: int) -> runner.Space:
    """``runs`` points: fast below 250, slow beyond, so that none is left out."""
    return runner.grid(fast=range(2, 252), slow=range(252, 252 + runs // 250))


def loop(prices: runner.Bars, space: runner.Space) -> None:
    """The same engine in this process, nothing around it."""
    points = ({"fast": fast, "slow": slow} for fast, slow in zip(*space.block(0, len(space)).values(), strict=True))
    outcome = run_batch(strategies.sma_cross, prices, points, COSTS)
    assert len(outcome.metrics) == len(space)


def swept(client: runner.Client, prices: runner.Bars, space: runner.Space) -> None:
    """From the call in the client to the finished frame."""
    frame = client.sweep(strategies.sma_cross, prices, space, execution=COSTS).result(progress=False).frame
    assert len(frame) == len(space)
    assert frame["error"].isna().all()


def limit(runs: int) -> float:
    """How many times as much two processes get done at once as one alone: 2 on two idle, independent cores."""
    return 2 * _slowest_of(1, runs) / _slowest_of(2, runs)


def _slowest_of(count: int, runs: int) -> float:
    """Seconds of the slowest of so many loops that begin at once, each in a process of its own."""
    with ExitStack() as stack:
        loops = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", LOOP, str(runs)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
                )
            )
            for _ in range(count)
        ]
        for each in loops:
            assert each.stdout is not None
            assert each.stdout.readline() == "ready\n"
        for each in loops:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        return max(float(each.communicate()[0]) for each in loops)


def measure(client: runner.Client, *, runs: int = 500_000, repeats: int = 5) -> Row:
    """``repeats`` pairs; the figure is the median of their ratios."""
    prices = runner.sample_data("SP500")
    loop(prices, grid(2_000))
    swept(client, prices, grid(2_000))
    space = grid(runs)
    alone, together, limits = [], [], []
    for _ in range(repeats):
        alone.append(timed(lambda: loop(prices, space)))
        together.append(timed(lambda: swept(client, prices, space)))
        limits.append(limit(runs // 5))
    ratios = [one / two for one, two in zip(alone, together, strict=True)]
    return Row(
        claim=f"{len(space):,} SMA crosses on {len(prices):,} bars, two workers over a plain loop in one process",
        figure=f"{spread(ratios)} x",
        target=f"{TARGET} x",
        reached=median(ratios) >= TARGET,
        made_of=f"loop {spread(alone)} s, client call to frame {spread(together)} s; "
        f"two loops at once make {spread(limits)} x here",
    )
