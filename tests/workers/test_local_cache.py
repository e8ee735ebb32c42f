from __future__ import annotations

import threading
import time

from tests.support import wait_until
from workers.local_cache import LocalCache


def test_a_value_is_kept_and_questions_are_counted() -> None:
    cache: LocalCache[str] = LocalCache(10)
    assert cache.get("k") is None
    cache.put("k", "v", 1)
    assert cache.get("k") == "v"
    assert (cache.hits, cache.misses) == (1, 1)


def test_each_value_has_a_lifetime_of_its_own() -> None:
    cache: LocalCache[str] = LocalCache(10)
    cache.put("short", "v", 1, lives_s=0.02)
    cache.put("long", "v", 1)
    wait_until(lambda: cache.get("short") is None, "the short one is over", timeout_s=5)
    assert cache.get("long") == "v"


def test_a_lifetime_that_is_over_keeps_nothing() -> None:
    cache: LocalCache[str] = LocalCache(10)
    cache.put("k", "v", 1)
    cache.put("k", "w", 1, lives_s=-1)
    assert cache.get("k") is None


def test_bytes_are_bounded_and_the_least_used_goes_first() -> None:
    cache: LocalCache[str] = LocalCache(10)
    cache.put("a", "a", 5)
    cache.put("b", "b", 5)
    cache.get("a")
    cache.put("c", "c", 5)
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == ("a", None, "c")


def test_a_value_larger_than_the_cache_is_not_kept_and_its_predecessor_is_gone() -> None:
    cache: LocalCache[str] = LocalCache(10)
    cache.put("k", "old", 5)
    cache.put("k", "new", 11)
    assert cache.get("k") is None


def test_threads_share_it() -> None:
    cache: LocalCache[int] = LocalCache(50)

    def work() -> None:
        for n in range(2000):
            key = str(n % 20)
            if cache.get(key) is None:
                cache.put(key, n, 5, lives_s=0.001 if n % 3 else 60.0)
            time.sleep(0)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.hits + cache.misses == 16_000
    assert cache.hits > 0
