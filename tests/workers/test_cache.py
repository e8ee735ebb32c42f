from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import redis
import redis.asyncio

from runner.errors import BadAnswer, SourceUnavailable, SymbolUnknown
from tests.support import wait_until
from tests.workers.caches import PREFIX, Cache, Provider, cache_on, caches, run
from workers import cache as module
from workers.cache import Loaded
from workers.shelf import PART_BYTES


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times to live as they were asked for."""
    monkeypatch.setattr(module, "JITTER", 0.0)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Move this process's clock; the server's goes on as it was."""
    shift = [0.0]
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])

    def move(seconds: float) -> None:
        shift[0] += seconds

    return move


# The three levels


def test_a_value_is_loaded_once_then_in_memory_then_on_the_server(url: str) -> None:
    async def main() -> None:
        async with caches(url, 2) as (one, two):
            provider = Provider(Loaded(b"v", ttl_s=60.0, etag="e", last_modified="m"))
            tiers = [(await cache.get("k", provider)) for cache in (one, one, two, two)]
            assert [entry.tier for entry in tiers] == ["load", "l1", "l2", "l1"]
            assert {(entry.value, entry.etag, entry.last_modified, entry.stale) for entry in tiers} == {
                (b"v", "e", "m", False)
            }
            assert len({(entry.fetched_at_s, entry.fresh_until_s) for entry in tiers}) == 1
            assert provider.calls == 1
            counts = one.stats()
            assert (counts["cache_requests"], counts["cache_l1_hits"], counts["cache_loads"]) == (2, 1, 1)
            assert (two.stats()["cache_l2_hits"], two.stats()["cache_loads"]) == (1, 0)

    run(main)


def test_no_name_on_the_server_lacks_a_time_to_live_and_all_are_in_the_namespace(url: str) -> None:
    async def main() -> None:
        async with caches(url) as (cache,):
            provider = Provider(Loaded(bytes(3 * PART_BYTES), ttl_s=60.0, grace_s=30.0))
            provider.gate.clear()
            get = asyncio.create_task(cache.get("big", provider))
            await provider.asked.wait()
            with redis.Redis.from_url(url) as client:
                names = set(client.keys("*"))
                assert names == {f"{PREFIX}lock:big".encode()}
                assert all(client.pttl(name) > 0 for name in names)
                provider.gate.set()
                await get
                names = set(client.keys("*"))
                assert len(names) == 4
                assert all(name.startswith(PREFIX.encode()) for name in names)
                assert all(60_000 < client.pttl(name) < 97_000 for name in names)

    run(main)


def test_times_to_live_differ_by_up_to_a_tenth() -> None:
    async def main() -> None:
        async with caches(None) as (cache,):
            provider = Provider(Loaded(b"v", ttl_s=100.0))
            entries = [await cache.get(str(n), provider) for n in range(200)]
            lives = [entry.fresh_until_s - entry.fetched_at_s for entry in entries]
            assert 90 <= min(lives) < 95
            assert 105 < max(lives) <= 110

    run(main)


def test_a_value_larger_than_memory_is_answered_from_the_server(url: str) -> None:
    async def main() -> None:
        async with redis.asyncio.Redis.from_url(url) as client:
            cache = cache_on(client, l1_bytes=5000)
            provider = Provider(Loaded(bytes(5000), ttl_s=60.0))
            assert [(await cache.get("k", provider)).tier for _ in range(3)] == ["load", "l2", "l2"]
            await cache.close()

    run(main)


