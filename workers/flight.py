"""One loader at a time for a key, over all processes and hosts: a lock on the server, a channel that says it is done.

Whoever sets the lock loads. The others wait for the word on the channel, which may get lost, so they also look now and
then; when the loader dies its lock expires and the next takes its place. Its token fences: what the loader brings is
written only while the lock is still its own, in one step with that check.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, TypeVar

import redis.asyncio
from redis.exceptions import RedisError

from runner.errors import FetchError
from workers.server import Server, ServerAway, ended

T = TypeVar("T")

# How long the others wait for a loader that was killed. Extended three times as often: one late beat does no harm.
LOCK_S = 6.0
# How often those who wait look without having been told: only a lost word or a dead loader makes them wait so long.
POLL_S = 0.5
# The listener wakes up this often for nothing, so that its connection's own health check can run.
LISTEN_S = 10.0

# KEYS: lock; ARGV: token, milliseconds
EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""
# KEYS: lock, entry; ARGV: token, milliseconds, bytes
WRITE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[2], ARGV[3], 'PX', ARGV[2])
return 1
"""
# KEYS: lock; ARGV: token, channel, word
RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[2], ARGV[3])
return 1
"""


class Claim:
    """The right to load one key. ``async with`` keeps the lock alive inside, and gives it back with word to the others.

    A FetchError that leaves the block is told to them too: they were waiting for this very answer.
    """

    def __init__(self, server: Server, key: str, lock: str, channel: str) -> None:
        self._server = server
        self._key = key
        self._lock = lock
        self._channel = channel
        self._token = secrets.token_hex(16)
        self._beat: asyncio.Task[None] | None = None

    async def take(self) -> bool:
        """Whether nobody else had it; raises ServerAway."""
        milliseconds = int(LOCK_S * 1000)
        taken = await self._server.ask(lambda client: client.set(self._lock, self._token, nx=True, px=milliseconds))
        return bool(taken)

    async def write(self, name: str, blob: bytes, milliseconds: int) -> bool:
        """Set the entry ``name``; False, and nothing done, when the lock was lost. Raises ServerAway."""
        return bool(await self._run(WRITE, [self._lock, name], [self._token, milliseconds, blob]))

    async def release(self, error: BaseException | None = None) -> None:
        """Give the lock back, if it is still this one's, and wake the others."""
        told = [type(error).__name__, str(error)] if isinstance(error, FetchError) else None
        with suppress(ServerAway):  # then it expires
            await self._run(RELEASE, [self._lock], [self._token, self._channel, json.dumps([self._key, told])])

    async def __aenter__(self) -> Self:
        self._beat = asyncio.create_task(self._extend())
        return self

    async def __aexit__(
        self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._beat is not None:
            await ended(self._beat)
        await self.release(error)

    async def _extend(self) -> None:
        held = True
        while held:
            await asyncio.sleep(LOCK_S / 3)
            with suppress(ServerAway):  # the next beat may get through
                held = bool(await self._run(EXTEND, [self._lock], [self._token, int(LOCK_S * 1000)]))

    async def _run(self, script: str, keys: list[str], arguments: list[Any]) -> Any:
        def evaluated(client: redis.asyncio.Redis) -> Awaitable[Any]:
            answer: Any = client.eval(script, len(keys), *keys, *arguments)  # typed for both kinds of client at once
            return answer  # type: ignore[no-any-return]

        return await self._server.ask(evaluated)


class Flight:
    """Who loads which key of one cache. Belongs to one event loop; at most one `turn` a key at a time.

    Args:
        server: holds the locks.
        prefix: of every name there.
    """

    def __init__(self, server: Server, prefix: str) -> None:
        self._server = server
        self._prefix = prefix
        self._channel = f"{prefix}done"
        self._news: dict[str, asyncio.Future[FetchError | None]] = {}
        self._listener: asyncio.Task[None] | None = None
        self._ready: asyncio.Future[bool] | None = None

    async def turn(self, key: str, landed: Callable[[], Awaitable[T | None]]) -> Claim | T:
        """Wait for the right to load the key, or for what another loader brought.

        Args:
            key: what is to be loaded.
            landed: looks whether it is there; also asked by whoever has just got the right, before it is handed out.

        Raises:
            ServerAway: no turns can be taken; everyone loads for himself.
            FetchError: the loader that was waited for said so.
        """
        try:
            while True:
                # From before the question on, so that no word is missed between the answer and the waiting.
                news = self._news[key] = asyncio.get_running_loop().create_future()
                claim = Claim(self._server, key, f"{self._prefix}lock:{key}", self._channel)
                mine = await claim.take()
                found = await _looked(claim if mine else None, landed)
                if found is not None:
                    return found
                if mine:
                    return claim
                if await self._listens() or news.done():
                    await _heard(news)
        finally:
            self._news.pop(key, None)

    async def close(self) -> None:
        """End the listener."""
        if self._listener is not None:
            await ended(self._listener)
            self._listener = None

    async def _listens(self) -> bool:
        """Whether there is nothing to do but wait; False when words are heard only from now on: look once more."""
        if self._ready is None or self._listener is None or self._listener.done():
            self._ready = asyncio.get_running_loop().create_future()
            self._listener = asyncio.create_task(self._listen(self._ready))
        elif self._ready.done():
            return True
        return not await asyncio.shield(self._ready)

    async def _listen(self, ready: asyncio.Future[bool]) -> None:
        try:
            async with _client(self._server).pubsub() as channel:
                await self._server.ask(lambda _: channel.subscribe(self._channel))
                await self._server.ask(lambda _: channel.get_message(timeout=LISTEN_S))  # the confirmation
                ready.set_result(True)
                while True:
                    message = await channel.get_message(ignore_subscribe_messages=True, timeout=LISTEN_S)
                    if message is not None:
                        self._tell(message["data"])
        except (ServerAway, RedisError, OSError):
            return  # those who wait look by themselves; the next one starts it again
        finally:
            if not ready.done():
                ready.set_result(False)

    def _tell(self, word: bytes) -> None:
        with suppress(ValueError, TypeError, RecursionError):  # anyone may publish: not a word of ours
            key, told = json.loads(word)
            news = self._news.get(key)
            if news is not None and not news.done():
                news.set_result(None if told is None else _error(*told))


def _error(name: str, message: str) -> FetchError:
    kinds = {kind.__name__: kind for kind in FetchError.__subclasses__()}
    return kinds.get(name, FetchError)(message)


async def _looked(claim: Claim | None, landed: Callable[[], Awaitable[T | None]]) -> T | None:
    """What has landed; the claim is given back if there is something, or if looking failed."""
    try:
        found = await landed()
    except BaseException:
        if claim is not None:
            await claim.release()
        raise
    if found is not None and claim is not None:
        await claim.release()
    return found


async def _heard(news: asyncio.Future[FetchError | None]) -> None:
    """Wait for the word, or until it is time to look; raises the error that the word brings."""
    await asyncio.wait({news}, timeout=POLL_S)
    error = news.result() if news.done() else None
    if error is not None:
        raise error


def _client(server: Server) -> redis.asyncio.Redis:
    if server.client is None:
        raise ServerAway
    return server.client
