"""Requests, their answers, and the answers that are kept for a while."""

from __future__ import annotations

import hashlib
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cachetools import LRUCache
from yarl import URL

from runner.errors import SourceRefused
from workers.throttle import Rate

MIB = 2**20
# What headers and bookkeeping of one kept answer take beside its body, roughly.
OVERHEAD_BYTES = 2048
# What a cache takes a number of seconds for that is too large to count (RFC 9111, 1.2.2).
FOR_EVER_S = 2.0**31


@dataclass(slots=True)
class Request:
    """One GET, for `HttpClient.get_many`; the fields are the arguments of `HttpClient.get`."""

    url: str = field(repr=False)  # its query may hold a key
    params: Mapping[str, str] | None = field(default=None, repr=False)
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    deadline_s: float = 60.0
    rate: Rate | None = None
    weight: int = 1
    max_bytes: int = 64 * MIB
    cache_ttl_s: float | None = None
    etag: str | None = None
    last_modified: str | None = None
    private: bool = False

    def target(self) -> URL:
        """The URL with the parameters in its query; SourceRefused when it is none."""
        try:
            return URL(self.url).extend_query(self.params) if self.params else URL(self.url)
        except ValueError:
            raise no_address(self.url) from None


def no_address(url: str) -> SourceRefused:
    """The error for what is no URL of http or https; the query, which may hold a key, is left out."""
    start = url.partition("?")[0]
    return SourceRefused(f"{start!r} is no address to fetch from: expected http://host/path or https://host/path.")


@dataclass(frozen=True, slots=True)
class Response:
    """One final answer.

    Attributes:
        url: scheme, host and path of the last hop; the query, which may hold a key, is left out.
        status: 2xx, 304 or 4xx.
        headers: by name, whatever its case.
        body: decompressed.
        from_cache: no byte of the body came over the network this time.
        attempts: requests that went over the wire, redirects included; 0 when none was needed.
    """

    url: str
    status: int
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)
    from_cache: bool
    attempts: int


@dataclass(slots=True)
class Kept:
    """An answer in the cache; ``fresh_until_s`` is of the monotonic clock."""

    response: Response
    fresh_until_s: float


class Answers:
    """Answers with status 200, the least recently used dropped when their bodies take more than ``limit_bytes``.

    Keys are digests under a key of this process's own, so neither URL nor credentials are kept. Safe to use from
    several threads.
    """

    def __init__(self, limit_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._secret = secrets.token_bytes(32)
        self._kept: LRUCache[bytes, Kept] = LRUCache(
            limit_bytes, getsizeof=lambda kept: len(kept.response.body) + OVERHEAD_BYTES
        )

    def key(self, request: Request) -> bytes:
        """What tells answers apart: the URL, every header of the caller's, and whether a private address is meant."""
        headers = sorted((name.lower(), value) for name, value in (request.headers or {}).items())
        text = repr((str(request.target()), headers, request.private))
        return hashlib.blake2b(text.encode(), key=self._secret, digest_size=16).digest()

    def find(self, key: bytes) -> Kept | None:
        """The answer, fresh or stale."""
        with self._lock:
            return self._kept.get(key)

    def fresh(self, kept: Kept) -> bool:
        """Whether it may be served without asking."""
        return self._clock() < kept.fresh_until_s

    def keep(self, key: bytes, response: Response, ttl_s: float, told: Mapping[str, str]) -> None:
        """Keep a 200, or keep it longer.

        Web pages are not kept: an API that answers one is behind a wall of some kind for the moment.

        Args:
            key: of the request.
            response: the 200; anything else is passed over.
            ttl_s: seconds for which it is fresh, if the server does not say less.
            told: the headers of the newest answer, a 304's for an answer that is kept longer.
        """
        rules = _cache_control(told)
        if (
            response.status != 200
            or "no-store" in rules
            or told.get("Vary", "").strip() == "*"
            or response.headers.get("Content-Type", "").startswith("text/html")
            or len(response.body) + OVERHEAD_BYTES > self._kept.maxsize
        ):
            with self._lock:
                self._kept.pop(key, None)
            return
        if "no-cache" in rules:
            ttl_s = 0.0
        elif (most_s := _seconds(rules.get("max-age", ""))) is not None:
            ttl_s = min(ttl_s, most_s - (_seconds(told.get("Age", "")) or 0.0))
        with self._lock:
            self._kept[key] = Kept(response, self._clock() + ttl_s)


def _seconds(text: str) -> float | None:
    """Whole seconds; None for anything else. Not by int(), which refuses thousands of digits."""
    return min(float(text), FOR_EVER_S) if text.isdecimal() else None


def _cache_control(headers: Mapping[str, str]) -> dict[str, str]:
    """Directives in lower case with their arguments, "" where there is none (RFC 9111, 5.2)."""
    parts = (part.strip().partition("=") for part in headers.get("Cache-Control", "").lower().split(","))
    return {name: argument.strip('" ') for name, _, argument in parts if name}
