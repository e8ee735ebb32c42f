"""What `workers.cache` promises about many callers, and about a server or a process that fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
import redis.asyncio

from runner import valkey
from runner.errors import SourceUnavailable
from tests.support import ROOT, running_valkey, wait_until
from tests.workers.caches import PREFIX, Provider, caches, run
from workers import cache as module
from workers import flight, server
from workers.cache import Entry, Loaded
from workers.shelf import PART_BYTES


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server that the test may break, and its process number."""
    with running_valkey(tmp_path) as url:
        with redis.Redis.from_url(url) as client:
            pid = int(client.info("server")["process_id"])
        yield url, pid


# One flight


def test_callers_of_one_process_share_a_load(url: str) -> None:
    async def main() -> None:
        async with caches(url) as (cache,):
            provider = Provider()
            entries = await asyncio.gather(*[cache.get("k", provider) for _ in range(20)])
            assert {entry.value for entry in entries} == {b"value"}
            assert provider.calls == 1
            assert cache.stats()["cache_shared_flights"] == 19
            assert cache.stats()["cache_requests"] == 20

    run(main)


def test_processes_share_a_load(url: str) -> None:
    async def main() -> None:
        async with caches(url, 8) as made:
            provider = Provider()
            gets = [cache.get("k", provider) for cache in made for _ in range(20)]
            entries = await asyncio.gather(*gets)
            assert {entry.value for entry in entries} == {b"value"}
            assert provider.calls == 1
            assert sum(cache.stats()["cache_loads"] for cache in made) == 1
            assert sum(cache.stats()["cache_l2_hits"] for cache in made) == 7

    run(main)


def test_a_cancelled_caller_leaves_the_load_to_the_others(url: str) -> None:
    async def main() -> None:
        async with caches(url) as (cache,):
            provider = Provider()
            provider.gate.clear()
            gets = [asyncio.create_task(cache.get("k", provider)) for _ in range(3)]
            await provider.asked.wait()
            gets[0].cancel()  # the one that began it
            await asyncio.wait({gets[0]})
            provider.gate.set()
            assert [(await get).value for get in gets[1:]] == [b"value"] * 2
            assert gets[0].cancelled()
            assert provider.calls == 1

    run(main)


def test_when_all_callers_are_cancelled_the_load_still_fills_the_cache(url: str) -> None:
    async def main() -> None:
        async with caches(url) as (cache,):
            provider = Provider()
            provider.gate.clear()
            gets = [asyncio.create_task(cache.get("k", provider)) for _ in range(3)]
            await provider.asked.wait()
            for get in gets:
                get.cancel()
            await asyncio.wait(gets)
            provider.gate.set()
            assert (await cache.get("k", provider)).value == b"value"
            assert provider.calls == 1

    run(main)


def test_closing_ends_what_is_under_way_with_an_error_and_gives_the_turn_back(url: str) -> None:
    async def main() -> None:
        async with caches(url, 2) as (one, two):
            provider = Provider()
            provider.gate.clear()
            get = asyncio.create_task(one.get("k", provider))
            await provider.asked.wait()
            await one.close()
            with pytest.raises(module.Closed, match="closed"):
                await get
            provider.gate.set()
            async with asyncio.timeout(flight.LOCK_S / 2):
                assert (await two.get("k", provider)).value == b"value"

    run(main)


