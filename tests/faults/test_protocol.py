from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from runner import store
from runner.errors import SweepExists, SweepNotFound
from runner.store import Ledger, Work
from tests.faults import protocol_model as model
from tests.faults.protocol_model import FETCH, OPEN, SWEEP, Batch, Chunk, Outcome, Protocol, Range
from tests.faults.protocol_search import search
from tests.faults.protocol_system import FAULTS, Scope

NONE: frozenset[str] = frozenset()
ALONE, TWO, SIBLINGS = ((SWEEP, 1),), ((SWEEP, 1), (SWEEP, 1)), ((SWEEP, 2),)
FETCHED = ((SWEEP, 1), (FETCH, 1))

FORGETS = frozenset({"forget"})

# How many states there are stands beside each scope: one that loses a step by mistake would pass unseen.
SCOPES = {
    "two workers, three chunks": (Scope(3, TWO), 45_160),
    "two children of one worker": (Scope(2, SIBLINGS), 2_147),
    "chunks of one or two runs": (Scope(2, TWO, sizes=(1, 2)), 3_610),
    "a sweep whose prices are fetched": (Scope(4, FETCHED, points=2, sizes=(2,)), 9_566),
    "deaths counted, of whatever they come": (
        Scope(2, ALONE, sizes=(2,), counting=True, poison=1, faults=FAULTS - {"user", "client"}),
        14_044,
    ),
    "a run that kills its child": (Scope(3, TWO, sizes=(3,), counting=True, poison=1, faults=NONE), 681),
    "a run that kills its worker": (
        Scope(3, TWO, sizes=(3,), counting=True, poison=1, kills_worker=True, faults=NONE),
        161,
    ),
    "a broker that forgets": (Scope(2, TWO, rollback=3, faults=FORGETS), 3_337),
    "a broker that forgets, prices fetched": (Scope(2, FETCHED, points=1, rollback=3, faults=FORGETS), 3_736),
}
LARGE = {
    "two workers, four chunks": (Scope(4, TWO), 600_424),
    "two workers, chunks of one or two runs": (Scope(3, TWO, sizes=(1, 2)), 61_512),
    "three workers, two chunks": (Scope(2, (*TWO, (SWEEP, 1))), 10_109),
    "two fetching": (Scope(2, (*FETCHED, (FETCH, 1)), points=1), 22_130),
    "deaths counted, of whatever they come": (
        Scope(3, ALONE, sizes=(3,), counting=True, poison=1, faults=FAULTS - {"user", "release"}),
        683_968,
    ),
    "a broker that forgets, and kills": (Scope(2, TWO, rollback=3, faults=FORGETS | {"kill", "overdue"}), 25_227),
}


def check(scope: Scope, states: int) -> None:
    report = search(scope)
    assert not report.broken, "\n".join([report.broken, *report.trace])
    assert report.states == states


@pytest.mark.parametrize(("scope", "states"), SCOPES.values(), ids=SCOPES)
def test_in_every_state_no_run_is_lost_or_doubled_and_every_course_without_faults_ends(
    scope: Scope, states: int
) -> None:
    check(scope, states)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("scope", "states"), LARGE.values(), ids=LARGE)
def test_so_it_is_in_larger_scopes(scope: Scope, states: int) -> None:
    check(scope, states)


@pytest.mark.parametrize("kills_worker", [False, True])
def test_three_runs_one_of_which_kills_take_nine_deaths_at_the_worst(*, kills_worker: bool) -> None:
    scope = Scope(3, TWO, sizes=(3,), counting=True, poison=1, kills_worker=kills_worker, faults=NONE)
    assert search(scope).deaths == 9


def test_a_poison_in_ten_thousand_runs_is_found_within_twenty_deaths() -> None:
    for poison in (0, 1, 4_999, 5_000, 9_998, 9_999):
        assert deaths_until_found(10_000, poison) <= 20


def deaths_until_found(total: int, poison: int) -> int:
    protocol = Protocol(lambda _batch, remaining, _slots: remaining)
    ledger, _ = protocol.activate(protocol.reserve((Batch(),))[0], total)
    ledger, [start] = protocol.top_up(ledger, SWEEP, 1, 1)
    deaths, following = 0, start
    while ledger[SWEEP].state == "running":
        ledger, begun = protocol.begin(ledger, SWEEP, following, f"w/{deaths}", f"w/{deaths - 1}")
        if begun.what == "run" and following <= poison < begun.stop:
            deaths += 1
            continue
        stop, failed = begun.stop, int(begun.what == "poison")
        ledger, found = protocol.commit(ledger, SWEEP, following, stop, stop, failed=failed, us=1, slots=1)
        following = -1 if found is None else found
    assert [outcome for outcome in ledger[SWEEP].outcomes if outcome.failed] == [Outcome(poison, poison + 1, 1)]
    return deaths


