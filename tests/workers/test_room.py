from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest

from workers.room import Room

T = TypeVar("T")


def run(call: Callable[[], Awaitable[T]]) -> T:
    async def inside() -> T:
        return await asyncio.wait_for(call(), 5)

    return asyncio.run(inside())


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


class Guest:
    """Holds a weight until told to leave."""

    def __init__(self, room: Room, weight: int) -> None:
        self.inside = False
        self._leave = asyncio.Event()
        self.task = asyncio.create_task(self._stay(room, weight))

    async def _stay(self, room: Room, weight: int) -> None:
        async with room.taken(weight):
            self.inside = True
            await self._leave.wait()
        self.inside = False

    async def leave(self) -> None:
        self._leave.set()
        await self.task


def test_as_much_as_fits_is_inside_and_the_rest_waits_its_turn() -> None:
    async def story() -> None:
        room = Room(10)
        guests = [Guest(room, weight) for weight in (6, 4, 1, 3)]
        await settled()
        assert [guest.inside for guest in guests] == [True, True, False, False]
        await guests[1].leave()
        await settled()
        assert [guest.inside for guest in guests] == [True, False, True, True]
        for guest in (guests[0], *guests[2:]):
            await guest.leave()

    run(story)


def test_a_heavy_one_is_not_overtaken_for_ever() -> None:
    async def story() -> None:
        room = Room(10)
        first, heavy, light = Guest(room, 5), Guest(room, 10), Guest(room, 1)
        await settled()
        assert (heavy.inside, light.inside) == (False, False)
        await first.leave()
        await settled()
        assert (heavy.inside, light.inside) == (True, False)
        await heavy.leave()
        await light.leave()

    run(story)


@pytest.mark.parametrize("weight", [11, 10**9])
def test_who_needs_more_than_there_is_gets_all_of_it_alone(weight: int) -> None:
    async def story() -> None:
        room = Room(10)
        giant, other = Guest(room, weight), Guest(room, 1)
        await settled()
        assert (giant.inside, other.inside) == (True, False)
        await giant.leave()
        await other.leave()

    run(story)


def test_a_cancelled_one_leaves_no_trace_whether_it_waited_or_was_inside() -> None:
    async def story() -> None:
        room = Room(2)
        inside, waiting, last = Guest(room, 2), Guest(room, 2), Guest(room, 2)
        await settled()
        waiting.task.cancel()
        inside.task.cancel()
        await settled()
        assert last.inside
        await last.leave()
        async with room.taken(2):
            pass

    run(story)


def test_one_that_is_let_in_and_cancelled_at_once_gives_its_place_on() -> None:
    async def story() -> None:
        room = Room(1)
        first, second, third = Guest(room, 1), Guest(room, 1), Guest(room, 1)
        await settled()
        first._leave.set()
        await first.task  # the second has been let in, but has not run yet
        second.task.cancel()
        await settled()
        assert third.inside
        await third.leave()

    run(story)
