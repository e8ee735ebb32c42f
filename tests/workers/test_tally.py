from __future__ import annotations

import threading
from collections import Counter

from workers.tally import Tally


def test_what_was_taken_is_not_given_again() -> None:
    tally = Tally()
    tally.add("tasks_ok")
    tally.add("tasks_ok", 2)
    assert tally.take() == {"tasks_ok": 3}
    assert tally.take() == {}
    tally.add("tasks_ok")
    assert tally.take() == {"tasks_ok": 1}


def test_a_watched_component_gives_only_what_has_grown() -> None:
    tally, counts = Tally(), Counter({"hits": 5, "misses": 0})
    tally.watch(lambda: counts)
    assert tally.take() == {"hits": 5}
    counts["misses"] += 1
    assert tally.take() == {"misses": 1}


def test_two_components_of_one_name_are_added() -> None:
    tally = Tally()
    tally.watch(lambda: {"hits": 1})
    tally.watch(lambda: {"hits": 2})
    assert tally.take() == {"hits": 3}


def test_threads_lose_no_count() -> None:
    tally = Tally()
    taken: Counter[str] = Counter()

    def count() -> None:
        for _ in range(1000):
            tally.add("n")

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        taken.update(tally.take())
    taken.update(tally.take())
    assert taken == {"n": 4000}
