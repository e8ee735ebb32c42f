from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from runner import store
from runner.errors import BrokerRefused, BrokerUnreachable, SecretMismatch, SweepExists, SweepNotFound
from runner.following import Follower
from runner.store import Ledger, Work
from tests.support import SECRET

ME, OTHER = "w1@here/10", "w2@there/20"


@pytest.fixture
def batch(ledger: Ledger) -> str:
    submit(ledger, "b", total=1000)
    ledger.beat("w1@here", {"name": "w1@here", "queues": ["backtest"], "concurrency": 2})
    ledger.beat("w2@there", {"name": "w2@there", "queues": ["backtest"], "concurrency": 2})
    return "b"


def submit(ledger: Ledger, batch: str, *, total: int, limit_s: float = 60.0) -> None:
    ledger.reserve(batch)
    ledger.activate(batch, work(total=total, limit_s=limit_s))


def work(**changes: Any) -> Work:
    usual = {"spec": "{}", "total": 1000, "queue": "backtest", "limit_s": 60.0, "priority": "normal"}
    return Work(**{**usual, **changes})


def submit_over_a_source(ledger: Ledger, *, symbols: int, points: int) -> None:
    ledger.reserve("s")
    feeder = work(total=symbols, queue="fetch", feeds="s", points=points)
    ledger.activate("s", work(total=symbols * points, fed=True), feeder)


def land(ledger: Ledger, start: int, *items: dict[str, Any]) -> None:
    begun = ledger.begin("s/fetch", start, ME)
    assert begun.what == "run"
    commit(ledger, "s/fetch", start, begun.stop, done_stop=start + len(items), landed=items)


def commit(ledger: Ledger, batch: str, start: int, stop: int, **changes: object) -> int | None:
    options = {
        "done_stop": stop,
        "failed": 0,
        "seconds": 0.001 * (stop - start),
        "worker": "w1@here",
        "slots": 2,
        "blob": b"x",
    }
    return ledger.commit(batch, start, stop, **{**options, **changes})  # type: ignore[arg-type]  # options of many types


def drain(ledger: Ledger, batch: str) -> list[tuple[int, int]]:
    """Run the batch to its end as one child would; returns the chunks that were committed."""
    todo, done = ledger.top_up(batch, slots=2), []
    while todo:
        start = todo.pop(0)
        begun = ledger.begin(batch, start, ME)
        if begun.what != "run":
            continue
        done.append((start, begun.stop))
        following = commit(ledger, batch, start, begun.stop)
        todo += [following] if following is not None else ledger.top_up(batch, slots=2)
    return done


def test_every_run_is_claimed_exactly_once(ledger: Ledger, batch: str) -> None:
    chunks = drain(ledger, batch)
    assert [run for start, stop in sorted(chunks) for run in range(start, stop)] == list(range(1000))
    assert ledger.progress(batch).state == "done"
    assert ledger.progress(batch).done == 1000


def test_the_window_holds_two_chunks_a_slot(ledger: Ledger, batch: str) -> None:
    assert ledger.top_up(batch, slots=3) == [0, 16, 32, 48, 64, 80]
    assert ledger.top_up(batch, slots=3) == []


def test_chunks_last_as_long_as_aimed_at_once_their_cost_is_known(ledger: Ledger) -> None:
    submit(ledger, "long", total=10**9)
    ledger.top_up("long", slots=1)
    ledger.begin("long", 0, ME)
    following = commit(ledger, "long", 0, 16, seconds=16 * 20e-6)
    assert following is not None
    begun = ledger.begin("long", following, ME)
    assert begun.stop - following == pytest.approx(store.TARGET_S / 20e-6, rel=0.01)


def test_chunks_shrink_towards_the_end(ledger: Ledger) -> None:
    submit(ledger, "b", total=100_000)
    sizes = [stop - start for start, stop in drain(ledger, "b")]
    assert max(sizes) == pytest.approx(store.TARGET_S / 0.001, rel=0.01)
    assert sizes[-1] <= store.FLOOR_S / 0.001


def test_the_first_commit_of_a_chunk_wins(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=2)
    ledger.begin(batch, 0, ME)
    commit(ledger, batch, 0, 16, blob=b"first")
    assert commit(ledger, batch, 0, 16, blob=b"second") is None
    assert ledger.outcomes(batch, [0]) == [b"first"]
    assert ledger.progress(batch).done == 16


