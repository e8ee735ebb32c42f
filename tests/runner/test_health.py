from __future__ import annotations

import math

from runner import health

COUNTS = {
    "cache_requests": 100,
    "cache_l1_hits": 50,
    "cache_l2_hits": 25,
    "cache_loads": 20,
    "cache_shared_flights": 4,
    "cache_stale_served": 1,
    "http_requests": 200,
    "http_requests_ok": 199,
    "http_attempts": 300,
    "http_attempts_ok": 199,
    "tasks_ok": 97,
    "tasks_failed": 2,
    "tasks_lost": 1,
}


def of(name: str, counts: health.Counts = COUNTS) -> health.Share:
    return next(share for share in health.shares(counts) if share.name == name)


def test_each_tier_is_judged_by_what_reached_it() -> None:
    assert of("cache_l1").value == 0.5
    assert of("cache_l2").value == 0.5
    assert of("cache").value == 0.8


def test_requests_and_attempts_are_told_apart() -> None:
    assert of("http_requests").value == 0.995
    assert of("http_attempts").value == 199 / 300


def test_a_task_whose_process_died_counts_against_the_rest() -> None:
    assert of("tasks").value == 0.97


def test_a_share_is_judged_by_its_target() -> None:
    judged = {share.name: share.reached for share in health.shares(COUNTS)}
    assert judged == {
        "cache": True,
        "cache_l1": None,
        "cache_l2": None,
        "http_requests": True,
        "http_attempts": False,
        "tasks": False,
    }


def test_of_nothing_no_share_is_made_and_no_target_missed() -> None:
    assert all(math.isnan(share.value) and share.reached is None for share in health.shares({}))


def test_what_a_cache_answered_is_a_call_saved() -> None:
    assert health.calls_saved(COUNTS) == 80
