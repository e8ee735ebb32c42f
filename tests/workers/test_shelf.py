from __future__ import annotations

import asyncio
import json
import pickle
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import redis.asyncio

from workers.server import Server
from workers.shelf import MAGIC, PART_BYTES, PREFIX, Head, Shelf

P = "runner:cache:t:"


@dataclass
class Bench:
    shelf: Shelf
    client: redis.asyncio.Redis
    allowed: bool = True

    async def put(self, name: str, blob: bytes, milliseconds: int) -> bool:
        return self.allowed and bool(await self.client.set(name, blob, px=milliseconds))

    async def write(self, key: str, head: Head, value: bytes, old: Head | None = None) -> tuple[Head, bool]:
        return await self.shelf.write(key, head, value, self.put, old)


@asynccontextmanager
async def bench(url: str) -> AsyncIterator[Bench]:
    async with redis.asyncio.Redis.from_url(url) as client:
        yield Bench(Shelf(Server(client), P), client)


def head(**changes: Any) -> Head:
    now = time.time()
    return replace(Head(now, now + 60, now + 90, 0.25, "etag", "yesterday", '"why"'), **changes)


def test_an_entry_comes_back_and_lives_until_its_staleness_ends(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            written = head()
            await b.write("k", written, b"value")
            assert await b.shelf.read("k") == (written, b"value")
            assert 89_000 < await b.client.pttl(f"{P}entry:k") <= 90_001
            assert await b.shelf.read("other") is None
            assert b.shelf.damaged == 0

    asyncio.run(main())


def test_long_values_lie_in_parts_that_expire_too(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            value = bytes(range(256)) * (PART_BYTES // 100)
            written, _ = await b.write("k", head(), value)
            assert written.parts == 3
            assert await b.shelf.read("k") == (written, value)
            names = await b.client.keys("*")
            assert len(names) == 4
            for name in names:
                assert 0 < await b.client.pttl(name) <= 90_001
                assert await b.client.strlen(name) <= PART_BYTES

    asyncio.run(main())


@pytest.mark.parametrize("length", [0, PART_BYTES, PART_BYTES + 1])
def test_values_of_any_length_come_back(url: str, length: int) -> None:
    async def main() -> None:
        async with bench(url) as b:
            await b.write("k", head(), b"x" * length)
            found = await b.shelf.read("k")
            assert found is not None
            assert found[1] == b"x" * length

    asyncio.run(main())


def test_a_part_that_is_gone_or_of_another_writing_is_a_miss(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            for harm in ("gone", "other"):
                written, _ = await b.write("k", head(), b"x" * PART_BYTES * 2)
                name = f"{P}part:k:{written.generation}:1"
                await (b.client.delete(name) if harm == "gone" else b.client.set(name, b"y" * PART_BYTES, px=9000))
                assert await b.shelf.read("k") is None
            assert b.shelf.damaged == 2

    asyncio.run(main())


def test_a_new_writing_removes_the_parts_of_the_old_one(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            first, _ = await b.write("k", head(), b"x" * PART_BYTES * 3)
            second, _ = await b.write("k", head(), b"y" * PART_BYTES * 2, old=first)
            assert {str(name).split(":")[-2] for name in await b.client.keys(f"{P}part:*")} == {second.generation}
            assert await b.shelf.read("k") == (second, b"y" * PART_BYTES * 2)

    asyncio.run(main())


def test_whoever_lost_the_right_writes_nothing_and_leaves_no_part(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            first, allowed = await b.write("k", head(), b"first" * PART_BYTES)
            assert allowed
            b.allowed = False
            _, allowed = await b.write("k", head(), b"later" * PART_BYTES, old=first)
            assert not allowed
            assert await b.shelf.read("k") == (first, b"first" * PART_BYTES)
            assert len(await b.client.keys("*")) == 6

    asyncio.run(main())


def test_what_is_over_already_is_not_written(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            await b.write("k", head(stale_until_s=time.time() - 1), b"x")
            assert await b.client.keys("*") == []

    asyncio.run(main())


def entry(header: bytes, value: bytes = b"", magic: bytes = MAGIC) -> bytes:
    """Bytes whose checksum is right, whatever the header says."""
    return PREFIX.pack(magic, zlib.crc32(value, zlib.crc32(header)), len(header)) + header + value


GOOD = asdict(Head(1.0, 2.0, 3.0, 0.5))


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle from the server was loaded",))


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"foreign",
        pickle.dumps(Bomb()),
        entry(json.dumps(GOOD).encode(), magic=b"entry\x02"),
        entry(b"not json"),
        entry(b"[" * 100_000),
        entry(b"[1, 2]"),
        entry(json.dumps({**GOOD, "more": 1}).encode()),
        entry(json.dumps({**GOOD, "fresh_until_s": "soon"}).encode()),
        entry(json.dumps({**GOOD, "fresh_until_s": 10**400}).encode()),
        entry(json.dumps({**GOOD, "stale_until_s": float("nan")}).encode()),
        entry(json.dumps({**GOOD, "parts": 10**9, "generation": "g"}).encode()),
        entry(json.dumps({**GOOD, "parts": -1}).encode()),
        entry(json.dumps({**GOOD, "etag": 5}).encode()),
        entry(json.dumps({**GOOD, "negative": "no"}).encode()),
    ],
    ids=range(15),
)
def test_foreign_bytes_are_a_miss_that_is_counted(url: str, blob: bytes) -> None:
    async def main() -> None:
        async with bench(url) as b:
            await b.client.set(f"{P}entry:k", blob, px=9000)
            assert await b.shelf.read("k") is None
            assert b.shelf.damaged == 1

    asyncio.run(main())


def test_a_flipped_byte_anywhere_is_a_miss(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            await b.write("k", head(), b"the value")
            blob = bytes(await b.client.get(f"{P}entry:k"))  # type: ignore[arg-type] # this client answers bytes
            for at in range(len(blob)):
                broken = blob[:at] + bytes([blob[at] ^ 1]) + blob[at + 1 :]
                await b.client.set(f"{P}entry:k", broken, px=9000)
                assert await b.shelf.read("k") is None, at
            assert b.shelf.damaged == len(blob)

    asyncio.run(main())


def test_a_name_that_holds_no_string_is_a_miss(url: str) -> None:
    async def main() -> None:
        async with bench(url) as b:
            await b.client.lpush(f"{P}entry:k", b"x")
            assert await b.shelf.read("k") is None

    asyncio.run(main())
