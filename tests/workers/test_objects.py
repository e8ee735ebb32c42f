from __future__ import annotations

from workers.objects import ObjectCache


def test_an_object_is_fetched_and_decoded_once() -> None:
    cache, fetched = ObjectCache(), []

    def fetch() -> bytes:
        fetched.append(1)
        return b"abc"

    assert cache.get("k", fetch, bytes.decode) == "abc"
    assert cache.get("k", fetch, bytes.decode) == "abc"
    assert len(fetched) == 1
    assert cache.stats() == {"objects_hits": 1, "objects_misses": 1}


def test_what_the_server_does_not_have_is_none_and_asked_for_again() -> None:
    cache = ObjectCache()
    assert cache.get("k", lambda: None, bytes.decode) is None
    assert cache.get("k", lambda: b"now", bytes.decode) == "now"


def test_memory_is_bounded_and_the_least_used_goes_first() -> None:
    cache = ObjectCache(limit_bytes=10)
    for key in ("a", "b", "a", "c"):
        cache.get(key, lambda: b"12345", bytes.decode)
    assert cache.get("a", lambda: b"again", bytes.decode) == "12345"
    assert cache.get("b", lambda: b"again", bytes.decode) == "again"


def test_an_object_larger_than_the_cache_is_returned_but_not_kept() -> None:
    cache = ObjectCache(limit_bytes=2)
    assert cache.get("k", lambda: b"12345", bytes.decode) == "12345"
    assert cache.get("k", lambda: b"67890", bytes.decode) == "67890"