# The checker must be able to fail: each of these breaks the protocol in one place.


class MissesNoMessage(Protocol):
    def _looks_for_messages(self) -> bool:
        return False


class CommitsAnyRange(Protocol):
    def _is_same(self, *_: Any) -> bool:
        return True


class GivesAChunkToTwo(Protocol):
    def _may_take_over(self, *_: Any) -> bool:
        return True


class ForgetsWhatIsHandedBack(Protocol):
    def _hand_back(self, batch: Batch, start: int, *_: Any) -> Batch:
        return batch.keep(start, None)


class CountsNoDeaths(Protocol):
    def _one_more(self, deaths: int) -> int:
        return deaths


class KnowsNoLimit(Protocol):
    def recover(self, ledger: model.Ledger, i: int, **about: Any) -> tuple[model.Ledger, list[int]]:
        return super().recover(ledger, i, **{**about, "overdue": frozenset()})


class LetsTheLastCommitWin(Protocol):
    def commit(self, ledger: model.Ledger, i: int, start: int, stop: int, *args: Any, **options: Any) -> Any:
        if ledger[i].state in OPEN and not ledger[i].chunk(start):
            ledger = (*ledger[:i], ledger[i].keep(start, Chunk(stop)), *ledger[i + 1 :])
        return super().commit(ledger, i, start, stop, *args, **options)


class OpensNothing(Protocol):
    def _feed(self, ledger: model.Ledger, *_: Any) -> model.Ledger:
        return ledger


class StartsTheSweepAlone(Protocol):
    def activate(self, ledger: model.Ledger, total: int, points: int = 0) -> tuple[model.Ledger, bool]:
        (sweep, *_), done = super().activate(ledger, total, points)
        return (sweep, model.GONE), done


class PublishesNothing(Protocol):
    def top_up(self, ledger: model.Ledger, *_: int) -> tuple[model.Ledger, list[int]]:
        return ledger, []


BROKEN = [
    (MissesNoMessage, Scope(2, ALONE), "chunk 0:0 is lost"),
    (CommitsAnyRange, Scope(2, TWO, sizes=(1, 2)), "runs in two places"),
    (GivesAChunkToTwo, Scope(2, TWO), "which another child does"),
    (ForgetsWhatIsHandedBack, Scope(2, ALONE), "runs in no place"),
    (CountsNoDeaths, Scope(2, ALONE, sizes=(2,), counting=True, poison=1, faults=NONE), "go on for ever"),
    (KnowsNoLimit, Scope(1, TWO), "chunk 0:0 is lost"),
    (LetsTheLastCommitWin, Scope(2, TWO), "runs in two places"),
    (OpensNothing, Scope(2, FETCHED, points=1), "opened"),
    (StartsTheSweepAlone, Scope(2, FETCHED, points=1), "runs in no place"),
    (PublishesNothing, Scope(2, ALONE), "comes to a stop"),
]


@pytest.mark.parametrize(("broken", "scope", "words"), BROKEN)
def test_a_broken_protocol_is_found_out(broken: type[Protocol], scope: Scope, words: str) -> None:
    report = search(scope, broken)
    assert words in report.broken
    assert report.trace[0] == "reserve"


# The model against the ledger's own scripts, on a real server

NAMES = ("b", "b/fetch")
OWNERS = ("w1@here/1", "w1@here/2", "w2@there/1")
# Runs last 1 µs to 5 ms here, so that chunks are one to a dozen runs long.
FIRST_RUNS, TARGET_S, FLOOR_S = 3, 0.004, 0.0015
# What the walks must have met, or they would prove little.
EXPECTED = {
    *("begin run", "begin poison", "begin drop", "begin owned", "commit -", "commit kept", "release", "recover"),
    *("0 running", "0 paused", "0 done", "0 cancelled", "0 submitting", "1 running", "1 done", "1 cancelled"),
}


