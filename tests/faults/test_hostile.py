"""Everything that can be written into the server without the secret: nothing runs it, nothing dies of it."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import redis

import runner
from runner import client as clients
from runner.app import QUEUES, make_app, publish_chunk, queue_keys
from runner.bars import DataRef
from runner.errors import RunnerError, SweepNotFound
from runner.signing import sign_code, sign_spec
from runner.source import Source
from runner.spec import Execution, Sweep
from runner.store import Ledger, Work
from runner.strategies import sma_cross
from runner.strategy import PYTHON, StrategyRef, ship
from tests.faults.hostile import bombs, explodes, generated, mutated, variants
from tests.misbehaving import serving
from tests.support import SECRET, Worker, running_valkey, running_worker, wait_until
from workers import cache, market
from workers.quarantine import KEPT, SHOWN_CHARS, refused
from workers.sources import registry
from workers.standin import make_app as make_standin

SP500 = runner.sample_data("SP500")[:500]
GRID = runner.grid(fast=range(2, 8), slow=[10, 20])
TWO = runner.grid(n=[1, 2])
LISTS = [key for queue in QUEUES for key in queue_keys(queue)]
# What may remain of a flood in a worker's memory: Python's own caches and the allocator's leftovers.
LEFT_BYTES = 24 * 2**20


@dataclass(frozen=True)
class Target:
    """A deployment of both kinds of workers, what it holds, and the file that no bomb must ever write."""

    url: str
    workers: list[Worker]
    client: runner.Client
    canary: Path

    @property
    def ledger(self) -> Ledger:
        return self.client._ledger

    @property
    def server(self) -> Any:
        return self.ledger.server

    def processes(self) -> set[psutil.Process]:
        tops = [psutil.Process(worker.process.pid) for worker in self.workers]
        return {*tops, *(child for worker in self.workers for child in worker.children())}

    def memory_bytes(self) -> dict[int, int]:
        return {process.pid: process.memory_info().rss for process in self.processes()}

    def check_unharmed(self, processes: set[psutil.Process]) -> None:
        """Nothing ran, the same processes live, and they do what they are asked to."""
        assert not self.canary.exists()
        assert self.processes() == processes
        result = self.client.sweep(sma_cross, SP500, GRID).result(timeout=60, progress=False)
        pd.testing.assert_frame_equal(result.frame, expected(), check_exact=True)


def expected() -> pd.DataFrame:
    return runner.sweep(sma_cross, SP500, GRID, progress=False).frame


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("target")
    with ExitStack() as stack, ThreadPoolExecutor() as starters:
        url = stack.enter_context(running_valkey(folder))

        def start(queue: str) -> Worker:
            return stack.enter_context(running_worker(url, SECRET, 2, folder, sys.executable, queue=queue))

        workers = list(starters.map(start, QUEUES))
        yield Target(url, workers, stack.enter_context(runner.Client(url, SECRET)), folder / "canary")


@pytest.fixture
def seed_() -> int:
    """Another each time; a test that fails prints it."""
    drawn = secrets.randbelow(2**32)
    print(f"seed {drawn}")  # noqa: T201 -- pytest shows it when the test fails
    return drawn


def test_the_bombs_are_real(tmp_path: Path) -> None:
    for bomb in bombs(tmp_path / "canary"):
        assert explodes(bomb, tmp_path / "canary")


# The queue


def real_messages(url: str, batch: str) -> list[bytes]:
    """Messages of a batch as they are published, taken from a server that nobody listens to."""
    with make_app(url) as app, redis.Redis.from_url(url) as server:
        for queue in QUEUES:
            publish_chunk(app, SECRET, batch, 0, queue=queue, priority="normal")
        return [server.rpop(queue_keys(queue)[1]) for queue in QUEUES]


def ledger_of(server: Any) -> dict[bytes, bytes]:
    """Everything that is kept of batches, code and prices."""
    keys = [key for kind in ("batch", "code", "data") for key in server.scan_iter(f"runner:{kind}:*")]
    return {key: server.dump(key) for key in [*keys, b"runner:active"]}


def drained(server: Any) -> bool:
    return not any(server.llen(key) for key in LISTS) and not server.hlen("unacked")


def flooded(target: Target, url: str, seed_: int, count: int) -> None:
    """Send so many messages, half of them mutated and half generated, and look for what they did."""
    target.client.sweep(sma_cross, SP500, GRID).result(timeout=60, progress=False)  # children are warm
    batch = f"done-{seed_}"
    target.client.sweep(sma_cross, SP500, GRID, name=batch).result(timeout=60, progress=False)
    real = real_messages(url, batch)
    messages = [
        *generated(count // 2, seed_),
        *(
            made
            for part, message in enumerate(real)
            for made in mutated(message, seed_ + part, count // 4, target.canary)
        ),
    ]
    before, processes, counted = ledger_of(target.server), target.processes(), sum(refused(target.ledger)[0].values())
    sizes = []
    for round_ in range(4):
        for number, message in enumerate(messages[round_::4]):
            target.server.lpush(LISTS[number % len(LISTS)], message)
        wait_until(lambda: drained(target.server), "the queues are empty", timeout_s=60 + count / 200)
        sizes.append(target.memory_bytes())
    assert ledger_of(target.server) == before
    counts, kept = refused(target.ledger)
    # The others are as signed, whatever was changed around it: their chunk is done, and they are dropped.
    assert 0.8 * len(messages) < sum(counts.values()) - counted <= len(messages)
    assert set(counts) >= {"malformed", "oversized", "altered", "foreign-key", "misplaced"}
    assert len(kept) == KEPT
    assert max(len(entry["message"]) for entry in kept) <= SHOWN_CHARS
    grown = {pid: [(size[pid] - first) >> 10 for size in sizes[1:]] for pid, first in sizes[0].items()}
    print(f"{len(messages):,} messages, {counts}, memory since the first quarter, KiB: {grown}")  # noqa: T201 -- figures
    assert max(growth[-1] for growth in grown.values()) << 10 < LEFT_BYTES
    target.check_unharmed(processes)


def test_a_flood_of_hostile_messages_runs_nothing_and_ends_no_process(target: Target, url: str, seed_: int) -> None:
    flooded(target, url, seed_, 2_000)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_hostile_messages_run_nothing_and_end_no_process(
    target: Target, url: str, seed_: int
) -> None:
    flooded(target, url, seed_, 100_000)


def test_messages_replayed_while_their_sweep_runs_and_afterwards_repeat_no_run(target: Target) -> None:
    def slow(bars: Any, n: int) -> Any:
        time.sleep(0.005)
        return bars.close > bars.sma(n)

    space = runner.grid(n=range(2, 202))
    sweep = target.client.sweep(slow, SP500, space, name=f"replayed-{secrets.token_hex(4)}")
    seen: set[bytes] = set()
    after = b"0"
    while not sweep.progress().ended:
        unacked = [json.dumps(json.loads(entry)[0]).encode() for entry in target.server.hvals("unacked")]
        seen |= {*unacked, *(message for key in LISTS for message in target.server.lrange(key, 0, -1))}
        for message in seen:
            target.server.lpush("backtest:3", message)
        for event in target.ledger.events(sweep.id, after, 0.05):
            after = event.id
    assert seen
    for message in seen:
        target.server.lpush("backtest:3", *[message] * 20)
    wait_until(lambda: drained(target.server), "the queues are empty")
    committed = [event for event in target.ledger.events(sweep.id, b"0", 0.1) if event.start is not None]
    runs = sorted(run for event in committed for run in range(event.start or 0, event.stop))
    assert runs == list(range(len(space)))
    assert sweep.progress().done == len(space)


# Broadcasts


def test_broadcasts_of_any_shape_end_no_worker_and_neither_does_an_order_to_stop(target: Target, seed_: int) -> None:
    processes = target.processes()
    orders = ("shutdown", "pool_shrink", "pool_restart", "cancel_consumer", "rate_limit", "terminate", "revoke")
    with make_app(target.url) as app:
        for order in orders:
            app.control.broadcast(order, arguments={"n": 2, "queue": "backtest", "task_name": "x", "task_id": "x"})
        for message in generated(300, seed_) + bombs(target.canary):
            for channel in ("/0.celery.pidbox", "/0.celeryev/task.sent"):
                target.server.publish(channel, message)
        wait_until(lambda: len(app.control.ping(timeout=2)) == 2, "both workers answer")
    target.check_unharmed(processes)


# Code, prices, batches


def submitted(
    target: Target, ref: StrategyRef, space: runner.Space, *, code: bytes | None = None, prices: bytes | None = None
) -> Any:
    """A sweep whose spec is signed, so that the workers look at what was put where its code and prices belong."""
    name, ledger = f"submitted-{secrets.token_hex(4)}", target.ledger
    data = DataRef("SP500", SP500.digest if prices is None else secrets.token_hex(32), len(SP500))
    sweep = Sweep(strategy=ref, data=(data,), space=space, execution=Execution(), run_timeout_s=10.0)
    ledger.reserve(name)
    if code is not None:
        ledger.put("code", ref.digest, code, name)
    ledger.put("data", data.digest, SP500.to_bytes() if prices is None else prices, name)
    ledger.activate(name, clients._sweep_work(sweep, sign_spec(SECRET, name, sweep.to_json()), "normal"))
    return target.client.attach(name)


def kinds(sweeps: list[Any]) -> set[str]:
    """Of the errors; every run has one."""
    results = [sweep.result(timeout=60, progress=False) for sweep in sweeps]
    assert all(len(result.errors) == 2 for result in results)
    return {kind for result in results for kind in result.errors["kind"]}


def with_code(target: Target, payload: bytes, code: bytes) -> Any:
    """A sweep of code by value whose digest is right, so that only its signature can tell."""
    return submitted(target, StrategyRef("bomb", None, hashlib.sha256(payload).hexdigest(), PYTHON), TWO, code=code)


def test_code_that_is_not_signed_with_the_secret_is_not_loaded(target: Target, seed_: int) -> None:
    processes = target.processes()
    good = ship(lambda bars, n: bars.close > n)[1]
    assert good is not None
    pairs = [(code[72:], code) for code in variants(sign_code(SECRET, good), seed_, 30, target.canary)]
    for bomb in bombs(target.canary):
        foreign, misplaced = sign_code("another-secret-altogether", bomb), sign_code(SECRET, b"") + bomb
        pairs += [(bomb, code) for code in (bomb, b"0" * 72 + bomb, foreign, misplaced)]
    sweeps = [with_code(target, payload, code) for payload, code in pairs]
    assert kinds(sweeps) == {"Refused"}
    target.check_unharmed(processes)


def test_prices_that_are_not_those_that_were_sent_are_rows_that_say_so(target: Target, seed_: int) -> None:
    processes = target.processes()
    ref = ship(sma_cross)[0]
    others = runner.sample_data("AAPL").to_bytes()
    blobs = [*bombs(target.canary), others, *variants(SP500.to_bytes(), seed_, 30, target.canary)]
    assert kinds([submitted(target, ref, TWO, prices=blob) for blob in blobs]) == {"BarsError"}
    target.check_unharmed(processes)


@pytest.mark.parametrize("path", ["os:system", "builtins:eval", "subprocess:run", "shutil:rmtree", "runner.cli:main"])
def test_a_path_that_leads_to_no_strategy_is_refused_on_the_worker_whatever_the_client_says(
    target: Target, path: str
) -> None:
    assert kinds([submitted(target, StrategyRef("x", path, "0" * 64, PYTHON), TWO)]) == {"StrategyError"}
    assert not target.canary.exists()


def cancelled(target: Target, batch: str) -> bool:
    return target.ledger.progress(batch).state == "cancelled"


@pytest.mark.parametrize("queue", QUEUES)
def test_a_batch_that_nobody_with_the_secret_submitted_is_cancelled_and_counted(target: Target, queue: str) -> None:
    processes = target.processes()
    signed_for_another = sign_spec(SECRET, "another", "{}")
    for number, spec in enumerate(("{}", '{"strategy": {"path": "os:system"}}', "", "[" * 5000, signed_for_another)):
        name = f"unsigned-{queue}-{number}"
        target.ledger.reserve(name)
        work = Work(spec=spec, total=3, queue=queue, limit_s=60.0, priority="high")
        target.ledger.activate(name, work)
        wait_until(partial(cancelled, target, name), "it is cancelled")
        assert target.ledger.progress(name).done == 0
    counts = refused(target.ledger)[0]
    assert counts["batch foreign-key"] >= 4
    assert counts["batch altered"] >= 1
    target.check_unharmed(processes)


def test_a_damaged_ledger_of_one_batch_and_garbage_about_workers_leave_the_others_alone(target: Target) -> None:
    processes, server = target.processes(), target.server
    damage: dict[str, Callable[[str], object]] = {
        "": lambda key: server.set(key, "no hash"),
        ":chunks": lambda key: server.hset(key, "0", "{"),
        ":free": lambda key: server.rpush(key, "]"),
        ":events": lambda key: server.set(key, "no stream"),
    }
    for number, (part, write) in enumerate(damage.items()):
        name = f"aaa-damaged-{number}"  # it comes before the others
        target.ledger.reserve(name)
        if part:
            work = Work(spec="{}", total=3, queue="backtest", limit_s=60.0, priority="high")
            target.ledger.activate(name, work)
        else:
            server.delete(f"runner:batch:{name}")
            server.sadd("runner:active", name)
        write(f"runner:batch:{name}{part}")
    server.zadd("runner:workers", {"ghost@host": 2**52})
    server.hset("runner:workers:info", "ghost@host", "{")
    try:
        # No message tells the workers of it: their reconciler has to come as far as this batch.
        result = submitted(target, ship(sma_cross)[0], GRID).result(timeout=30, progress=False)
        pd.testing.assert_frame_equal(result.frame, expected(), check_exact=True)
        target.check_unharmed(processes)
    finally:
        target.ledger.leave("ghost@host")
        for number in range(len(damage)):
            server.srem("runner:active", f"aaa-damaged-{number}")
            server.delete(*server.keys(f"runner:batch:aaa-damaged-{number}*"))


# The cache

YEAR: dict[str, Any] = {"start": "2019-01-01", "end": "2020-01-01"}


def closes(url: str, symbol: str) -> list[float]:
    """What the provider itself says."""
    start, stop = (pd.Timestamp(YEAR[name], tz="UTC").value // 10**6 for name in ("start", "end"))
    query = f"symbol={symbol}&interval=1d&startTime={start}&endTime={stop - 1}&limit=1000"
    address = f"{url}/binance/api/v3/klines?{query}"
    with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310 -- the stand-in's, on loopback
        return [float(row[4]) for row in json.load(answer)]


def entry_of(url: str, symbol: str) -> str:
    """The key of the one entry that a symbol's year is."""
    wanted, source = Source("binance", symbol, base_url=f"{url}/binance", **YEAR), registry.source("binance")
    [piece] = market._pieces(source, wanted, symbol)
    return f"{cache.KEY}market{market.SCHEMA}:entry:{market._key(source, wanted, symbol, piece)}"