def test_a_chunk_cut_short_hands_the_rest_back_and_it_is_claimed_first(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=2)
    ledger.begin(batch, 0, ME)
    assert commit(ledger, batch, 0, 16, done_stop=3) == 3


def test_a_message_delivered_twice_runs_once(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=2)
    assert ledger.begin(batch, 0, ME).what == "run"
    again = ledger.begin(batch, 0, OTHER)
    assert (again.what, again.owner) == ("owned", ME)
    commit(ledger, batch, 0, 16)
    assert ledger.begin(batch, 0, OTHER).what == "drop"


def test_a_chunk_that_killed_two_children_is_halved_until_the_run_stands_alone(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=1)
    attempts, poisoned, pid = 0, [], 0
    todo = [0]
    while todo:
        start, dead = todo.pop(), ""
        while True:  # the message is redelivered as long as its child dies
            pid += 1
            attempts += 1
            begun = ledger.begin(batch, start, f"w1@here/{pid}", dead)
            if begun.what == "drop" or (begun.what == "run" and not start <= 11 < begun.stop):
                break
            if begun.what == "poison":
                poisoned.append(start)
                break
            dead = f"w1@here/{pid}"
        if begun.what != "drop":
            following = commit(ledger, batch, start, begun.stop)
            todo += [following] if following is not None and following < 16 else []
    assert poisoned == [11]
    assert attempts <= 20


def test_a_dead_workers_chunk_is_published_again(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=2)
    ledger.begin(batch, 0, OTHER)
    assert ledger.recover(batch) == []
    ledger.leave("w2@there")
    assert ledger.recover(batch) == [0]
    assert ledger.begin(batch, 0, ME).what == "run"