def test_values_over_a_megabyte_come_back_whole_and_a_lost_part_is_a_miss(url: str) -> None:
    async def main() -> None:
        value = np.random.default_rng(1).bytes(5 * PART_BYTES // 2)
        async with caches(url, 3) as (one, two, three):
            provider = Provider(Loaded(value, ttl_s=60.0))
            await one.get("k", provider)
            found = await two.get("k", provider)
            assert (found.tier, found.value == value) == ("l2", True)
            with redis.Redis.from_url(url) as client:
                client.delete(next(iter(client.scan_iter(f"{PREFIX}part:*"))))
            assert (await three.get("k", provider)).tier == "load"
            assert three.stats()["cache_damaged"] > 0

    run(main)


@pytest.mark.parametrize("harm", ["foreign", "cut", "other type", "undecodable"])
def test_foreign_or_damaged_bytes_are_a_miss_that_is_counted_and_overwritten(url: str, harm: str) -> None:
    def decode(blob: bytes) -> bytes:
        if blob == b"old":
            raise ZeroDivisionError
        return blob

    async def main() -> None:
        async with caches(url, 2) as (one, two), redis.asyncio.Redis.from_url(url) as client:
            name = f"{PREFIX}entry:k"
            await one.get("k", Provider(Loaded(b"old", ttl_s=60.0)))
            if harm == "foreign":
                await client.set(name, b"\x80\x05foreign", px=9000)
            elif harm == "cut":
                await client.set(name, bytes(await client.get(name))[:-1], px=9000)  # type: ignore[arg-type] # it is bytes
            elif harm == "other type":
                await client.delete(name)
                await client.lpush(name, b"x")
            else:
                two._decode = decode
            assert (await two.get("k", Provider(Loaded(b"new", ttl_s=60.0)))).value == b"new"
            assert two.stats()["cache_damaged" if harm != "other type" else "cache_l2_errors"] > 0
            async with caches(url) as (third,):
                assert (await third.get("k", Provider())).value == b"new"

    run(main)


# Negative entries and errors


def test_that_there_is_nothing_is_remembered_with_its_reason_for_a_time_of_its_own(
    url: str, exact: None, later: Callable[[float], None]
) -> None:
    async def main() -> None:
        async with caches(url, 2) as (one, two):
            provider = Provider(Loaded(None, ttl_s=10.0, note="no such symbol"))
            entries = [await cache.get("k", provider) for cache in (one, one, two)]
            assert {(entry.value, entry.note) for entry in entries} == {(None, "no such symbol")}
            assert provider.calls == 1
            assert (one.stats()["cache_negative_hits"], two.stats()["cache_negative_hits"]) == (1, 1)
            later(10.1)
            provider.says = Loaded(b"listed today", ttl_s=60.0)
            assert (await one.get("k", provider)).value == b"listed today"

    run(main)


@pytest.mark.parametrize("error", [SymbolUnknown("x"), BadAnswer("x"), SourceUnavailable("x"), ZeroDivisionError("x")])
def test_an_error_goes_to_everyone_who_waits_and_is_not_kept(url: str, error: Exception) -> None:
    async def main() -> None:
        async with caches(url) as (cache,):
            provider = Provider(error)
            got = await asyncio.gather(*[cache.get("k", provider) for _ in range(5)], return_exceptions=True)
            assert got == [error] * 5
            assert provider.calls == 1
            provider.says = Loaded(b"v", ttl_s=60.0)
            assert (await cache.get("k", provider)).tier == "load"
            assert cache.stats()["cache_load_errors"] == 1

    run(main)


def test_other_processes_that_wait_get_the_loader_s_error_and_do_not_ask_again(url: str) -> None:
    async def main() -> None:
        async with caches(url, 3) as made:
            provider = Provider(SymbolUnknown("no such symbol"))
            provider.gate.clear()
            gets = [asyncio.create_task(cache.get("k", provider)) for cache in made]
            with redis.Redis.from_url(url) as client:
                await asyncio.to_thread(
                    wait_until, lambda: client.pubsub_numsub(f"{PREFIX}done")[0][1] == 2, "both others listen"
                )
                # Each looks once more after it has subscribed; then it waits.
                looks = client.info("commandstats")["cmdstat_get"]["calls"]
                await asyncio.to_thread(
                    wait_until, lambda: client.info("commandstats")["cmdstat_get"]["calls"] >= looks + 2, "they wait"
                )
            provider.gate.set()
            got = await asyncio.gather(*gets, return_exceptions=True)
            assert [(type(error), str(error)) for error in got] == [(SymbolUnknown, "no such symbol")] * 3
            assert provider.calls == 1

    run(main)


# Staleness


def test_a_stale_entry_stands_in_for_a_provider_that_is_away_and_says_so(
    url: str, exact: None, later: Callable[[float], None]
) -> None:
    async def main() -> None:
        async with caches(url, 2) as (one, two):
            provider = Provider(Loaded(b"old", ttl_s=10.0, grace_s=20.0, etag="e"))
            first = await one.get("k", provider)
            later(11)
            provider.says = SourceUnavailable("503")
            for cache in (one, two):
                entry = await cache.get("k", provider)
                assert (entry.value, entry.stale, entry.fetched_at_s) == (b"old", True, first.fetched_at_s)
                assert cache.stats()["cache_stale_served"] == 1
                shown = provider.shown[-1]
                assert shown is not None
                assert (shown.value, shown.etag, shown.stale) == (b"old", "e", True)
            provider.says = SymbolUnknown("delisted")
            with pytest.raises(SymbolUnknown):
                await one.get("k", provider)
            provider.says = SourceUnavailable("503")
            later(20)
            for cache in (one, two):
                with pytest.raises(SourceUnavailable):
                    await cache.get("k", provider)

    run(main)


def test_memory_alone_has_a_stale_entry_too(exact: None, later: Callable[[float], None]) -> None:
    async def main() -> None:
        async with caches(None) as (cache,):
            provider = Provider(Loaded(b"old", ttl_s=10.0, grace_s=20.0))
            await cache.get("k", provider)
            later(11)
            provider.says = SourceUnavailable("503")
            assert (await cache.get("k", provider)).stale
            provider.says = Loaded(b"new", ttl_s=10.0)
            assert (await cache.get("k", provider)).value == b"new"

    run(main)


def test_an_unchanged_entry_lives_on_with_its_validators(url: str, exact: None, later: Callable[[float], None]) -> None:
    async def main() -> None:
        value = bytes(2 * PART_BYTES)
        async with caches(url, 2) as (one, two):
            provider = Provider(Loaded(value, ttl_s=10.0, grace_s=60.0, etag="e", last_modified="m"))
            first = await one.get("k", provider)
            later(11)
            provider.says = Loaded(None, ttl_s=10.0, grace_s=60.0, unchanged=True)
            second = await one.get("k", provider)
            assert (second.value, second.etag, second.last_modified, second.stale) == (value, "e", "m", False)
            assert second.fetched_at_s >= first.fetched_at_s + 11
            later(5)
            assert (await two.get("k", provider)).tier == "l2"
            assert provider.calls == 2
            with redis.Redis.from_url(url) as client:
                assert len(client.keys(f"{PREFIX}part:*")) == 2

    run(main)


def test_unchanged_without_an_entry_is_a_bad_answer(url: str) -> None:
    async def main() -> None:
        async with caches(url) as (cache,):
            with pytest.raises(BadAnswer, match="nothing has changed"):
                await cache.get("k", Provider(Loaded(None, ttl_s=10.0, unchanged=True)))

    run(main)


# Early refresh


def slow_to_load(cache: Cache, load_s: float) -> Any:
    """As if loading "k" had taken so long."""
    kept = cache._l1.get("k")
    assert kept is not None
    kept.head = replace(kept.head, load_s=load_s)
    kept.due_from_s = kept.head.fresh_until_s - module.EARLIEST_LOADS * load_s
    return kept


def test_near_its_end_an_entry_is_refreshed_once_while_all_get_the_old_one(
    url: str, exact: None, later: Callable[[float], None]
) -> None:
    async def main() -> None:
        async with caches(url, 3) as made:
            provider = Provider(Loaded(b"old", ttl_s=100.0))
            for cache in made:
                await cache.get("k", provider)
                slow_to_load(cache, 1.0)
            later(50)
            assert {(await cache.get("k", provider)).tier for cache in made for _ in range(100)} == {"l1"}
            assert provider.calls == 1  # far from its end
            later(49.9)
            provider.says = Loaded(b"new", ttl_s=100.0)
            provider.gate.clear()
            provider.asked.clear()
            entries = [await cache.get("k", provider) for _ in range(200) for cache in made]
            assert {(entry.value, entry.tier, entry.stale) for entry in entries} == {(b"old", "l1", False)}
            await provider.asked.wait()
            assert [cache.stats()["cache_early_refreshes"] for cache in made] == [1, 1, 1]
            provider.gate.set()
            flights = [task for cache in made for task in cache._loads.values()]
            await asyncio.wait(flights)
            assert [(await cache.get("k", provider)).value for cache in made] == [b"new"] * 3
            assert provider.calls == 2
            assert sum(cache.stats()["cache_loads"] for cache in made) == 2
            shown = provider.shown[-1]
            assert shown is not None
            assert shown.value == b"old"

    run(main)


def test_a_refresh_that_fails_harms_nobody_and_is_not_tried_again_before_the_end(
    exact: None, later: Callable[[float], None]
) -> None:
    async def main() -> None:
        async with caches(None) as (cache,):
            provider = Provider(Loaded(b"old", ttl_s=100.0))
            await cache.get("k", provider)
            slow_to_load(cache, 1.0)
            later(99.99)
            provider.says = BadAnswer("x")
            for _ in range(200):
                assert (await cache.get("k", provider)).value == b"old"
                await asyncio.sleep(0)
            assert provider.calls == 2
            later(1)
            with pytest.raises(BadAnswer):
                await cache.get("k", provider)

    run(main)


def test_how_often_a_refresh_is_drawn_follows_the_time_that_is_left(
    exact: None, later: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """exp(-left / load time): 37 % with one load time left."""

    async def main() -> None:
        async with caches(None) as (cache,):
            provider = Provider(Loaded(b"v", ttl_s=100.0))
            await cache.get("k", provider)
            kept = slow_to_load(cache, 10.0)
            later(kept.head.fresh_until_s - 10.0 - time.time())
            drawn = 0
            for _ in range(2000):
                kept.due_from_s = 0.0
                cache._still_fresh("k", provider, kept)
                if cache._loads:
                    drawn += 1
                    await cache.close()
            assert 0.32 < drawn / 2000 < 0.42

    monkeypatch.setattr(random, "random", np.random.default_rng(7).random)
    run(main)
