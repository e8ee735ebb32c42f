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
from workers import gate
from workers.lease import Lease
from workers.leaving import GRACE_S, Leaving
from workers.recovery import Steward
from workers.resources import Resources, resources

# A child that has grown past this is replaced after its chunk; 1 GiB holds numba, pyarrow and a full L1 twice over.
CHILD_MEMORY_KIB = 2**20
# What a worker imports; clients and Flower send and show tasks by name.
TASKS = {QUEUE_BACKTEST: "tasks.backtest", QUEUE_FETCH: "tasks.fetch"}
# Threads of a fetch worker: each has a chunk of up to 16 symbols under way, and the HTTP client makes at most 100
# requests at once whatever they are.
FETCH_THREADS = 8
# sysexits.h EX_SOFTWARE: Celery ended by a fault. Unlike 1 and 2, which are the set-up's, it is worth another start.
EXIT_FAULT = 70
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
    """Run until told to stop; returns the exit code: 0, 1 what is set up cannot work, 2 wrong options, 70 a fault."""
    options = _parse(argv)
    os.environ.update({**CHILD_ENVIRONMENT, **os.environ})
    try:
        held = resources()
        for warning in held.ledger.check(held.url, held.secret, verifies=True):
            sys.stderr.write(f"warning: {warning}\n")
    except RunnerError as error:
        sys.stderr.write(f"runner worker: {error}\n")
        return 1
    return _work(held, options)


def _work(held: Resources, options: argparse.Namespace) -> int:
    app = make_app(held.url)
    app.amqp_cls = gate.AMQP_PATH
    gate.only_questions()
    app.conf.include = (TASKS[options.queue],)
    app.steps["consumer"].add(Lease)
    controllers: list[Any] = []
    slots = Slots(options.queue, options.concurrency)
    steward = Steward(app, held.ledger, held.secret, name=options.name, queues=[options.queue], slots=slots.count)

    def shut_down(**_: Any) -> None:
        steward.stop()
        if options.queue == QUEUE_FETCH:
            _close_desk(held)

    leaving = Leaving(held.ledger, options.name, grace_s=options.grace, sign_off=steward.stop)
    if options.kept:
        leaving.follow(sys.stdin.fileno())

    def made(sender: Any, **_: Any) -> None:
        controllers.append(sender)

    def ready(sender: Any, **_: Any) -> None:
        slots.pool = sender.pool
        steward.start()
        leaving.arm(sender)

    signals.worker_init.connect(made)
    signals.worker_ready.connect(ready)
    signals.worker_shutdown.connect(shut_down)
    app.worker_main(_celery_arguments(options))
    return EXIT_FAULT if any(controller.exitcode for controller in controllers) else 0


class Slots:
    """How many chunks this worker does at once: threads, or children that have said that they are up.

    Once all were up it is their number: one that is being replaced is missing for a second or two only.
    """

    def __init__(self, queue: str, concurrency: int) -> None:
        self.pool: Any = None
        self._all = concurrency
        self._up = queue == QUEUE_FETCH

    def count(self) -> int:
        """As many as there are now."""
        if self.pool is None:
            return 0
        if self._up:
            return self._all
        warm = len(self.pool._pool._all_inqueues)  # noqa: SLF001 - Celery (pinned) has no public way to ask for it
        self._up = warm == self._all
        return warm


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
    parser.add_argument(
        "--grace",
        type=_positive,
        default=int(GRACE_S),
        help="seconds in which a worker that is told to stop finishes what runs; the rest is handed back",
    )
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)  # standard input is the keeper's pipe
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