def damaged(target: Target) -> int:
    return target.ledger.health()[0].get("cache_damaged", 0)


def poisoned(target: Target, seed_: int, count: int) -> None:
    """Plant entries for symbols that were never fetched, then fetch them."""
    processes, token, before = target.processes(), f"{seed_:X}", damaged(target)
    with serving(make_standin()) as url:
        options = {"source": "binance", "base_url": f"{url}/binance", "progress": False, **YEAR}
        target.client.fetch(f"A{token}", **options)
        entry = target.server.get(entry_of(url, f"A{token}"))
        symbols = [f"H{number}X{token}" for number in range(count)]
        for symbol, blob in zip(symbols, variants(entry, seed_, count, target.canary), strict=True):
            target.server.set(entry_of(url, symbol), blob, px=600_000)
        fetched = target.client.fetch(symbols, **options)
        assert not fetched.errors
        for symbol in symbols[:: max(1, count // 40)]:
            assert fetched[symbol].close.tolist() == closes(url, symbol)
    wait_until(lambda: damaged(target) - before >= count, "every planted entry is counted as damaged")
    target.check_unharmed(processes)


def test_a_poisoned_cache_is_a_miss(target: Target, seed_: int) -> None:
    poisoned(target, seed_, 60)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
def test_a_cache_of_thousands_of_poisoned_entries_is_a_miss(target: Target, seed_: int) -> None:
    poisoned(target, seed_, 5_000)


# Outcomes


def test_a_client_that_collects_bombs_says_that_the_results_are_damaged(target: Target) -> None:
    for bomb in bombs(target.canary):
        sweep = target.client.sweep(sma_cross, SP500, GRID)
        sweep.result(timeout=60, progress=False)
        target.server.hset(f"runner:batch:{sweep.id}:outcomes", "0", bomb)
        with pytest.raises(RunnerError, match="damaged") as caught:
            target.client.attach(sweep.id).result(timeout=10, progress=False)
        assert not isinstance(caught.value, SweepNotFound)
    assert not target.canary.exists()
