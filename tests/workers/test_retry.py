"""When to try again."""

from __future__ import annotations

from email.utils import formatdate

import pytest

from workers.retry import BUDGET_FLOOR, LONGEST_BAN_S, MOST_S, Budget, backoff_s, failed, retry_after_s

NOW_S = 1_800_000_000.0


@pytest.mark.parametrize("status", [408, 418, 425, 429, 500, 501, 502, 503, 504, 520])
def test_these_statuses_are_no_answers(status: int) -> None:
    assert failed(status)


@pytest.mark.parametrize("status", [200, 204, 206, 301, 304, 400, 401, 403, 404, 410, 422])
def test_these_are_final_answers(status: int) -> None:
    assert not failed(status)


@pytest.mark.parametrize("retry", [0, 1, 2, 3, 20])
def test_backoff_is_spread_over_all_of_a_span_that_doubles_up_to_a_cap(retry: int) -> None:
    span = min(MOST_S, 0.5 * 2**retry)
    waits = [backoff_s(retry, 0.5) for _ in range(2000)]
    assert min(waits) >= 0.0
    assert max(waits) <= span
    assert min(waits) < 0.05 * span
    assert max(waits) > 0.95 * span


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("0", 0.0),
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("-3", None),
        (formatdate(NOW_S + 90, usegmt=True), 90.0),
        (formatdate(NOW_S - 90, usegmt=True), 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("inf", None),
        ("1e300", None),
        ("1e308", None),
        ("Fri, 31 Dec 99999999999999999999 00:00:00 GMT", None),
        ("Fri, 31 Dec 9999 00:00:00 +99999999999999999999", None),
        ("Fri, 31 Dec 9999 23:59:59 GMT", LONGEST_BAN_S),
        ("9" * 20, LONGEST_BAN_S),
        ("9" * 5000, LONGEST_BAN_S),
    ],
)
def test_retry_after_is_read_as_seconds_and_as_date(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header, NOW_S) == seconds


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_few_requests_may_retry_by_the_floor() -> None:
    budget = Budget(Clock())
    budget.request()
    assert [budget.retry() for _ in range(BUDGET_FLOOR + 2)] == [True] * BUDGET_FLOOR + [False] * 2


def test_many_requests_may_retry_one_in_ten() -> None:
    clock = Clock()
    budget = Budget(clock)
    for _ in range(1000):
        budget.request()
        clock.now += 0.01
    assert sum(budget.retry() for _ in range(500)) == 100


def test_after_a_minute_all_is_forgotten() -> None:
    clock = Clock()
    budget = Budget(clock)
    for _ in range(1000):
        budget.request()
    assert sum(budget.retry() for _ in range(500)) == 100
    clock.now += 30
    assert not budget.retry()
    clock.now += 31
    assert sum(budget.retry() for _ in range(500)) == BUDGET_FLOOR
