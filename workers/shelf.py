"""The cache's second level: entries as bytes on the server, each with a header, a checksum and a time to live."""

from __future__ import annotations

import json
import math
import secrets
import struct
import time
import zlib
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import cast

import redis.asyncio

from workers.server import Server, ServerAway

# The last byte is the version of the format. Then: checksum of all that follows, length of the header.
MAGIC = b"entry\x01"
PREFIX = struct.Struct("<6sII")
# Longer values keep the server from its other clients while they are read (7.5 MB: 46 ms).
PART_BYTES = 2**20
# 4 GiB in parts: what a damaged header may ask for.
MOST_PARTS = 4096


@dataclass(frozen=True, slots=True)
class Head:
    """What is known about an entry beside its value. Times are seconds since 1970.

    Attributes:
        fetched_at_s: when the provider sent or confirmed it.
        fresh_until_s: from then on it is asked for again.
        stale_until_s: until then it may stand in for a provider that does not answer.
        load_s: seconds that loading it took.
        etag, last_modified: validators for asking again, "" when there are none.
        note: of a negative entry, why; JSON-able short text.
        negative: whether there is no value.
        generation: names the parts; "" when the value follows the header.
        parts: how many there are.
    """

    fetched_at_s: float
    fresh_until_s: float
    stale_until_s: float
    load_s: float
    etag: str = ""
    last_modified: str = ""
    note: str = ""
    negative: bool = False
    generation: str = ""
    parts: int = 0

    def __post_init__(self) -> None:
        times = (self.fetched_at_s, self.fresh_until_s, self.stale_until_s, self.load_s)
        texts = (self.etag, self.last_modified, self.note, self.generation)
        if not all(isinstance(number, (int, float)) and math.isfinite(number) for number in times):
            raise ValueError(f"times of an entry are {times}: expected finite numbers.")
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.negative, bool):
            raise ValueError("texts of an entry are no texts.")
        if not isinstance(self.parts, int) or not 0 <= self.parts <= MOST_PARTS:
            raise ValueError(f"an entry in {self.parts!r} parts: expected 0 to {MOST_PARTS}.")


class Shelf:
    """Reads and writes entries; a server that is away, or bytes that are not an entry, are a miss.

    Args:
        server: where they are.
        prefix: of every name there.

    Attributes:
        damaged: entries that could not be read so far: foreign or damaged bytes, or a part that was gone.
    """

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self.damaged = 0

    async def read(self, key: str) -> tuple[Head, bytes] | None:
        """The entry's header and value, or None."""
        try:
            payload = await self._got(f"{self._prefix}entry:{key}")
            if payload is None:
                return None
            head, checksum, header, value = _opened(payload)
            if head.parts:
                parts = [await self._got(name) for name in self._names(key, head)]
                value = b"".join([part for part in parts if part is not None])  # the checksum misses the others
        except ServerAway:
            return None
        except (ValueError, TypeError, LookupError, OverflowError, RecursionError, struct.error):
            self.damaged += 1
            return None
        if zlib.crc32(value, zlib.crc32(header)) != checksum:
            self.damaged += 1
            return None
        return head, value

    async def write(
        self, key: str, head: Head, value: bytes, put: Callable[[str, bytes, int], Awaitable[bool]], old: Head | None
    ) -> tuple[Head, bool]:
        """Store an entry until its staleness ends.

        Args:
            key: of the entry.
            head: of the entry.
            value: cut into parts when it is long; they are there before the header is.
            put: sets a name to bytes for so many milliseconds, unless the right to do so was lost: then False.
            old: the entry that is replaced, as far as it is known; its parts are removed.

        Returns:
            The header with its parts, and whether the right was still there.
        """
        milliseconds = math.ceil((head.stale_until_s - time.time()) * 1000)
        if milliseconds <= 0:
            return head, True
        cut = [value[at : at + PART_BYTES] for at in range(0, len(value), PART_BYTES)]
        parts = cut if len(cut) > 1 else []
        if parts:
            head = replace(head, generation=secrets.token_hex(8), parts=len(parts))
        header = json.dumps(asdict(head)).encode()
        prefix = PREFIX.pack(MAGIC, zlib.crc32(value, zlib.crc32(header)), len(header))
        written, allowed = False, True
        try:
            for name, part in zip(self._names(key, head), parts, strict=True):
                await self._server.ask(partial(_set, name=name, part=part, milliseconds=milliseconds))
            blob = b"".join([prefix, header, b"" if parts else value])
            written = allowed = await put(f"{self._prefix}entry:{key}", blob, milliseconds)
        except ServerAway:
            pass  # counted where it failed; the value is in the caller's hands all the same
        finally:
            await self._remove(self._names(key, old if written else head))
        return head, allowed

    def _names(self, key: str, head: Head | None) -> list[str]:
        return [f"{self._prefix}part:{key}:{head.generation}:{n}" for n in range(head.parts)] if head else []

    async def _got(self, name: str) -> bytes | None:
        return cast("bytes | None", await self._server.ask(lambda client: client.get(name)))

    async def _remove(self, names: Sequence[str]) -> None:
        if names:
            with suppress(ServerAway):  # then they expire
                await self._server.ask(lambda client: client.unlink(*names))


def _set(client: redis.asyncio.Redis, *, name: str, part: bytes, milliseconds: int) -> Awaitable[object]:
    return client.set(name, part, px=milliseconds)


def _opened(payload: bytes) -> tuple[Head, int, bytes, bytes]:
    """Header, checksum, the header's bytes, the value's; raises ValueError and its like on anything else."""
    magic, checksum, length = PREFIX.unpack_from(payload)
    if magic != MAGIC:
        raise ValueError("no entry, or one of another version")
    end = PREFIX.size + length
    header = payload[PREFIX.size : end]
    return Head(**json.loads(header)), checksum, header, payload[end:]
