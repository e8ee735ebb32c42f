from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis
import redis.asyncio

from runner import valkey
from tests.support import running_valkey
from workers import server as module
from workers.server import Server, ServerAway


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[str, int]]:
    """A server that the test may break, and its process number."""
    with running_valkey(tmp_path) as url, redis.Redis.from_url(url) as client:
        pid = int(client.info("server")["process_id"])
        yield url, pid
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return


@asynccontextmanager
async def served(url: str) -> AsyncIterator[Server]:
    async with redis.asyncio.Redis.from_url(url) as client:
        yield Server(client)


def test_an_answer_is_passed_on(url: str) -> None:
    async def main() -> None:
        async with served(url) as server:
            assert await server.ask(lambda client: client.set("k", b"v", px=1000))
            assert await server.ask(lambda client: client.get("k")) == b"v"
            assert server.errors == 0

    asyncio.run(main())


def test_without_a_server_every_call_is_away() -> None:
    with pytest.raises(ServerAway):
        asyncio.run(Server(None).ask(lambda client: client.get("k")))


def test_a_server_that_is_down_is_not_asked_again_during_the_pause() -> None:
    async def main() -> None:
        async with served(f"redis://127.0.0.1:{valkey.free_port()}/0") as server:
            for _ in range(50):
                with pytest.raises(ServerAway):
                    await server.ask(lambda client: client.get("k"))
            assert server.errors == 1

    asyncio.run(main())


def test_one_that_hangs_costs_the_deadline_once_and_is_used_again_when_it_answers(
    own: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, pid = own
    monkeypatch.setattr(module, "DEADLINE_S", 0.1)
    monkeypatch.setattr(module, "PAUSE_S", 0.2)

    async def answers(server: Server) -> bool:
        try:
            await server.ask(lambda client: client.ping())
        except ServerAway:
            return False
        return True

    async def main() -> None:
        async with served(url) as server:
            assert await answers(server)
            os.kill(pid, signal.SIGSTOP)
            assert not any(await asyncio.gather(*[answers(server) for _ in range(5)]))
            errors = server.errors
            assert not await answers(server)
            assert server.errors == errors  # it was not even asked
            os.kill(pid, signal.SIGCONT)
            async with asyncio.timeout(10):
                while not await answers(server):  # noqa: ASYNC110 - nothing tells when a stopped process answers
                    await asyncio.sleep(0.02)
            assert all(await asyncio.gather(*[answers(server) for _ in range(5)]))

    asyncio.run(main())


def test_after_the_pause_one_call_tries_and_the_others_do_without(
    own: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, pid = own
    monkeypatch.setattr(module, "DEADLINE_S", 0.1)
    monkeypatch.setattr(module, "PAUSE_S", 0.0)

    async def main() -> None:
        async with served(url) as server:
            os.kill(pid, signal.SIGSTOP)
            with pytest.raises(ServerAway):
                await server.ask(lambda client: client.ping())
            before = server.errors
            calls = [server.ask(lambda client: client.ping()) for _ in range(20)]
            answers = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(answer, ServerAway) for answer in answers)
            assert server.errors == before + 1

    asyncio.run(main())


def test_a_refusal_is_away_for_this_call_alone(url: str) -> None:
    async def main() -> None:
        async with served(url) as server:
            await server.ask(lambda client: client.set("k", b"text", px=5000))
            with pytest.raises(ServerAway):
                await server.ask(lambda client: client.incr("k"))
            assert await server.ask(lambda client: client.get("k")) == b"text"
            assert server.errors == 1

    asyncio.run(main())


def test_a_cancelled_call_ends_cancelled_at_whatever_moment_it_comes(url: str) -> None:
    async def main() -> None:
        for ticks in range(40):
            async with served(url) as server:
                call = asyncio.create_task(server.ask(lambda client: client.get("k")))
                for _ in range(ticks):
                    await asyncio.sleep(0)
                finished = call.done()
                call.cancel()
                await asyncio.wait({call})
                assert call.cancelled() or finished, ticks

    asyncio.run(main())
