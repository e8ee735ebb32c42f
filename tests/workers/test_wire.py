"""What one loop has open."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest
import redis.asyncio
from yarl import URL

from tests.support import running_valkey
from workers.responses import Request
from workers.wire import SHARED_PAUSE_S, Call, Wire

ECHO = "return {tonumber(ARGV[1]), 7}"


def call_of(wire: Wire, deadline_s: float) -> Call:
    return Call(Request("http://host/", deadline_s=deadline_s), URL("http://host/"), {}, wire)


def test_the_watch_ends_what_waits_at_the_deadline() -> None:
    async def main() -> None:
        wire = Wire(None, agent="", at_once=1)
        call = call_of(wire, 0.05)
        with pytest.raises(TimeoutError), call:
            await asyncio.Event().wait()
        assert call.left_s() <= 0.0
        assert not wire.watched
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0  # and leaves no trace: the task goes on
        await asyncio.sleep(0)

    asyncio.run(main())


def test_the_watch_leaves_in_peace_what_is_done_in_time() -> None:
    async def main() -> None:
        wire = Wire(None, agent="", at_once=1)
        with call_of(wire, 0.05):
            await asyncio.sleep(0)
        while wire.ticking:  # noqa: ASYNC110 - nothing tells that it has looked for the last time
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_cancellation_from_outside_is_not_taken_for_a_timeout() -> None:
    async def main() -> None:
        wire = Wire(None, agent="", at_once=1)

        async def waits() -> None:
            with call_of(wire, 60.0):
                await asyncio.Event().wait()

        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not wire.watched

    asyncio.run(main())


def test_a_script_runs_on_the_server_with_connections_of_the_loops_own(url: str) -> None:
    async def main(server: redis.asyncio.Redis) -> tuple[list[int] | None, int]:
        wire = Wire(server, agent="", at_once=1)
        try:
            answers = await asyncio.gather(*(wire.ask(ECHO, "key", [number]) for number in range(50)))
            assert answers == [[number, 7] for number in range(50)]
            return await wire.ask(ECHO, "key", [3]), wire.counts.http_shared_errors
        finally:
            await wire.close()

    server = redis.asyncio.Redis.from_url(url)  # used by two loops, one after the other
    assert asyncio.run(main(server)) == ([3, 7], 0)
    assert asyncio.run(main(server)) == ([3, 7], 0)


def test_a_server_that_is_gone_is_no_answer_and_is_left_alone_for_a_while(tmp_path: Path) -> None:
    async def main(url: str) -> None:
        wire = Wire(redis.asyncio.Redis.from_url(url), agent="", at_once=1)
        assert await wire.ask(ECHO, "key", [1]) is None
        assert wire.counts.http_shared_errors == 1
        assert await wire.ask(ECHO, "key", [1]) is None
        assert wire.counts.http_shared_errors == 1  # not asked again
        await wire.close()

    with running_valkey(tmp_path) as url:
        pass
    asyncio.run(main(url))


def test_a_server_that_swallows_everything_costs_half_a_second_once() -> None:
    async def main(port: int) -> None:
        wire = Wire(redis.asyncio.Redis(port=port), agent="", at_once=1)
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(SHARED_PAUSE_S):  # else the pause would be over
            assert [await wire.ask(ECHO, "key", [1]) for _ in range(100)] == [None] * 100
        assert wire.counts.http_shared_errors == 1
        assert loop.is_running()
        await wire.close()

    with socket.create_server(("127.0.0.1", 0)) as silent:
        asyncio.run(main(silent.getsockname()[1]))


def test_it_works_without_a_server() -> None:
    async def main() -> list[int] | None:
        return await Wire(None, agent="", at_once=1).ask(ECHO, "key", [1])

    assert asyncio.run(main()) is None