class Twins:
    """A ledger on the server and its model, which take the same steps at random."""

    def __init__(self, ledger: Ledger, seed: int, seen: Counter[str], protocol: type[Protocol]) -> None:
        self.real, self.server, self.seen = ledger, ledger.server, seen
        self.random = random.Random(seed)  # noqa: S311 - to be repeated, not to be secret
        self.said = [f"seed {seed}"]
        self.protocol = protocol(model.measured(FIRST_RUNS, TARGET_S * 1e6, FLOOR_S * 1e6))
        self.points = self.random.choice([0, 2, 3])
        self.total = (self.points or 1) * self.random.randint(1, 6 if self.points else 14)
        self.model: model.Ledger = (Batch(), Batch()) if self.points else (Batch(),)
        self.server.flushall()

    def walk(self, steps: int) -> None:
        names = ["reserve", "activate", "top_up", "begin", "commit", "release", "turn", "recover", "remove"]
        begins = ["reserve", "activate", "top_up"] if self.random.random() < 0.8 else []  # some go without a batch
        for name in begins + self.random.choices(names, weights=[1, 2, 10, 20, 14, 2, 1, 5, 0.2], k=steps):
            i = self.random.randrange(len(self.model))
            before = self.model
            mine, theirs = getattr(self, name)(i)
            self.said.append(f"{name} {i}: {mine}")
            observed = self._observed()
            told = [*self.said, f"from {before}", f"model {mine}, {self.model}", f"ledger {theirs}, {observed}"]
            assert (mine, self.model) == (theirs, observed), "\n".join(told)
            self.seen.update(f"{n} {batch.state}" for n, batch in enumerate(self.model))

    def reserve(self, _: int) -> tuple[Any, Any]:
        self.model, mine = self.protocol.reserve(self.model)
        return mine, succeeds(lambda: self.real.reserve(NAMES[SWEEP]))

    def activate(self, _: int) -> tuple[Any, Any]:
        self.model, mine = self.protocol.activate(self.model, self.total, self.points)
        sweep = self._work(self.total, "backtest", fed=bool(self.points))
        feeder = None
        if self.points:
            feeder = self._work(self.total // self.points, "fetch", feeds=NAMES[SWEEP], points=self.points)
        return mine, succeeds(lambda: self.real.activate(NAMES[SWEEP], sweep, feeder))

    def top_up(self, i: int) -> tuple[Any, Any]:
        slots = self.random.randint(1, 3)
        self.model, mine = self.protocol.top_up(self.model, i, slots, slots * store.WINDOW_PER_SLOT)
        return mine, self.real.top_up(NAMES[i], slots)

    def begin(self, i: int) -> tuple[Any, Any]:
        start, chunk = self._some_chunk(i)
        me, dead = self.random.choice(OWNERS), self.random.choice(["", chunk.owner, *OWNERS])
        self.model, mine = self.protocol.begin(self.model, i, start, me, dead)
        begun = self.real.begin(NAMES[i], start, me, dead)
        self.seen[f"begin {mine.what}"] += 1
        return mine, (begun.what, begun.stop, begun.owner)

    def commit(self, i: int) -> tuple[Any, Any]:
        start, chunk = self._some_chunk(i)
        stop = self.random.choice([chunk.stop, chunk.stop, chunk.stop, start + self.random.randint(1, 4)])
        done_stop = self.random.choice([stop, self.random.randint(start + 1, stop)])
        failed, slots = self.random.randint(0, done_stop - start), self.random.randint(1, 3)
        us = self.random.choice([1, 500, 1000, 5000]) * (done_stop - start)
        done = self.model[i].done
        self.model, mine = self.protocol.commit(
            self.model, i, start, stop, done_stop, failed=failed, us=us, slots=slots
        )
        self.seen["commit kept" if self.model[i].done > done else "commit -"] += 1
        landed = [{"symbol": str(item)} for item in range(start, done_stop)] if i == FETCH else []
        theirs = self.real.commit(
            NAMES[i], start, stop, done_stop, failed=failed, seconds=us / 1e6, worker="w1@here", slots=slots,
            blob=json.dumps([done_stop, failed]).encode(), landed=landed,
        )  # fmt: skip
        return mine, theirs

    def release(self, i: int) -> tuple[Any, Any]:
        start, chunk = self._some_chunk(i)
        me = self.random.choice([chunk.owner or OWNERS[0], *OWNERS])
        self.model, mine = self.protocol.release(self.model, i, start, me)
        self.seen["release"] += mine
        self.real.release(NAMES[i], start, me)
        return None, None

    def turn(self, i: int) -> tuple[Any, Any]:
        wanted = self.random.choices(["paused", "running", "cancelled"], weights=[4, 6, 1])[0]
        self.model, mine = self.protocol.turn(self.model, i, wanted)
        return mine, self.real.turn(NAMES[i], wanted)

    def recover(self, i: int) -> tuple[Any, Any]:
        """Time is all or nothing here: each chunk is past its limit or none is, likewise the grace of messages."""
        late, waited = self.random.random() < 0.2, self.random.random() < 0.5
        starts = frozenset(start for start, _ in self.model[i].chunks)
        queued = frozenset(start for start in starts if self.random.random() < 0.5)
        living = frozenset(owner.partition("/")[0] for owner in OWNERS if self.random.random() < 0.6)
        self.model, mine = self.protocol.recover(
            self.model, i, living=living, overdue=starts if late else frozenset(),
            waited=starts if waited else frozenset(), queued=queued,
        )  # fmt: skip
        self.seen["recover"] += bool(mine)
        self._make_so(i, late=late, waited=waited, queued=queued, living=living)
        # One that has a message all the same may be published or not: a message too many does nothing.
        return sorted(set(mine) - queued), sorted(set(self.real.recover(NAMES[i])) - queued)

    def remove(self, i: int) -> tuple[Any, Any]:
        for n in range(i, len(self.model)):
            self.model = self.protocol.remove(self.model, n)
        self.real.remove(NAMES[i])
        return None, None

    def _work(self, total: int, queue: str, **options: Any) -> Work:
        return Work(spec="{}", total=total, queue=queue, limit_s=3600.0, priority="normal", **options)

    def _some_chunk(self, i: int) -> tuple[int, Chunk]:
        """Mostly one that is there."""
        start = self.random.randrange(self.total)
        made_up = (start, Chunk(start + self.random.randint(1, 4), owner=OWNERS[0]))
        return self.random.choice([*self.model[i].chunks, *self.model[i].chunks, made_up])

    def _make_so(self, i: int, *, late: bool, waited: bool, queued: frozenset[int], living: frozenset[str]) -> None:
        if self.model[i].state:
            self.server.hset(f"runner:batch:{NAMES[i]}", "limit_ms", -1 if late else 10**9)
        store.VANISHED_AFTER_S = -1.0 if waited else 3600.0  # put back by the test's monkeypatch
        self.server.delete("backtest:3", "fetch:3", "runner:workers")
        for start in queued:
            message = json.dumps({"headers": {"id": f"{NAMES[i]}:{start}"}})
            self.server.lpush("fetch:3" if i == FETCH else "backtest:3", message)
        for name in living:
            self.real.beat(name, {})

    def _observed(self) -> model.Ledger:
        active, kept = self.server.smembers("runner:active"), self.server.zrange("runner:expiry", 0, -1)
        return tuple(
            self._batch(f"runner:batch:{name}", active=name.encode() in active, expiring=name.encode() in kept)
            for name in NAMES[: len(self.model)]
        )

    def _batch(self, key: str, *, active: bool, expiring: bool) -> Batch:
        with self.server.pipeline(transaction=False) as pipe:
            pipe.hgetall(key)
            pipe.hgetall(f"{key}:chunks")
            pipe.lrange(f"{key}:free", 0, -1)
            pipe.hgetall(f"{key}:outcomes")
            pipe.hkeys(f"{key}:landed")
            fields, chunks, free, outcomes, landed = pipe.execute()
        text = {name.decode(): value.decode() for name, value in fields.items()}
        return Batch(
            state=text.get("state", ""),
            **{name: int(text.get(name, 0)) for name in ("total", "next", "done", "failed", "points")},
            cost_us=float(text.get("cost_us", 0)),
            active=active,
            expiring=expiring,
            chunks=tuple(sorted((int(start), _chunk(**json.loads(entry))) for start, entry in chunks.items())),
            free=tuple(Range(**json.loads(entry)) for entry in free),
            outcomes=tuple(sorted(Outcome(int(start), *json.loads(blob)) for start, blob in outcomes.items())),
            landed=tuple(sorted(int(item) for item in landed)),
        )


def _chunk(*, state: str, at: int, owner: str = "", **fields: Any) -> Chunk:
    return Chunk(running=state == "running", owner=owner, **fields)


def succeeds(step: Callable[[], None]) -> bool:
    try:
        step()
    except (SweepExists, SweepNotFound):
        return False
    return True


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "FIRST_RUNS", FIRST_RUNS)
    monkeypatch.setattr(store, "TARGET_S", TARGET_S)
    monkeypatch.setattr(store, "FLOOR_S", FLOOR_S)
    monkeypatch.setattr(store, "VANISHED_AFTER_S", store.VANISHED_AFTER_S)  # to be put back: the walks change it


def walk(ledger: Ledger, walks: int, protocol: type[Protocol] = Protocol) -> None:
    seen = Counter[str]()
    for seed in range(walks):
        Twins(ledger, seed, seen, protocol).walk(steps=60)
    assert seen.keys() >= EXPECTED, f"never met: {EXPECTED - seen.keys()}"


@pytest.mark.usefixtures("small_chunks")
def test_the_model_and_the_ledger_take_the_same_steps(ledger: Ledger) -> None:
    walk(ledger, walks=200)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("broken", [broken for broken, *_ in BROKEN])
def test_a_model_that_differs_from_the_ledger_is_found_out(ledger: Ledger, broken: type[Protocol]) -> None:
    with pytest.raises(AssertionError, match="seed"):
        walk(ledger, walks=300, protocol=broken)


@pytest.mark.chaos
@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("small_chunks")
def test_the_model_and_the_ledger_take_the_same_steps_for_long(ledger: Ledger) -> None:
    walk(ledger, walks=10_000)
