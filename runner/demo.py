"""`runner demo`: the main job, end to end: a sweep of the S&P 500 by real Celery workers over a real server."""

from __future__ import annotations

import time

from rich.console import Console
from rich.text import Text

import runner
from runner import stack, strategies, terminal

FEES, SLIPPAGE = 0.001, 0.0005


def demo(console: Console) -> None:
    """Run it on the stack or deployment that is there, else on one that ends with the demo."""
    prices = runner.sample_data("SP500")
    space = runner.grid(fast=range(5, 81), slow=range(20, 310, 2), where=lambda p: p.fast < p.slow)
    execution = runner.Execution(fees=FEES, slippage=SLIPPAGE)
    console.print(f"{len(space):,} backtests of a moving-average cross on {len(prices):,} days of the S&P 500,")
    console.print(f"with {FEES:.2%} fees and {SLIPPAGE:.2%} slippage an order.\n")
    console.print("Starting a server, workers and Flower here, unless they run already ...")
    with runner.connect(start=True) as client:
        _say_where(console, client)
        began = time.perf_counter()
        sweep = client.sweep(strategies.sma_cross, prices, space, execution=execution)
        results = sweep.result()
        took_s = time.perf_counter() - began
    console.print(
        f"\n{len(results):,} runs in {took_s:.1f} s: {len(results) / took_s:,.0f} runs a second.\n", style="bold"
    )
    console.print(terminal.best_runs(results, 5, "sharpe"))
    console.print(terminal.heatmap(results.heatmap("fast", "slow", "sharpe"), "sharpe"))
    _compare(console, results, prices, execution)


def _say_where(console: Console, client: runner.Client) -> None:
    info = stack.running()
    console.print(f"Server {client.url}, {client.workers()['concurrency'].sum()} worker processes.")
    if info and info.flower_url:
        console.print(Text(f"Flower, to watch them: {terminal.flower(info)}\n"), soft_wrap=True)


def _compare(console: Console, results: runner.Results, prices: runner.Bars, execution: runner.Execution) -> None:
    best = results.best("sharpe")
    hold = runner.backtest(strategies.buy_and_hold, prices, execution=execution).stats
    console.print("\nBest run against buy and hold, same costs:", style="bold")
    for name in ("sharpe", "cagr", "max_drawdown"):
        console.print(f"  {name:13} {terminal.number(name, best[name]):>8}   {terminal.number(name, hold[name]):>8}")
    console.print(
        f"The best of {len(results):,} tries looks better than it is; try it on prices that it has not seen.\n\n"
        "Next: `runner up` keeps a server, workers and Flower running. In a notebook:\n\n"
        "    import runner\n"
        "    client = runner.connect()\n"
        "    space = runner.grid(fast=range(5, 60), slow=range(20, 240, 2), where=lambda p: p.fast < p.slow)\n"
        '    sweep = client.sweep("runner.strategies:sma_cross", runner.sample_data("SP500"), space)\n'
        "    sweep.result().best()",
        highlight=False,
        soft_wrap=True,
    )