def test_a_load_that_takes_for_ever_ends(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST_LOAD_S", 0.1)

    async def main() -> None:
        async with caches(url) as (cache,):
            provider = Provider()
            provider.gate.clear()
            with pytest.raises(SourceUnavailable, match="not loaded within"):
                await cache.get("k", provider)

    run(main)


def test_a_loader_that_lost_its_turn_answers_its_callers_but_overwrites_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with caches(url, 3) as (slow, fast, third):
            late = Provider(Loaded(b"late", ttl_s=60.0))
            late.gate.clear()
            get = asyncio.create_task(slow.get("k", late))
            await late.asked.wait()
            with redis.Redis.from_url(url) as client:
                client.delete(f"{PREFIX}lock:k")  # as if it had stood still for longer than its lock
            assert (await fast.get("k", Provider(Loaded(b"right", ttl_s=60.0)))).value == b"right"
            late.gate.set()
            assert (await get).value == b"late"
            assert slow.stats()["cache_fenced"] == 1
            assert (await third.get("k", late)).value == b"right"

    run(main)


def test_after_a_loading_process_was_killed_another_loads(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flight, "POLL_S", 0.05)
    holder = """
import asyncio, sys, redis.asyncio
from workers import flight
from workers.cache import TieredCache
flight.LOCK_S = 0.6
async def load(entry):
    print("loading", flush=True)
    await asyncio.sleep(60)
async def main():
    async with redis.asyncio.Redis.from_url(sys.argv[1]) as client:
        cache = TieredCache(client, namespace="t", encode=bytes, decode=bytes, size=len)
        await cache.get("k", load)
asyncio.run(main())
"""

    async def main() -> None:
        async with caches(url, 2) as made:
            provider = Provider()
            gets = [asyncio.create_task(cache.get("k", provider)) for cache in made for _ in range(5)]
            with redis.Redis.from_url(url) as client:
                await asyncio.to_thread(
                    wait_until, lambda: client.pubsub_numsub(f"{PREFIX}done")[0][1] == 2, "both wait"
                )
            assert provider.calls == 0
            process.send_signal(signal.SIGKILL)
            assert {(await get).value for get in gets} == {b"value"}
            assert provider.calls == 1

    with subprocess.Popen([sys.executable, "-c", holder, url], stdout=subprocess.PIPE, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"loading\n"
            run(main)
        finally:
            process.kill()


def test_two_loops_of_one_process_share_a_load(url: str) -> None:
    calls: list[int] = []
    values: list[bytes | None] = []
    both = threading.Barrier(2)

    async def load(entry: Entry[bytes] | None) -> Loaded[bytes]:
        calls.append(1)
        await asyncio.sleep(0.05)
        return Loaded(b"value", ttl_s=60.0)

    async def main() -> None:
        async with caches(url) as (cache,):
            await asyncio.to_thread(both.wait, 10)
            values.extend([entry.value for entry in await asyncio.gather(*[cache.get("k", load) for _ in range(10)])])

    threads = [threading.Thread(target=run, args=(main,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(calls) == 1
    assert values == [b"value"] * 20


# A server that fails


def test_without_a_server_memory_and_one_flight_remain() -> None:
    async def main() -> None:
        async with caches(None) as (cache,):
            provider = Provider()
            await asyncio.gather(*[cache.get("k", provider) for _ in range(5)])
            assert (await cache.get("k", provider)).tier == "l1"
            assert provider.calls == 1
            assert cache.stats()["cache_l2_errors"] == 0

    run(main)


def test_a_server_that_is_not_there_makes_it_slower_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "DEADLINE_S", 0.2)

    async def main() -> None:
        async with caches(f"redis://127.0.0.1:{valkey.free_port()}/0") as (cache,):
            provider = Provider()
            for n in range(50):
                assert (await cache.get(str(n), provider)).value == b"value"
            assert provider.calls == 50
            assert cache.stats()["cache_l2_errors"] == 1  # the others did without at once

    run(main)


def test_a_server_killed_while_one_loads_and_others_wait_leaves_all_with_the_value(
    own: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, pid = own
    monkeypatch.setattr(server, "DEADLINE_S", 0.3)
    monkeypatch.setattr(flight, "POLL_S", 0.1)

    async def main() -> None:
        async with caches(url, 3) as made:
            provider = Provider()
            provider.gate.clear()
            gets = [asyncio.create_task(cache.get("k", provider)) for cache in made for _ in range(3)]
            with redis.Redis.from_url(url) as client:
                await asyncio.to_thread(
                    wait_until, lambda: client.pubsub_numsub(f"{PREFIX}done")[0][1] == 2, "both others listen"
                )
            os.kill(pid, signal.SIGKILL)
            provider.gate.set()
            assert {(await get).value for get in gets} == {b"value"}
            assert provider.calls <= 3
            assert (await made[0].get("k", provider)).tier == "l1"

    run(main)


def test_a_server_that_hangs_makes_it_slower_only_and_is_used_again_afterwards(
    own: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, pid = own
    monkeypatch.setattr(server, "DEADLINE_S", 0.1)
    monkeypatch.setattr(server, "PAUSE_S", 0.1)

    async def main() -> None:
        async with caches(url, 2) as (one, two):
            provider = Provider()
            await one.get("before", provider)
            os.kill(pid, signal.SIGSTOP)
            try:
                assert (await one.get("during", provider)).value == b"value"
            finally:
                os.kill(pid, signal.SIGCONT)
            n = 0
            while (await two.get(f"after{n}", provider)).tier != "l2":
                await one.get(f"after{n + 1}", provider)
                n += 1
                await asyncio.sleep(0.02)

    run(main)


def test_a_full_server_makes_it_slower_only(own: tuple[str, int]) -> None:
    url, _ = own

    async def main() -> None:
        async with caches(url, 2) as (one, two), redis.asyncio.Redis.from_url(url) as client:
            await client.config_set("maxmemory-policy", "noeviction")
            await client.config_set("maxmemory", 1)
            provider = Provider(Loaded(bytes(2 * PART_BYTES), ttl_s=60.0))
            for cache in (one, two):
                assert (await cache.get("k", provider)).value == bytes(2 * PART_BYTES)
                assert (await cache.get("k", provider)).tier == "l1"
                assert cache.stats()["cache_l2_errors"] > 0
            await client.config_set("maxmemory", 0)
            await one.get("later", provider)
            assert (await two.get("later", provider)).tier == "l2"

    run(main)


def test_a_server_that_fills_up_during_a_load_leaves_no_part_and_no_lock(own: tuple[str, int]) -> None:
    url, _ = own

    async def main() -> None:
        async with caches(url) as (cache,), redis.asyncio.Redis.from_url(url) as client:
            await client.config_set("maxmemory-policy", "noeviction")
            provider = Provider(Loaded(bytes(2 * PART_BYTES), ttl_s=60.0))
            provider.gate.clear()
            get = asyncio.create_task(cache.get("k", provider))
            await provider.asked.wait()
            await client.config_set("maxmemory", 1)
            provider.gate.set()
            assert (await get).value == bytes(2 * PART_BYTES)
            assert await client.keys("*") == []

    run(main)
