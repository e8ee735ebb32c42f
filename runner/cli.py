"""The command `runner`: a stack, workers, prices, sweeps. Exit codes: 0 done, 1 RunnerError, 2 usage, 130 Ctrl-C."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from runner.errors import InputError, RunnerError

if TYPE_CHECKING:
    from rich.console import Console

    from runner.results import Results
    from runner.space import Space
    from runner.spec import Execution

app = typer.Typer(
    help="Sweep a trading strategy over thousands of parameters and symbols with Celery workers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Workers = Annotated[int | None, typer.Option(help="Worker processes; one a core when not given.")]


class Part(StrEnum):
    """What `runner check` asks."""

    SERVER = "server"
    WORKER = "worker"
    FLOWER = "flower"
    METRICS = "metrics"


class Adjustment(StrEnum):
    """What `runner fetch` corrects raw prices for."""

    ALL = "all"
    SPLITS = "splits"
    NONE = "none"


def main() -> NoReturn:
    """Run the command line; the entry point of `runner` and of `python -m runner`."""
    try:
        app()
    except RunnerError as error:
        if os.environ.get("RUNNER_DEBUG"):
            raise
        sys.stderr.write(f"runner: {error}\n")
        sys.exit(1)
    raise AssertionError("typer ends the process")


def _version(wanted: bool) -> None:
    if wanted:
        import runner

        typer.echo(runner.__version__)
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error (also RUNNER_DEBUG=1).")
    ] = False,
    version: Annotated[  # noqa: ARG001 -- its callback does it
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    if debug:
        os.environ["RUNNER_DEBUG"] = "1"


@app.command()
def up(
    workers: Workers = None,
    port: Annotated[int, typer.Option(help="The server's port; 0 is any that is free.")] = 0,
    fetch: Annotated[bool, typer.Option(help="Start a worker that fetches prices.")] = True,
    flower: Annotated[bool, typer.Option(help="Start Flower.")] = True,
) -> None:
    """Start a server, workers and Flower here, until Ctrl-C or `runner down`."""
    from runner import settings, stack, supervisor, terminal

    stack.refuse_windows()
    wanted = supervisor.options(workers=workers, fetch=fetch, flower=flower, port=port, home=settings.load().home)
    console = _console()
    console.print(f"Starting; logs are in {wanted.home} ...", soft_wrap=True)
    supervisor.supervise(wanted, lambda info: console.print(terminal.how_to_use(info), crop=False))
    console.print("Stopped.")


@app.command()
def down() -> None:
    """Stop the stack that `runner up` started here."""
    from runner import stack

    typer.echo("Stopped." if stack.stop() else "No stack runs here.")


@app.command()
def status() -> None:
    """Show server, workers, queues and sweeps."""
    from runner import stack, store, terminal

    url, secret = stack.deployment()
    ledger = store.Ledger(store.connect(url))
    for warning in ledger.check(url, secret):
        typer.echo(f"warning: {warning}", err=True)
    _console().print(terminal.status(url, ledger, stack.running()), crop=False)


@app.command()
def worker(
    queues: Annotated[str, typer.Option(help="backtest or fetch.")] = "backtest",
    concurrency: Annotated[
        int | None, typer.Option(help="Backtests at a time, one a core; of fetch its threads, 8.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name; made when not given.")] = None,
    grace: Annotated[
        int | None, typer.Option(help="Seconds to finish what runs when told to stop, 20; the rest is handed back.")
    ] = None,
) -> None:
    """Run one more worker of RUNNER_URL, or of the stack that runs here, and start it again should it die."""
    from runner import stack

    url, secret = stack.deployment()
    command = [sys.executable, "-m", "workers.keeper", "--queues", queues]
    command += ["--concurrency", str(concurrency)] if concurrency is not None else []
    command += ["--name", name] if name is not None else []
    command += ["--grace", str(grace)] if grace is not None else []
    _become(command, {**os.environ, "RUNNER_URL": url, "RUNNER_SECRET": secret})


@app.command()
def flower(
    address: Annotated[str, typer.Option(help="0.0.0.0 only in a container.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.")] = 5555,
) -> None:
    """Run Flower for the deployment at RUNNER_URL. Login: FLOWER_BASIC_AUTH, else derived from the secret."""
    from runner import monitor, settings, stack

    url, secret = stack.deployment()
    folder = stack.make_home(settings.load().home)
    environment = monitor.environment(os.environ, url=url, secret=secret, address=address, port=port, folder=folder)
    _become(monitor.command(), environment)


@app.command()
def check(
    part: Annotated[Part, typer.Argument(help="What must answer.")],
    queues: Annotated[str, typer.Option(help="worker: the queues that one on this host must listen to.")] = "backtest",
    port: Annotated[int | None, typer.Option(help="flower, metrics: its port on this host; 5555, 9464.")] = None,
) -> None:
    """Exit with 0 when it truly answers, else with 1: for health checks."""
    from runner import monitor, stack, store

    url, secret = stack.deployment()
    if part is Part.FLOWER:
        login = os.environ.get("FLOWER_BASIC_AUTH") or f"{monitor.USER}:{monitor.password(secret)}"
        fine = monitor.answers(port or monitor.FLOWER_PORT, login)
    elif part is Part.METRICS:
        fine = monitor.serves_metrics(port or monitor.METRICS_PORT)
    else:
        ledger = store.Ledger(store.connect(url))
        ledger.check(url, secret)
        here = [row for row in ledger.workers() if row["host"] == socket.gethostname() and row["concurrency"]]
        fine = part is Part.SERVER or any(set(queues.split(",")) <= set(row["queues"]) for row in here)
    typer.echo(f"{part}: {'answers' if fine else 'does not answer'}")
    raise typer.Exit(0 if fine else 1)


@app.command()
def sweep(
    *,
    strategy: Annotated[
        str, typer.Argument(metavar="STRATEGY", help="MODULE:FUNCTION, or one of ours: sma_cross, ...")
    ],
    data: Annotated[str, typer.Option(help="Prices: a .parquet or .csv file, or a sample (SP500, AAPL, GOOG, IBM).")],
    grid: Annotated[list[str], typer.Option(help="One axis: fast=5:60, slow=20:240:2 or k=1.5,2. Repeat it.")],
    where: Annotated[str | None, typer.Option(help="Which points to run, such as 'fast < slow'.")] = None,
    fees: Annotated[float, typer.Option(help="Fraction of each order's value.")] = 0.0,
    slippage: Annotated[float, typer.Option(help="Fraction by which each fill is worse.")] = 0.0,
    out: Annotated[str | None, typer.Option(help="Write every run to this .parquet or .csv file.")] = None,
    name: Annotated[str | None, typer.Option(help="The sweep's name, to attach to it later.")] = None,
    processes: Annotated[int | None, typer.Option(help="Run in this many processes here, without a server.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Rows to show.")] = 10,
    metric: Annotated[str, typer.Option(help="What the best is judged by.")] = "sharpe",
) -> None:
    """Run every point of a grid and show the best. On the workers, or with --processes here."""
    from runner import arguments, terminal
    from runner.spec import Execution

    if name is not None and processes is not None:
        raise typer.BadParameter("a sweep in local processes has no name: leave out --name or --processes.")
    file = _usage("--out", arguments.output, out) if out else None
    space = _space(grid, where)
    execution = Execution(fees=fees, slippage=slippage)
    results = _run(
        arguments.strategy_path(strategy), arguments.prices(data), space, execution, name=name, processes=processes
    )
    if file:
        results.to_parquet(file) if file.suffix == ".parquet" else results.frame.to_csv(file)
    console = _console()
    console.print(terminal.best_runs(results, top, metric))
    if len(results.errors):
        console.print(
            f"{len(results.errors):,} runs failed; the first: {results.errors.iloc[0]['message']}", style="red"
        )
    if file:
        console.print(f"Every run is in {file}.")


@app.command()
def fetch(
    *,
    symbols: Annotated[list[str], typer.Argument(metavar="SYMBOL...", help="As the provider spells them.")],
    source: Annotated[str, typer.Option(help="binance, coinbase, kraken, fred, wikipedia, ...: see docs/data.md.")],
    interval: Annotated[str, typer.Option(help="Length of a bar: 1m, 1h, 1d, ...")] = "1d",
    start: Annotated[str | None, typer.Option(help="First date or time, UTC.")] = None,
    end: Annotated[str | None, typer.Option(help="Where it ends, itself left out; now when not given.")] = None,
    adjust: Annotated[Adjustment, typer.Option(help="Correct raw prices of shares for ...")] = Adjustment.ALL,
    option: Annotated[list[str] | None, typer.Option(help="NAME=VALUE of the provider, such as feed=iex.")] = None,
    out: Annotated[str | None, typer.Option(help="Write the prices to this .parquet or .csv file.")] = None,
) -> None:
    """Fetch prices, or a series of alternative data, through the workers and the shared cache."""
    import runner
    from runner import arguments, terminal

    file = _usage("--out", arguments.output, out) if out else None
    options = _usage("--option", arguments.options, option or [])
    with runner.connect() as client:
        fetched = client.fetch(
            symbols, source=source, interval=interval, start=start, end=end, adjust=adjust.value, **options
        )
    _console().print(terminal.fetched(fetched))
    if file and fetched:
        arguments.write(fetched, file)
        typer.echo(f"{len(fetched):,} symbols are in {file}.")
    raise typer.Exit(1 if fetched.errors else 0)


@app.command()
def metrics(
    address: Annotated[str, typer.Option(help="0.0.0.0 only in a container: they need no login.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Where to listen.", min=1, max=65535)] = 9464,
) -> None:
    """Serve the deployment's health to Prometheus at /metrics, until Ctrl-C."""
    from runner import exporter, stack, store

    url, secret = stack.deployment()
    ledger = store.Ledger(store.connect(url))
    ledger.check(url, secret)
    stopped = threading.Event()
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stopped.set())
    with exporter.serving(ledger, address, port) as bound:
        typer.echo(f"http://{address}:{bound}/metrics")
        stopped.wait()


