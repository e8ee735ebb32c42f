"""`runner demo`: the main job, end to end: prices fetched over HTTP, then swept by real Celery workers."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.text import Text

import runner
from runner import stack, strategies, terminal
from runner.app import QUEUE_BACKTEST, QUEUE_FETCH
from runner.errors import StackError

FEES, SLIPPAGE = 0.001, 0.0005
# Binance began in July 2017.
LIVE_START = "2017-08-01"


def demo(console: Console, *, live: str | None = None) -> None:
    """Run it on the stack or deployment that is there, else on one that ends with the demo.

    Args:
        console: where it prints.
        live: fetch this symbol's daily bars from Binance instead of the packaged ones from a server on this machine.
    """
    space = runner.grid(fast=range(5, 81), slow=range(20, 310, 2), where=lambda p: p.fast < p.slow)
    execution = runner.Execution(fees=FEES, slippage=SLIPPAGE)
    console.print("Starting a server, workers and Flower here, unless they run already ...")
    with runner.connect(start=True) as client:
        _say_where(console, client)
        prices = _fetch(console, client, live)
        console.print(f"{len(space):,} backtests of a moving-average cross on {len(prices):,} days of {prices.symbol},")
        console.print(f"with {FEES:.2%} fees and {SLIPPAGE:.2%} slippage an order.\n")
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


def _fetch(console: Console, client: runner.Client, live: str | None) -> runner.Bars:
    """Over HTTP either way: the stand-in speaks Binance's format and serves the packaged S&P 500."""
    if live is not None:
        return _fetched(console, client, live, start=LIVE_START)
    workers = client.workers()
    fetchers = workers[[queues == [QUEUE_FETCH] for queues in workers["queues"]]]
    if set(fetchers["host"]) != {socket.gethostname()}:
        console.print("The fetch workers run elsewhere and cannot reach a provider here: packaged prices instead.")
        return runner.sample_data("SP500")
    with _provider() as url:
        return _fetched(console, client, "SP500", start="1999-01-01", end="2019-01-01", base_url=f"{url}/binance")


def _fetched(console: Console, client: runner.Client, symbol: str, **options: str) -> runner.Bars:
    began = time.perf_counter()
    prices: runner.Bars = client.fetch(symbol, source="binance", interval="1d", **options)  # type: ignore[arg-type]  # all text
    took_s = time.perf_counter() - began
    console.print(f"Fetched {len(prices):,} bars of {prices.symbol} over HTTP in {took_s:.2f} s.")
    return prices


@contextmanager
def _provider() -> Iterator[str]:
    """A provider's stand-in on this machine, which ends with the block, or with this process."""
    command = [sys.executable, "-m", "workers.standin", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            line = process.stdout.readline() if process.stdout else b""
            if not line:
                raise StackError("the demo's provider did not start: run `python -m workers.standin` to see why.")
            yield str(json.loads(line)["url"])
        finally:
            process.terminate()


def _say_where(console: Console, client: runner.Client) -> None:
    info = stack.running()
    workers = client.workers()
    backtest = workers[[queues == [QUEUE_BACKTEST] for queues in workers["queues"]]]
    console.print(f"Server {client.url}, {backtest['concurrency'].sum()} worker processes.")
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
        "    sweep.result().best()\n"
        '    prices = client.fetch("BTCUSDT", source="binance", interval="1d", start="2018-01-01")',
        highlight=False,
        soft_wrap=True,
    )
