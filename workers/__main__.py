"""`python -m workers`: one Celery worker, prefork with spawned children."""

from __future__ import annotations

import argparse
import os
import secrets
import socket
import sys
from typing import Any

from celery import signals

from runner.app import QUEUE_BACKTEST, QUEUES, make_app
from runner.errors import RunnerError
from workers.recovery import Steward
from workers.resources import resources

# A child that has grown past this is replaced after its chunk; 1 GiB holds numba, pyarrow and a full L1 twice over.
CHILD_MEMORY_KIB = 2**20
# What a child imports; clients and Flower send and show tasks by name.
TASKS = ("tasks.backtest",)
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
    app.conf.include = TASKS
    pools: list[Any] = []
    steward = Steward(
        app,
        held.ledger,
        held.secret,
        name=options.name,
        queues=options.queues,
        children=lambda: sum(map(_warm_children, pools)),
    )

    def ready(sender: Any, **_: Any) -> None:
        pools.append(sender.pool)
        steward.start()

    def shut_down(**_: Any) -> None:
        steward.stop()

    signals.worker_ready.connect(ready)
    signals.worker_shutdown.connect(shut_down)
    app.worker_main(_celery_arguments(options))
    return 0


def _warm_children(pool: Any) -> int:
    """Children of the prefork pool that have said that they are up. Celery (pinned) has no public way to ask."""
    return len(pool._pool._all_inqueues)  # noqa: SLF001 - see above


def _celery_arguments(options: argparse.Namespace) -> list[str]:
    return [
        "worker",
        f"--hostname={options.name}",
        f"--queues={','.join(options.queues)}",
        f"--concurrency={options.concurrency}",
        f"--max-memory-per-child={CHILD_MEMORY_KIB}",
        f"--loglevel={options.loglevel}",
        "--pool=prefork",
        "--without-gossip",
        "--without-mingle",
    ]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="runner worker")
    parser.add_argument(
        "--queues", type=_queues, default=[QUEUE_BACKTEST], help="comma-separated, of: " + ", ".join(QUEUES)
    )
    parser.add_argument(
        "--concurrency", type=_positive, default=os.cpu_count() or 1, help="children; default one per core"
    )
    parser.add_argument("--name", default=f"worker-{secrets.token_hex(3)}@{socket.gethostname()}")
    parser.add_argument("--loglevel", default="warning", choices=["debug", "info", "warning", "error"])
    options = parser.parse_args(argv)
    if "@" not in options.name:
        options.name = f"{options.name}@{socket.gethostname()}"
    return options


def _queues(text: str) -> list[str]:
    names = text.split(",")
    unknown = [name for name in names if name not in QUEUES]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no queue: expected {' or '.join(QUEUES)}")
    return names


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number of at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