@app.command()
def demo(
    live: Annotated[
        str | None, typer.Option(metavar="SYMBOL", help="Fetch this symbol from Binance, over the internet.")
    ] = None,
) -> None:
    """Fetch prices and run ten thousand backtests on them, from nothing to the best run."""
    from runner.demo import demo as run

    run(_console(), live=live)


def _space(grid: list[str], where: str | None) -> Space:
    from runner import arguments
    from runner.space import grid as make

    axes = _usage("--grid", arguments.axes, grid)
    condition = _usage("--where", lambda text: arguments.condition(text, list(axes)), where) if where else None
    return make(where=condition, **axes)


def _run(
    path: str, prices: Any, space: Space, execution: Execution, *, name: str | None, processes: int | None
) -> Results:
    import runner

    if processes is not None:
        return runner.sweep(path, prices, space, execution=execution, processes=processes)
    with runner.connect() as client:
        return client.sweep(path, prices, space, execution=execution, name=name).result()


def _usage(option: str, parse: Callable[[Any], Any], text: Any) -> Any:
    try:
        return parse(text)
    except InputError as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


def _become(command: list[str], environment: dict[str, str]) -> NoReturn:
    """Turn into another command: its signals, exit code and memory are then its own."""
    sys.stdout.flush()
    os.execve(command[0], command, environment)  # noqa: S606 -- our own interpreter and arguments


def _console() -> Console:
    from rich.console import Console

    return Console()
