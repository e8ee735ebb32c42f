"""Answers that are kept for a while."""

from __future__ import annotations

from dataclasses import replace

import pytest
from multidict import CIMultiDict

from runner.errors import SourceRefused
from workers.responses import MIB, OVERHEAD_BYTES, Answers, Request, Response


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def answer(body: bytes = b"data", status: int = 200, **headers: str) -> Response:
    told = CIMultiDict({name.replace("_", "-"): value for name, value in headers.items()})
    return Response("http://host/path", status, told, body, from_cache=False, attempts=1)


def kept(response: Response, ttl_s: float = 300.0) -> tuple[Answers, Clock, bytes]:
    clock = Clock()
    answers, key = Answers(MIB, clock), b"key"
    answers.keep(key, response, ttl_s, response.headers)
    return answers, clock, key


def test_an_answer_is_fresh_for_its_ttl_and_then_stale() -> None:
    answers, clock, key = kept(answer())
    entry = answers.find(key)
    assert entry is not None
    assert entry.response.body == b"data"
    clock.now += 299
    assert answers.fresh(entry)
    clock.now += 1
    assert not answers.fresh(entry)


@pytest.mark.parametrize(
    ("told", "fresh_s"),
    [
        ("max-age=60", 60),
        ("public, MAX-AGE=60", 60),
        ("max-age=900", 300),
        ("max-age=" + "9" * 5000, 300),  # more digits than int() takes
        ("no-cache", 0),
        ("max-age=0", 0),
    ],
)
def test_the_server_may_shorten_it(told: str, fresh_s: int) -> None:
    answers, clock, key = kept(answer(Cache_Control=told))
    entry = answers.find(key)
    assert entry is not None
    clock.now += fresh_s - 0.5 if fresh_s else 0.0
    assert answers.fresh(entry) == (fresh_s > 0)
    clock.now += 0.5
    assert not answers.fresh(entry)


def test_the_time_it_spent_in_other_caches_counts() -> None:
    answers, clock, key = kept(answer(Cache_Control="max-age=60", Age="50"))
    clock.now += 10
    entry = answers.find(key)
    assert entry is not None
    assert not answers.fresh(entry)


def test_an_age_beyond_all_counting_is_older_than_any_max_age() -> None:
    answers, _, key = kept(answer(Cache_Control="max-age=60", Age="9" * 5000))
    entry = answers.find(key)
    assert entry is not None
    assert not answers.fresh(entry)


@pytest.mark.parametrize(
    "response",
    [
        answer(Cache_Control="no-store"),
        answer(Cache_Control="max-age=60, No-Store"),
        answer(Vary="*"),
        answer(status=404),
        answer(status=206),
        answer(b"<html>", Content_Type="text/html; charset=utf-8"),
        answer(bytes(MIB)),
    ],
)
def test_these_are_not_kept_and_replace_what_was(response: Response) -> None:
    answers, _, key = kept(answer())
    answers.keep(key, response, 300.0, response.headers)
    assert answers.find(key) is None


def test_the_bodies_together_stay_below_the_limit_and_the_least_used_goes() -> None:
    answers = Answers(10 * (1000 + OVERHEAD_BYTES))
    for number in range(10):
        answers.keep(bytes([number]), answer(bytes(1000)), 300.0, {})
    assert answers.find(b"\x00") is not None
    answers.keep(b"\x0a", answer(bytes(1000)), 300.0, {})
    assert answers.find(b"\x00") is not None
    assert answers.find(b"\x01") is None


def test_url_parameters_headers_and_privacy_tell_answers_apart() -> None:
    answers = Answers(MIB)
    one = Request("http://host/path", {"a": "1"}, {"X-Key": "mine"})
    others = [
        replace(one, url="http://host/other"),
        replace(one, params={"a": "2"}),
        replace(one, params=None),
        replace(one, headers={"X-Key": "yours"}),
        replace(one, headers=None),
        replace(one, private=True),
    ]
    keys = {answers.key(request) for request in [one, *others]}
    assert len(keys) == 7
    assert answers.key(replace(one, url="http://host/path?a=1", params=None)) == answers.key(one)
    assert answers.key(replace(one, headers={"x-key": "mine"}, deadline_s=1.0, weight=5)) == answers.key(one)


def test_neither_keys_nor_reprs_hold_credentials() -> None:
    request = Request("http://host/path?token=hush", {"api_key": "hush"}, {"Authorization": "hush"})
    assert "hush" not in repr(request)
    assert "hush" not in repr(answer(b"hush", Set_Cookie="hush"))
    one, other = Answers(MIB).key(request), Answers(MIB).key(request)
    assert one != other  # a key of the process's own: nobody can try credentials against it
    assert len(one) == 16


@pytest.mark.parametrize("url", ["http://[::1/?token=hush", "http://host:port/?token=hush"])
def test_what_is_no_url_is_refused_without_its_query(url: str) -> None:
    with pytest.raises(SourceRefused, match="expected http://host/path") as caught:
        Request(url).target()
    assert "hush" not in str(caught.value)