def test_a_chunk_that_its_living_child_let_go_is_published_again(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(ledger, "b", total=100, limit_s=0.0)
    ledger.beat("w1@here", {})
    ledger.top_up("b", slots=1)
    ledger.begin("b", 0, ME)
    while (now := ledger.server.time()) == ledger.server.time():
        pass
    lost: list[int] = []
    while not lost:
        lost = ledger.recover("b")
    assert lost == [0]
    assert now


def test_a_chunk_without_a_message_is_published_again(
    ledger: Ledger, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "VANISHED_AFTER_S", -1.0)
    assert ledger.top_up(batch, slots=1) == [0, 16]
    ledger.server.lpush("backtest:3", json.dumps({"headers": {"id": f"{batch}:16"}}))
    assert ledger.recover(batch) == [0]


def test_a_paused_batch_gives_out_nothing_and_keeps_what_it_had(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=2)
    assert ledger.turn(batch, "paused") == "paused"
    assert ledger.begin(batch, 0, ME).what == "drop"
    assert ledger.top_up(batch, slots=2) == []
    assert ledger.turn(batch, "running") == "running"
    assert sum(stop - start for start, stop in drain(ledger, batch)) + 3 * 16 == 1000


def test_a_cancelled_batch_takes_no_commit(ledger: Ledger, batch: str) -> None:
    ledger.top_up(batch, slots=2)
    ledger.begin(batch, 0, ME)
    ledger.turn(batch, "cancelled")
    commit(ledger, batch, 0, 16)
    assert ledger.progress(batch).done == 0
    assert ledger.turn(batch, "running") == "cancelled"


def test_a_taken_name_is_refused(ledger: Ledger, batch: str) -> None:
    with pytest.raises(SweepExists, match="'b' exists"):
        ledger.reserve(batch)


def test_an_unknown_name_is_said_to_be_unknown(ledger: Ledger) -> None:
    with pytest.raises(SweepNotFound, match="no sweep 'nobody'"):
        ledger.progress("nobody")


def test_events_tell_each_commit_and_each_turn_once(ledger: Ledger, batch: str) -> None:
    drain(ledger, batch)
    events = ledger.events(batch, b"0", 0.01)
    assert sum(event.stop - event.start for event in events if event.start is not None) == 1000
    assert ledger.events(batch, events[-1].id, 0.01) == []


def test_removing_a_batch_leaves_no_key_but_what_others_need(ledger: Ledger, batch: str) -> None:
    submit(ledger, "c", total=1)
    for name in (batch, "c"):
        ledger.put("data", "shared", b"prices", name)
    ledger.put("code", "mine", b"code", batch)
    drain(ledger, batch)
    ledger.remove(batch)
    assert ledger.get("data", "shared") == b"prices"
    assert ledger.get("code", "mine") is None
    ledger.remove("c")
    assert {key.decode() for key in ledger.server.keys("*")} <= {"runner:workers", "runner:workers:info"}


def test_no_key_of_the_ledger_has_a_ttl(ledger: Ledger, batch: str) -> None:
    ledger.put("data", "d", b"prices", batch)
    drain(ledger, batch)
    assert {ledger.server.ttl(key) for key in ledger.server.keys("*")} == {-1}


def test_a_batch_goes_when_its_retention_ends(ledger: Ledger, batch: str) -> None:
    ledger.reserve("brief")
    ledger.activate("brief", work(total=10, retention_s=0.0))
    drain(ledger, "brief")
    drain(ledger, batch)
    assert ledger.sweep_out() == ["brief"]
    assert ledger.batches() == [batch]


def test_workers_are_alive_as_long_as_their_heart_beats(
    ledger: Ledger, batch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {worker["name"] for worker in ledger.workers()} == {"w1@here", "w2@there"}
    assert ledger.slots("backtest") == 4
    assert ledger.slots("fetch") == 0
    monkeypatch.setattr(store, "DEAD_AFTER_S", -1.0)
    assert ledger.workers() == []


def test_a_server_that_evicts_jobs_is_refused(ledger: Ledger, url: str, request: pytest.FixtureRequest) -> None:
    ledger.server.config_set("maxmemory-policy", "allkeys-lru")
    request.addfinalizer(lambda: ledger.server.config_set("maxmemory-policy", "volatile-lru"))
    with pytest.raises(BrokerRefused, match="volatile-lru"):
        ledger.check(url, SECRET)


def test_a_server_without_append_only_file_is_warned_of(
    ledger: Ledger, url: str, request: pytest.FixtureRequest
) -> None:
    assert ledger.check(url, SECRET) == []
    ledger.server.config_set("appendonly", "no")
    request.addfinalizer(lambda: ledger.server.config_set("appendonly", "yes"))
    assert "append-only" in ledger.check(url, SECRET)[0]


def test_another_secret_is_refused(ledger: Ledger, url: str) -> None:
    ledger.check(url, SECRET)
    with pytest.raises(SecretMismatch, match="RUNNER_SECRET"):
        ledger.check(url, "another-secret-altogether")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda url: url.replace("@127.0.0.1", "x@127.0.0.1"), BrokerRefused, "password"),
        (lambda _: "redis://:p@127.0.0.1:1/0", BrokerUnreachable, "runner up"),
        (lambda _: "redis://example.invalid:6379/0", BrokerRefused, "without a password"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_with_its_cure(
    url: str, change: Callable[[str], str], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        Ledger(store.connect(change(url))).check(change(url), SECRET)
    assert ":p@" not in str(caught.value)


# A sweep over a source


def test_runs_on_a_symbol_can_be_claimed_only_once_its_prices_have_landed(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=3, points=10)
    assert ledger.top_up("s", slots=4) == []
    ledger.top_up("s/fetch", slots=1)
    land(ledger, 0, {"symbol": "A", "digest": "a"})
    assert ledger.top_up("s", slots=4) == [0]
    assert ledger.begin("s", 0, ME).stop == 10
    assert json.loads(ledger.landed("s", 0) or b"") == {"symbol": "A", "digest": "a"}
    assert ledger.landed("s", 1) is None


def test_a_sweep_over_a_source_ends_with_every_run_once(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=5, points=7)
    ledger.top_up("s/fetch", slots=1)
    land(ledger, 0, *({"symbol": str(i)} for i in range(5)))
    assert ledger.progress("s/fetch").state == "done"
    assert sorted(drain(ledger, "s")) == [(i * 7, i * 7 + 7) for i in range(5)]
    assert ledger.progress("s").state == "done"


def test_a_fetch_that_is_committed_twice_opens_its_runs_once(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=2, points=7)
    ledger.top_up("s/fetch", slots=1)
    ledger.begin("s/fetch", 0, ME)
    for _ in range(2):
        commit(ledger, "s/fetch", 0, 2, landed=[{"symbol": "A"}, {"symbol": "B"}])
    assert sorted(drain(ledger, "s")) == [(0, 7), (7, 14)]


def test_the_fetch_of_a_cancelled_sweep_ends_and_opens_nothing(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=4, points=7)
    ledger.top_up("s/fetch", slots=1)
    assert ledger.begin("s/fetch", 0, ME).what == "run"
    ledger.turn("s", "cancelled")
    following = commit(ledger, "s/fetch", 0, 4, done_stop=1, landed=[{"symbol": "A"}])
    assert ledger.server.exists("runner:batch:s:free", "runner:batch:s:landed") == 0
    assert following == 1
    assert ledger.begin("s/fetch", following, ME).what == "drop"
    assert ledger.progress("s/fetch").state == "cancelled"


def test_a_sweep_over_a_source_is_submitted_whole_or_not_at_all(ledger: Ledger) -> None:
    with pytest.raises(SweepNotFound):
        ledger.activate("never-reserved", work(fed=True), work(queue="fetch", feeds="never-reserved", points=1))
    assert ledger.active() == []
    assert ledger.server.keys("runner:batch:*") == []


def test_removing_a_sweep_over_a_source_leaves_no_key(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=2, points=3)
    ledger.put("data", "d" * 64, b"prices", "s")
    ledger.top_up("s/fetch", slots=1)
    land(ledger, 0, {"symbol": "A"})
    ledger.top_up("s", slots=1)
    ledger.remove("s")
    assert ledger.server.keys("runner:batch:*") + ledger.server.keys("runner:data:*") == []
    assert ledger.batches() == ledger.active() == []


def test_the_fetch_behind_a_sweep_is_not_listed_beside_it(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=2, points=3)
    assert ledger.batches() == ["s"]
    assert ledger.active() == ["s", "s/fetch"]


def test_symbols_with_stale_prices_are_told(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=3, points=1)
    ledger.top_up("s/fetch", slots=1)
    land(
        ledger,
        0,
        {"symbol": "A", "stale_since_s": None},
        {"symbol": "B", "stale_since_s": 1.5},
        {"symbol": "C", "error": {}},
    )
    assert ledger.stale("s") == ["B"]


# Health


def test_counters_come_with_a_commit_by_worker_and_in_all(ledger: Ledger, batch: str) -> None:
    for start in ledger.top_up(batch, slots=1):
        ledger.begin(batch, start, ME)
        commit(ledger, batch, start, start + 16, counters={"tasks_ok": 1, "http_requests": 5})
    total, each = ledger.health()
    assert total == each["w1@here"] == {"tasks_ok": 2, "http_requests": 10}
    assert each["w2@there"] == {}
    ledger.leave("w1@here")
    assert ledger.health() == (total, {"w2@there": {}})


def test_a_chunk_whose_worker_died_is_a_lost_task(ledger: Ledger, batch: str) -> None:
    [start, *_] = ledger.top_up(batch, slots=1)
    ledger.begin(batch, start, "gone@nowhere/1")
    ledger.recover(batch)
    assert ledger.health()[0] == {"tasks_lost": 1}


def test_a_chunk_that_is_handed_back_brings_its_counters(ledger: Ledger, batch: str) -> None:
    [start, *_] = ledger.top_up(batch, slots=1)
    ledger.begin(batch, start, ME)
    ledger.release(batch, start, ME, {"tasks_failed": 1})
    assert ledger.health()[1]["w1@here"] == {"tasks_failed": 1}


def test_the_fetch_behind_a_sweep_is_kept_as_long_as_the_sweep(ledger: Ledger) -> None:
    submit_over_a_source(ledger, symbols=1, points=3)
    ledger.top_up("s/fetch", slots=1)
    land(ledger, 0, {"symbol": "A"})
    assert ledger.progress("s/fetch").ended
    assert ledger.server.zscore("runner:expiry", "s/fetch") is None
    drain(ledger, "s")
    assert ledger.server.zrange("runner:expiry", 0, -1) == [b"s"]


# Blobs


def test_what_is_stored_for_a_batch_that_was_removed_is_refused_and_leaves_nothing(ledger: Ledger) -> None:
    submit(ledger, "gone", total=1)
    ledger.remove("gone")
    with pytest.raises(SweepNotFound, match="removed"):
        ledger.put("data", "d", b"prices", "gone")
    with pytest.raises(SweepNotFound, match="removed"):
        ledger.has("data", "d", "gone")
    assert ledger.server.keys("runner:data:*") + ledger.server.keys("runner:batch:*") == []


def test_a_blob_that_is_taken_stays_for_the_other_batch_that_needs_it(ledger: Ledger) -> None:
    for name in ("one", "other"):
        submit(ledger, name, total=1)
        ledger.put("data", "d", b"prices", name)
    assert ledger.take("data", ["d"], "one") == [b"prices"]
    assert ledger.get("data", "d") == b"prices"
    assert ledger.take("data", ["d"], "other") == [b"prices"]
    assert ledger.server.keys("runner:data:*") == []
    with pytest.raises(SweepNotFound, match="gone"):
        ledger.take("data", ["d"], "other")


# A lost answer, a lost second, a lost race


def test_a_call_that_is_made_again_because_its_answer_was_lost_is_the_same_call(ledger: Ledger) -> None:
    for _ in range(2):
        assert ledger._step("reserve", "b", 1000, "mine") == 1
    assert ledger._step("reserve", "b", 1000, "another's") == 0
    fields = json.dumps(work().fields())
    for _ in range(2):
        assert ledger._step("activate", "b", fields, "", "", "mine") == 1
    assert ledger._step("activate", "b", fields, "", "", "another's") == 0


def test_the_janitor_spares_a_batch_that_was_submitted_after_all(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SUBMISSION_GRACE_S", 0.0)
    ledger.reserve("late")
    ledger.activate("late", work())
    ledger._remove("late", "expired")
    assert ledger.progress("late").state == "running"


def test_chunks_of_the_dead_are_found_at_once_though_others_have_waited_long(ledger: Ledger, batch: str) -> None:
    [first, second] = ledger.top_up(batch, slots=1)
    ledger.begin(batch, first, "gone@nowhere/1")
    waits = json.loads(ledger.server.hget(f"runner:batch:{batch}:chunks", str(second)))
    waits["at"] -= 10_000
    ledger.server.hset(f"runner:batch:{batch}:chunks", str(second), json.dumps(waits))
    assert ledger.recover(batch) == [first, second]


def test_a_chunk_that_was_committed_before_and_after_a_restart_does_not_end_the_waiting_early(ledger: Ledger) -> None:
    submit(ledger, "b", total=32)
    ledger.top_up("b", slots=1)
    follower = Follower(ledger, "b", 32)
    ledger.begin("b", 0, ME)
    commit(ledger, "b", 0, 16, blob=b"first")
    ledger.server.xadd("runner:batch:b:events", {"start": 0, "stop": 16, "failed": 0, "us": 1, "worker": "w"})
    ledger.server.hset("runner:batch:b", mapping={"state": "done", "done": 32})
    follower.look(0.01)
    assert not follower.complete


def test_results_are_complete_when_the_last_event_has_been_read(ledger: Ledger) -> None:
    submit(ledger, "b", total=32)
    follower = Follower(ledger, "b", 32)
    ledger.top_up("b", slots=1)
    for start in (0, 16):
        assert not follower.complete
        ledger.begin("b", start, ME)
        commit(ledger, "b", start, start + 16, blob=b"%d" % start)
    assert follower.look(0.01) == [b"0", b"16"]
    assert follower.complete
    assert follower.look(0.01) == []


def test_an_outcome_that_is_not_there_yet_again_is_left_out_and_one_of_a_removed_batch_is_said(ledger: Ledger) -> None:
    submit(ledger, "b", total=32)
    ledger.top_up("b", slots=1)
    ledger.begin("b", 0, ME)
    commit(ledger, "b", 0, 16)
    assert ledger.outcomes("b", [0, 16]) == [b"x"]
    ledger.remove("b")
    with pytest.raises(SweepNotFound, match="gone"):
        ledger.outcomes("b", [0])
