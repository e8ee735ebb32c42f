"""`python -m workers`: one Celery worker: spawned children for backtests, threads over one event loop for fetches."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from typing import Any

from celery import signals

from runner.app import QUEUE_BACKTEST, QUEUE_FETCH, QUEUES, make_app
from runner.errors import RunnerError
from workers.recovery import Steward
from workers.resources import Resources, resources

# A child that has grown past this is replaced after its chunk; 1 GiB holds numba, pyarrow and a full L1 twice over.
CHILD_MEMORY_KIB = 2**20
# What a worker imports; clients and Flower send and show tasks by name.
TASKS = {QUEUE_BACKTEST: "tasks.backtest", QUEUE_FETCH: "tasks.fetch"}
# Threads of a fetch worker: each has a chunk of up to 16 symbols under way, and the HTTP client makes at most 100
# requests at once whatever they are.
FETCH_THREADS = 8
# Children inherit it and read it as they import. One thread each, there is a child per core; and Arrow hands memory
# back instead of keeping 30 MB a child (benchmarks/memory.py).
CHILD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "ARROW_DEFAULT_MEMORY_POOL": "system",
}


def main(argv: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; returns the exit code."""
    options = _parse(argv)
    os.environ.update({**CHILD_ENVIRONMENT, **os.environ})
    try:
        held = resources()
        for warning in held.ledger.check(held.url, held.secret):
            sys.stderr.write(f"warning: {warning}\n")
    except RunnerError as error:
        sys.stderr.write(f"runner worker: {error}\n")
        return 1
    app = make_app(held.url)
    app.conf.include = (TASKS[options.queue],)
    pools: list[Any] = []
    steward = Steward(
        app,
        held.ledger,
        held.secret,
        name=options.name,
        queues=[options.queue],
        slots=lambda: sum(_warm_slots(pool, options) for pool in pools),
    )

    def ready(sender: Any, **_: Any) -> None:
        pools.append(sender.pool)
        steward.start()

    def shut_down(**_: Any) -> None:
        steward.stop()
        if options.queue == QUEUE_FETCH:
            _close_desk(held)

    signals.worker_ready.connect(ready)
    signals.worker_shutdown.connect(shut_down)
    app.worker_main(_celery_arguments(options))
    return 0


def _warm_slots(pool: Any, options: argparse.Namespace) -> int:
    """How many chunks are done at once: threads, or children that have said that they are up.

    Celery (pinned) has no public way to ask for the latter.
    """
    if options.queue == QUEUE_FETCH:
        return int(options.concurrency)
    return len(pool._pool._all_inqueues)  # noqa: SLF001 - see above


def _close_desk(held: Resources) -> None:
    from workers.desk import desk

    desk(held).close()


def _celery_arguments(options: argparse.Namespace) -> list[str]:
    return [
        "worker",
        f"--hostname={options.name}",
        f"--queues={options.queue}",
        f"--concurrency={options.concurrency}",
        f"--loglevel={options.loglevel}",
        *(
            ["--pool=threads"]
            if options.queue == QUEUE_FETCH
            else ["--pool=prefork", f"--max-memory-per-child={CHILD_MEMORY_KIB}"]
        ),
        "--without-gossip",
        "--without-mingle",
    ]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="runner worker")
    parser.add_argument("--queues", dest="queue", type=_queue, default=QUEUE_BACKTEST, help=" or ".join(QUEUES))
    parser.add_argument(
        "--concurrency", type=_positive, help=f"children, one per core; of the queue fetch threads, {FETCH_THREADS}"
    )
    parser.add_argument("--name", default=f"worker-{secrets.token_hex(3)}@{socket.gethostname()}")
    parser.add_argument("--loglevel", default="warning", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args(argv)
    if options.concurrency is None:
        options.concurrency = FETCH_THREADS if options.queue == QUEUE_FETCH else os.cpu_count() or 1
    if "@" not in options.name:
        options.name = f"{options.name}@{socket.gethostname()}"
    return options


def _queue(text: str) -> str:
    if text not in QUEUES:
        # Backtests need processes, fetches need threads over one loop: no pool is both.
        both = "; one worker serves one queue, start two" if "," in text else ""
        raise argparse.ArgumentTypeError(f"{text!r} is no queue: expected {' or '.join(QUEUES)}{both}")
    return text


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
