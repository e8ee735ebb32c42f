from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import redis.asyncio
from yarl import URL

from runner.errors import FetchError, SourceUnavailable, SymbolUnknown
from tests.support import ROOT, wait_until
from workers import flight as module
from workers.flight import Claim, Flight
from workers.server import Server, ServerAway

P = "runner:cache:t:"
# A process that gets the turn and keeps it until it is killed.
HOLDER = f"""
import asyncio, sys, redis.asyncio
from workers import flight
from workers.server import Server
flight.LOCK_S = 0.6
async def nothing(): return None
async def main():
    async with redis.asyncio.Redis.from_url(sys.argv[1]) as client:
        claim = await flight.Flight(Server(client), {P!r}).turn("k", nothing)
        async with claim:
            print("loading", flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""


@asynccontextmanager
async def flights(url: str, n: int = 1) -> AsyncIterator[list[Flight]]:
    """As many as if they were in processes of their own: each with a connection pool of its own."""
    clients = [redis.asyncio.Redis.from_url(url) for _ in range(n)]
    made = [Flight(Server(client), P) for client in clients]
    try:
        yield made
    finally:
        for flight, client in zip(made, clients, strict=True):
            await flight.close()
            await client.aclose()


async def nothing() -> str | None:
    return None


async def claimed(flight: Flight, key: str = "k") -> Claim:
    turn = await flight.turn(key, nothing)
    assert isinstance(turn, Claim)
    return turn


async def waiting(url: str, channel: str = f"{P}done") -> None:
    """Until somebody listens."""
    with redis.Redis.from_url(url) as client:
        await asyncio.to_thread(wait_until, lambda: client.pubsub_numsub(channel)[0][1] > 0, "somebody listens")


def test_the_first_gets_the_right_and_gives_it_back(url: str) -> None:
    async def main() -> None:
        async with flights(url, 2) as (one, two):
            async with await claimed(one):
                with redis.Redis.from_url(url) as client:
                    assert 0 < client.pttl(f"{P}lock:k") <= module.LOCK_S * 1000
                async with await claimed(two, "another key"):
                    pass
            async with await claimed(two):
                pass
            with redis.Redis.from_url(url) as client:
                assert client.keys("*") == []

    asyncio.run(main())


def test_what_has_landed_is_found_by_the_double_check_and_the_right_is_free_again(url: str) -> None:
    async def landed() -> str | None:
        return "here"

    async def main() -> None:
        async with flights(url) as (one,):
            assert await one.turn("k", landed) == "here"
            async with await claimed(one):
                pass

    asyncio.run(main())


def test_those_who_wait_are_told_and_do_not_poll(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 60.0)
    there: list[str] = []

    async def landed() -> str | None:
        return there[0] if there else None

    async def main() -> None:
        async with flights(url, 4) as (first, *others):
            async with await claimed(first):
                waits = [asyncio.create_task(other.turn("k", landed)) for other in others]
                await waiting(url)
                there.append("here")
            async with asyncio.timeout(10):
                assert await asyncio.gather(*waits) == ["here"] * 3

    asyncio.run(main())


def test_without_a_channel_they_look_by_themselves(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.05)
    there: list[str] = []
    looks: list[int] = []

    async def landed() -> str | None:
        looks.append(1)
        return there[0] if there else None

    async def main() -> None:
        async with flights(deaf, 2) as (first, other), await claimed(first):
            wait = asyncio.create_task(other.turn("k", landed))
            await asyncio.to_thread(wait_until, lambda: len(looks) > 3, "it looks again and again")
            there.append("here")
            async with asyncio.timeout(10):
                assert await wait == "here"

    with redis.Redis.from_url(url) as client:
        client.execute_command("ACL", "SETUSER", "deaf", "on", ">password", "~*", "+@all", "resetchannels")
        deaf = URL(url).with_user("deaf").with_password("password").human_repr()
        try:
            asyncio.run(main())
        finally:
            client.acl_deluser("deaf")


def test_a_loader_s_error_is_the_answer_of_those_who_waited_for_it(url: str) -> None:
    async def main() -> None:
        async with flights(url, 3) as (first, *others):
            with suppress(SymbolUnknown):
                async with await claimed(first):
                    waits = [asyncio.create_task(other.turn("k", nothing)) for other in others]
                    await waiting(url)
                    raise SymbolUnknown("no such symbol: 'ß'")
            async with asyncio.timeout(10):
                told = await asyncio.gather(*waits, return_exceptions=True)
            # One of them may have come to listen too late: then it has its own turn.
            said = [error for error in told if isinstance(error, FetchError)]
            assert said
            assert all(type(error) is SymbolUnknown and str(error) == "no such symbol: 'ß'" for error in said)

    asyncio.run(main())


def test_after_another_kind_of_error_the_next_one_takes_its_turn(url: str) -> None:
    async def main() -> None:
        async with flights(url, 2) as (first, other):
            with suppress(ZeroDivisionError):
                async with await claimed(first):
                    wait = asyncio.create_task(other.turn("k", nothing))
                    await waiting(url)
                    raise ZeroDivisionError
            async with asyncio.timeout(10):
                assert isinstance(await wait, Claim)

    asyncio.run(main())


@pytest.mark.parametrize(
    "word", [b"", b"no json", b"[]", b'["k"]', b'["k", 5]', b'["k", ["x"]]', b'[["k"], null]', b"[" * 9999]
)
def test_a_foreign_word_on_the_channel_harms_nobody(url: str, word: bytes) -> None:
    async def main() -> None:
        async with flights(url, 2) as (first, other), await claimed(first):
            wait = asyncio.create_task(other.turn("k", nothing))
            await waiting(url)
            with redis.Redis.from_url(url) as client:
                client.publish(f"{P}done", word)
                client.publish(f"{P}done", json.dumps(["k", ["NoSuchError", "said so"]]))
            with pytest.raises(FetchError, match="said so"):
                await wait

    asyncio.run(main())


def test_the_lock_is_extended_for_as_long_as_the_load_takes(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_S", 0.3)

    async def main() -> None:
        async with flights(url, 2) as (first, other):
            async with await claimed(first) as claim:
                await asyncio.sleep(3 * module.LOCK_S)  # the passing of time is what this is about
                assert await claim.write("x", b"mine", 1000)
            async with await claimed(other):
                with redis.Redis.from_url(url) as client:
                    assert client.get("x") == b"mine"

    asyncio.run(main())


def test_a_loader_that_was_killed_is_followed_by_another(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOCK_S", 0.6)
    monkeypatch.setattr(module, "POLL_S", 0.05)

    async def main() -> None:
        async with flights(url, 2) as two:
            waits = [asyncio.create_task(flight.turn("k", nothing)) for flight in two]
            await waiting(url)
            assert not any(wait.done() for wait in waits)
            holder.send_signal(signal.SIGKILL)
            async with asyncio.timeout(10):
                done, rest = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            assert len(done) == 1
            claim = done.pop().result()
            assert isinstance(claim, Claim)
            async with claim:
                pass
            async with asyncio.timeout(10):
                last = await rest.pop()
            assert isinstance(last, Claim)
            await last.release()

    command = [sys.executable, "-c", HOLDER, url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"loading\n"
            asyncio.run(main())
        finally:
            holder.kill()


def test_whoever_lost_the_lock_neither_writes_nor_takes_it_from_its_new_holder(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOCK_S", 0.15)

    async def main() -> None:
        async with flights(url, 2) as (first, other):
            late = await claimed(first)  # not entered: its lock is not extended, as if the process had stood still
            with redis.Redis.from_url(url) as client:
                await asyncio.to_thread(wait_until, lambda: not client.exists(f"{P}lock:k"), "the lock expires")
                assert not await late.write("entry", b"late", 1000)
                async with await claimed(other) as claim:
                    assert not await late.write("entry", b"late", 1000)
                    await late.release()
                    assert client.exists(f"{P}lock:k")
                    assert await claim.write("entry", b"right", 1000)
                assert not await late.write("entry", b"late", 1000)
                assert client.get("entry") == b"right"

    asyncio.run(main())


def test_without_a_server_there_are_no_turns() -> None:
    with pytest.raises(ServerAway):
        asyncio.run(Flight(Server(None), P).turn("k", nothing))


def test_a_look_that_fails_gives_the_right_back(url: str) -> None:
    async def broken() -> str | None:
        raise SourceUnavailable("looking failed")

    async def main() -> None:
        async with flights(url, 2) as (first, other):
            with pytest.raises(SourceUnavailable):
                await first.turn("k", broken)
            async with asyncio.timeout(module.LOCK_S / 2), await claimed(other):
                pass

    asyncio.run(main())


def test_closing_ends_the_listener(url: str) -> None:
    async def main() -> None:
        async with flights(url, 2) as (first, other), await claimed(first):
            wait = asyncio.create_task(other.turn("k", nothing))
            await waiting(url)
            wait.cancel()
            await asyncio.wait({wait})
            await other.close()
        assert asyncio.all_tasks() == {asyncio.current_task()}
        with redis.Redis.from_url(url) as client:
            await asyncio.to_thread(wait_until, lambda: client.pubsub_channels() == [], "nobody listens")

    asyncio.run(main())
