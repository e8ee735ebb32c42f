"""The ledger: everything that a batch keeps in Redis. This module and ledger.lua own every key.

None of the keys has a TTL, so that ``volatile-lru`` never evicts one; `Ledger.sweep_out` removes a batch when its
retention ends.

==============================  ======  ==================================================================
runner:batch:ID                 hash    spec, state, counters, the claim cursor ``next``
runner:batch:ID:chunks          hash    first run of each queued or running chunk → stop, state, owner, deaths
runner:batch:ID:free            list    ranges handed back, claimed before new ones
runner:batch:ID:outcomes        hash    first run of each committed chunk → Arrow
runner:batch:ID:events          stream  a line per commit and change of state
runner:batch:ID:refs            set     its code and prices, as kind:digest
runner:batch:ID:landed          hash    number of a symbol → reference to the prices that a fetch brought, or its error
runner:code:DIGEST, data:DIGEST string  signed code and prices; ``:users`` is the set of batches that need them
runner:active                   set     batches that run or pause
runner:expiry                   zset    batch → when it is removed, milliseconds
runner:workers, :info           zset    worker → last heartbeat by the server's clock; hash of what it says of itself
runner:health                   hash    counters of all workers together, see workers/health.py
runner:health:WORKER            hash    those of one live worker
==============================  ======  ==================================================================

A sweep over a source is two batches: NAME, and NAME/fetch, which feeds it. What the fetch commits opens, in the same
step, the runs on the symbols it brought.
"""

from __future__ import annotations

import functools
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from runner import signing
from runner.app import queue_keys
from runner.errors import BrokerRefused, BrokerUnreachable, SecretMismatch, SweepExists, SweepNotFound
from runner.settings import starred

# A heartbeat a second; five missed ones are a dead worker (recovery within ten seconds, see docs/decisions.md).
HEARTBEAT_S = 1.0
DEAD_AFTER_S = 5.0
# A published chunk that no queue holds and nobody began: its message is lost.
VANISHED_AFTER_S = 5.0
# A client that dies between taking a name and submitting leaves it taken this long.
SUBMISSION_GRACE_S = 3600.0
RETENTION_S = 7 * 24 * 3600.0
# A client takes what it fetched and removes the batch; this is for one that was killed before.
FETCH_RETENTION_S = 3600.0

# Chunks last about TARGET_S: 2,000 times a message's cost (about 0.5 ms), yet cancel and fairness act within a second.
TARGET_S = 1.0
# Towards the end chunks shrink, but not below 50 messages' cost.
FLOOR_S = 0.025
# A chunk that turns out dearer than measured stops here and hands the rest back.
CHUNK_BUDGET_S = 2 * TARGET_S
# After the soft limit of a run: long enough for a busy machine to deliver it, short enough not to be a hang.
HARD_LIMIT_GRACE_S = 10.0
# What the first chunks of a sweep take, before any cost is known: 16 runs of 50 ms are still only 0.8 s.
FIRST_RUNS = 16
# Queued chunks per slot, so that no slot waits for a message: one runs, one waits.
WINDOW_PER_SLOT = 2
# One symbol's fetch, all its pages, retries and waits for a rate limit; then it is an error.
SYMBOL_TIMEOUT_S = 600.0
# No live worker: submit for this many, the reconciler widens the window when workers come.
SLOTS_UNKNOWN = 4


ONE_TRY = Retry(NoBackoff(), 0)


def connect(url: str) -> redis.Redis:
    """A client whose calls have a deadline and survive a restart of the server (8 tries within about 6 s)."""
    retry = Retry(ExponentialBackoff(cap=1.0, base=0.05), retries=8)
    errors: list[type[Exception]] = [redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError]
    return redis.Redis.from_url(
        url, socket_timeout=5, socket_connect_timeout=5, health_check_interval=15, retry=retry, retry_on_error=errors
    )


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a batch stands.

    Attributes:
        state: submitting, running, paused, done or cancelled.
        total: runs in all.
        done: runs committed, failed ones included.
        failed: runs that ended as an error.
        elapsed_s: from submission until now or the end, by the server's clock.
    """

    state: str
    total: int
    done: int
    failed: int
    elapsed_s: float

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "cancelled")


@dataclass(frozen=True, slots=True)
class Begun:
    """The ledger's answer to a child that wants a chunk.

    Attributes:
        what: ``run`` it; it is ``poison``, a single run that killed two children; ``drop`` the message, nothing is
            left to do; it is ``owned`` by another child.
        stop: the chunk's last run + 1.
        owner: who has it, when it is owned.
        priority: of the batch, for the message of the chunk after it.
        life: of the batch, unlike that of an earlier one that bore its name.
    """

    what: str
    stop: int
    owner: str
    priority: str
    life: str


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a batch's stream: a committed chunk (``start`` set) or a change of state (``state`` set)."""

    id: bytes
    start: int | None
    stop: int
    failed: int
    worker: str
    state: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a batch begins with.

    Attributes:
        spec: the message that says what is to be done.
        total: items: runs of a sweep, symbols of a fetch.
        queue: whose workers do it.
        limit_s: the longest that a chunk of it can take.
        priority: high, normal or low.
        feeds: the batch that its outcomes open runs of, or "".
        points: how many runs each item opens.
        fed: its runs are opened by another batch; none is there at the beginning.
        one_by_one: every item is a chunk, so that what depends on it need not wait for others.
        retention_s: how long it is kept after its end.
    """

    spec: str
    total: int
    queue: str
    limit_s: float
    priority: str
    feeds: str = ""
    points: int = 0
    fed: bool = False
    one_by_one: bool = False
    retention_s: float = RETENTION_S

    def fields(self) -> dict[str, str]:
        """The fields of the batch's hash."""
        known = {
            "spec": self.spec,
            "total": self.total,
            "queue": self.queue,
            "priority": self.priority,
            "limit_ms": _ms(self.limit_s),
            "target_us": 0 if self.one_by_one else TARGET_S * 1e6,
            "floor_us": FLOOR_S * 1e6,
            "first_runs": 1 if self.one_by_one else FIRST_RUNS,
            "retention_ms": _ms(self.retention_s),
            **({"feeds": self.feeds, "points": self.points} if self.feeds else {}),
            **({"next": self.total} if self.fed else {}),
        }
        return {name: str(value) for name, value in known.items()}


def feeding(batch: str) -> str:
    """The name of the fetch that feeds a sweep; no user's name has a slash."""
    return f"{batch}/fetch"


def is_feeder(batch: str) -> bool:
    """Whether it is a fetch that feeds a sweep."""
    return batch.endswith("/fetch")


class Ledger:
    """One deployment's ledger on one server."""

    def __init__(self, server: redis.Redis) -> None:
        self.server: Any = server  # redis-py types every answer as str or bytes or more; here it is always bytes
        self._script = server.register_script(_lua())

    # --- a batch's life -----------------------------------------------------------------------------------------

    def reserve(self, batch: str) -> None:
        """Take the name; SweepExists when it is taken. What is uploaded next is kept for it."""
        if not self._step("reserve", batch, _ms(SUBMISSION_GRACE_S), secrets.token_hex(8)):
            raise SweepExists(
                f"a sweep named {batch!r} exists: choose another name=, or runner.attach({batch!r}) to see it."
            )

    def put(self, kind: str, digest: str, blob: bytes, batch: str) -> None:
        """Store code or data under its digest until ``batch`` and every other user of it is removed.

        Raises:
            SweepNotFound: the batch is removed; what was stored for it now would have no owner.
        """
        self._keep(kind, digest, batch, blob)

    def has(self, kind: str, digest: str, batch: str) -> bool:
        """Whether the blob is there already; if so it is kept for ``batch`` too. Raises as `put`."""
        return self._keep(kind, digest, batch)

    def _keep(self, kind: str, digest: str, batch: str, *blob: bytes) -> bool:
        key = f"runner:{kind}:{digest}"
        keys = [key, f"{key}:users", f"runner:batch:{batch}:refs", f"runner:batch:{batch}"]
        kept = self.server.register_script(_KEEP_BLOB)(keys=keys, args=[batch, f"{kind}:{digest}", *blob])
        if kept < 0:
            raise SweepNotFound(f"batch {batch!r} was removed while {kind} was stored for it.")
        return bool(kept)

    def take(self, kind: str, digests: Sequence[str], batch: str) -> list[bytes]:
        """Several blobs, which the batch no longer needs afterwards; SweepNotFound when one is gone."""
        found = self.server.mget([f"runner:{kind}:{digest}" for digest in digests]) if digests else []
        if any(blob is None for blob in found):
            raise SweepNotFound(f"some {kind} is gone from the server: it was emptied, or nothing needs it any more.")
        self._drop(batch, [f"{kind}:{digest}" for digest in digests])
        return cast("list[bytes]", found)

    def _drop(self, batch: str, refs: Sequence[str]) -> None:
        drop = self.server.register_script(_DROP_BLOB)
        for ref in refs:
            drop(keys=[f"runner:{ref}", f"runner:{ref}:users", f"runner:batch:{batch}:refs"], args=[batch, ref])

    def get(self, kind: str, digest: str) -> bytes | None:
        """The blob, or None when no batch needs it any more."""
        return cast("bytes | None", self.server.get(f"runner:{kind}:{digest}"))

    def activate(self, batch: str, work: Work, feeder: Work | None = None) -> None:
        """From here on the batch runs, whatever becomes of the client, and with it the one that feeds it."""
        fed = [feeding(batch), json.dumps(feeder.fields())] if feeder else ["", ""]
        if not self._step("activate", batch, json.dumps(work.fields()), *fed, secrets.token_hex(8)):
            raise SweepNotFound(f"sweep {batch!r} vanished while it was submitted: submit it again.")

    def spec(self, batch: str) -> bytes:
        """The batch's message as it was submitted."""
        return self._field(batch, "spec")

    def route(self, batch: str) -> tuple[str, str]:
        """The queue its messages go to, and their priority: high, normal or low."""
        return self._field(batch, "queue").decode(), self._field(batch, "priority").decode()

    def fed_by(self, batch: str) -> str:
        """The sweep that the batch's outcomes open runs of, or ""."""
        feeds = self.server.hget(f"runner:batch:{batch}", "feeds")
        return feeds.decode() if feeds else ""

    def landed(self, batch: str, item: int) -> bytes | None:
        """JSON of what the fetch that feeds the batch said of its symbol ``item``; None when nothing yet."""
        return cast("bytes | None", self.server.hget(f"runner:batch:{batch}:landed", str(item)))

    def set_priority(self, batch: str, priority: str) -> None:
        """From the next published chunk on."""
        self._field(batch, "state")
        self.server.hset(f"runner:batch:{batch}", "priority", priority)

    def progress(self, batch: str) -> Progress:
        """Where the batch stands; SweepNotFound when there is none of that name."""
        names = ("state", "total", "done", "failed", "started_ms", "finished_ms")
        state, total, done, failed, started, finished = self.server.hmget(f"runner:batch:{batch}", names)
        if state is None:
            raise SweepNotFound(
                f"no sweep {batch!r} on this server: the name is wrong, its results have expired, or it was emptied."
            )
        end_ms = int(finished) if finished else self._now_ms()
        elapsed_s = (end_ms - int(started)) / 1000 if started else 0.0
        return Progress(state.decode(), int(total or 0), int(done or 0), int(failed or 0), elapsed_s)

    def turn(self, batch: str, state: str) -> str:
        """Pause, resume ("running") or cancel; returns the state the batch is in now."""
        return cast("bytes", self._step("turn", batch, state) or b"").decode()

    def batches(self) -> list[str]:
        """Every batch that is kept, running ones first; the fetch of a sweep over a source goes with the sweep."""
        active = {name.decode() for name in self.server.smembers("runner:active")}
        ended = [name.decode() for name in self.server.zrevrange("runner:expiry", 0, -1)]
        names = [*sorted(active), *(name for name in ended if name not in active)]
        return [name for name in names if not is_feeder(name)]

    def active(self) -> list[str]:
        """Batches that run or pause."""
        return sorted(name.decode() for name in self.server.smembers("runner:active"))

    def stale(self, batch: str) -> list[str]:
        """Symbols whose prices came from a cache because the provider did not answer, in order."""
        landed = self.server.hgetall(f"runner:batch:{batch}:landed")
        items = [json.loads(text) for _, text in sorted(landed.items(), key=lambda pair: int(pair[0]))]
        return [item["symbol"] for item in items if item.get("stale_since_s") is not None]

    # --- chunks -------------------------------------------------------------------------------------------------

    def top_up(self, batch: str, slots: int) -> list[int]:
        """Claim chunks until the window is full; returns their first runs, to be published."""
        slots = slots or SLOTS_UNKNOWN
        return [int(start) for start in self._step("top_up", batch, slots, slots * WINDOW_PER_SLOT)]

    def begin(self, batch: str, start: int, owner: str, dead_owner: str = "") -> Begun:
        """Take a chunk, or learn why not; ``dead_owner`` is one whom the caller knows to be dead."""
        what, stop, other, priority, life = self._step("begin", batch, start, owner, dead_owner)
        return Begun(what.decode(), int(stop), other.decode(), priority.decode(), life.decode())

    def commit(
        self,
        batch: str,
        start: int,
        stop: int,
        done_stop: int,
        *,
        failed: int,
        seconds: float,
        worker: str,
        slots: int,
        blob: bytes,
        landed: Sequence[Mapping[str, Any]] = (),
        counters: Mapping[str, int] | None = None,
    ) -> int | None:
        """Hand in runs start..done_stop-1 of the chunk; the first commit wins.

        ``landed`` is, for a batch that feeds another, each item's reference or error: it opens that batch's runs on it.
        ``counters`` are added to the deployment's and the worker's health.
        Returns the first run of the chunk to publish next, if there is one.
        """
        following = self._step(
            "commit",
            batch,
            start,
            stop,
            done_stop,
            failed,
            max(1, round(seconds * 1e6)),
            worker,
            slots or SLOTS_UNKNOWN,
            blob,
            json.dumps([json.dumps(dict(item)) for item in landed]) if landed else "",
            json.dumps(dict(counters or {})),
        )
        return None if following < 0 else int(following)

    def release(self, batch: str, start: int, owner: str, counters: Mapping[str, int] | None = None) -> None:
        """Hand a chunk back that could not be run."""
        self._step("release", batch, start, owner, json.dumps(dict(counters or {})))

    def health(self) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
        """The counters of the whole deployment since its server was set up, and those of each live worker."""
        names = [worker["name"] for worker in self.workers()]
        with self.server.pipeline(transaction=False) as pipe:
            pipe.hgetall("runner:health")
            for name in names:
                pipe.hgetall(f"runner:health:{name}")
            total, *each = pipe.execute()
        return _counts(total), {name: _counts(found) for name, found in zip(names, each, strict=True)}

    def recover(self, batch: str) -> list[int]:
        """Chunks whose worker or message is gone; returns their first runs, to be published again."""
        limits = (_ms(DEAD_AFTER_S), _ms(VANISHED_AFTER_S))
        starts = self._step("recover", batch, *limits, "")
        if starts and starts[-1] == b"look":
            queued = {str(start): True for start in self._queued(batch)}
            starts[-1:] = self._step("recover", batch, *limits, json.dumps(queued) if queued else "{}")
        return [int(start) for start in starts]

    def _queued(self, batch: str) -> Iterator[int]:
        """First runs of the chunks of a batch that have a message in the queue."""
        for key in queue_keys(self._field(batch, "queue").decode()):
            for raw in self.server.lrange(key, 0, -1):
                owner, start = _chunk_of(raw)
                if owner == batch:
                    yield start

    # --- outcomes -----------------------------------------------------------------------------------------------

    def events(self, batch: str, after: bytes, wait_s: float) -> list[Event]:
        """What happened since the event ``after`` (b"0" from the start); waits up to ``wait_s`` for the first."""
        block_ms = max(1, round(wait_s * 1000))
        answer = self.server.xread({f"runner:batch:{batch}:events": after}, block=block_ms, count=1000)
        found = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer or []]
        flat = [item for entries in found for item in _entries(entries)]
        return [
            Event(
                id=event_id,
                start=int(fields[b"start"]) if b"start" in fields else None,
                stop=int(fields.get(b"stop", 0)),
                failed=int(fields.get(b"failed", 0)),
                worker=fields.get(b"worker", b"").decode(),
                state=fields.get(b"state", b"").decode(),
            )
            for event_id, fields in flat
        ]

    def outcomes(self, batch: str, starts: Sequence[int]) -> list[bytes]:
        """The blobs of committed chunks, in the order asked for.

        One that a restarted server has forgotten is left out: its chunk runs again, and its event comes again.
        """
        blobs = self.server.hmget(f"runner:batch:{batch}:outcomes", [str(start) for start in starts]) if starts else []
        if any(blob is None for blob in blobs) and not self.server.exists(f"runner:batch:{batch}"):
            raise SweepNotFound(
                f"results of sweep {batch!r} are gone from the server: it was emptied or they have expired."
            )
        return [blob for blob in blobs if blob is not None]

    # --- workers ------------------------------------------------------------------------------------------------

    def beat(self, name: str, info: Mapping[str, Any]) -> None:
        """A worker's heartbeat, stamped by the server's clock."""
        with self.server.pipeline(transaction=True) as pipe:
            pipe.zadd("runner:workers", {name: self._now_ms()})
            pipe.hset("runner:workers:info", name, json.dumps(dict(info)))
            pipe.execute()

    def leave(self, name: str) -> None:
        """A worker that stops in good order says so."""
        with self.server.pipeline(transaction=True) as pipe:
            pipe.zrem("runner:workers", name)
            pipe.hdel("runner:workers:info", name)
            pipe.delete(f"runner:health:{name}")
            pipe.execute()

    def workers(self) -> list[dict[str, Any]]:
        """Live workers: what each says of itself, and ``age_s`` since its last heartbeat."""
        now = self._now_ms()
        alive = self.server.zrangebyscore("runner:workers", now - _ms(DEAD_AFTER_S), "+inf", withscores=True)
        infos = self.server.hmget("runner:workers:info", [name for name, _ in alive]) if alive else []
        known = [(_said(info), now - score) for (_, score), info in zip(alive, infos, strict=True)]
        return [{**said, "age_s": age_ms / 1000} for said, age_ms in known if said is not None]

    def waiting(self, queue: str) -> int:
        """Messages in the queue, of all priorities."""
        return sum(int(self.server.llen(key)) for key in queue_keys(queue))

    def slots(self, queue: str) -> int:
        """Children of all live workers of a queue."""
        return sum(worker["concurrency"] for worker in self.workers() if queue in worker["queues"])

    # --- deployment ---------------------------------------------------------------------------------------------

    def check(self, url: str, secret: str, *, verifies: bool = False) -> list[str]:
        """Refuse a server that would lose jobs or belongs to others; returns warnings about what might.

        ``verifies`` says that this is a worker, whose keys decide whose messages are good.

        Raises:
            BrokerUnreachable, BrokerRefused, SecretMismatch.
        """
        try:
            _check_password(url)
            with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5, retry=ONE_TRY) as once:
                once.ping()
            warnings = _check_policy(self.server)
            self._check_secret(secret, verifies=verifies)
        except redis.AuthenticationError as error:
            raise BrokerRefused(f"{starred(url)} refuses the password: correct it in RUNNER_URL ({error}).") from None
        except (redis.ConnectionError, redis.TimeoutError) as error:
            raise BrokerUnreachable(
                f"no Redis or Valkey server answers at {starred(url)} ({error}): "
                "start one here with `runner up`, or correct RUNNER_URL."
            ) from None
        return warnings

    def _check_secret(self, secret: str, *, verifies: bool) -> None:
        """Whoever verifies says which keys it knows; a client needs one of them for what it signs."""
        mine = signing.fingerprints(secret)
        known = self.server.get("runner:secret")
        if known is None:
            self.server.set("runner:secret", ",".join(mine), nx=True)
            known = self.server.get("runner:secret")
        theirs = known.decode().split(",")
        if not set(mine if verifies else mine[:1]) & set(theirs):
            raise SecretMismatch(
                "this server belongs to a deployment with another secret, so its workers would refuse your messages: "
                "use the RUNNER_SECRET that they have."
            )
        if verifies and mine != theirs:
            self.server.set("runner:secret", ",".join(mine))

    def sweep_out(self) -> list[str]:
        """Remove the batches whose retention has ended; returns their names."""
        ended = [
            name.decode() for name in self.server.zrangebyscore("runner:expiry", 0, self._now_ms(), start=0, num=100)
        ]
        for name in ended:
            self._remove(name, "expired")
        dead = self.server.zrangebyscore("runner:workers", 0, self._now_ms() - _ms(3600))
        for worker in dead:
            self.leave(worker.decode())
        return ended

    def remove(self, batch: str) -> None:
        """Forget a batch, the one that feeds it, and the code and data that no other batch needs."""
        self._remove(batch, "now")

    def _remove(self, batch: str, when: str) -> None:
        if not self._step("retire", batch, when):
            return  # it has been submitted since it was found to have expired
        if not is_feeder(batch):
            self.remove(feeding(batch))
        refs = [ref.decode() for ref in self.server.smembers(f"runner:batch:{batch}:refs")]
        self._drop(batch, refs)
        parts = (":chunks", ":free", ":outcomes", ":events", ":refs", ":landed")
        with self.server.pipeline(transaction=True) as pipe:
            pipe.delete(*(f"runner:batch:{batch}{part}" for part in parts))
            pipe.zrem("runner:expiry", batch)
            pipe.execute()

    def reject(self, reason: str) -> None:
        """Count a message that was refused."""
        self.server.hincrby("runner:rejected", reason, 1)

    def _field(self, batch: str, name: str) -> bytes:
        value = self.server.hget(f"runner:batch:{batch}", name)
        if value is None:
            raise SweepNotFound(f"no sweep {batch!r} on this server: the name is wrong or its results have expired.")
        return cast("bytes", value)

    def _now_ms(self) -> int:
        seconds, micros = self.server.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _step(self, name: str, batch: str, *args: Any) -> Any:
        base = f"runner:batch:{batch}"
        keys = [base, f"{base}:chunks", f"{base}:free", f"{base}:outcomes", f"{base}:events"]
        return self._script(keys=[*keys, "runner:active", "runner:expiry", "runner:workers"], args=[name, batch, *args])


# KEYS: the blob, its users, the batch's references, the batch.  ARGV: batch, reference, and the blob if it is at hand
_KEEP_BLOB = """
if redis.call('EXISTS', KEYS[4]) == 0 then return -1 end
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
-- Over whatever is there: somebody without the secret may have put it there, or signed it with a key since replaced.
if ARGV[3] then redis.call('SET', KEYS[1], ARGV[3]) end
return redis.call('EXISTS', KEYS[1])
"""

# KEYS: the blob, its users, the batch's references.  ARGV: batch, reference
_DROP_BLOB = """
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[2])
if redis.call('SCARD', KEYS[2]) == 0 then redis.call('DEL', KEYS[1]) end
"""


@functools.cache
def _lua() -> str:
    return Path(__file__).with_name("ledger.lua").read_text()


def _said(info: bytes | None) -> dict[str, Any] | None:
    """What a worker says of itself; None of one that says nothing, or nothing that can be read."""
    try:
        said = json.loads(info or b"null")
    except (ValueError, RecursionError):
        return None
    return said if isinstance(said, dict) else None


def _chunk_of(raw: bytes) -> tuple[str, int]:
    """Batch and first item of the chunk that a queued message is about; anybody with the password can queue others."""
    try:
        owner, _, start = json.loads(raw)["headers"]["id"].rpartition(":")
        return owner, int(start)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return "", -1


def _counts(found: Mapping[bytes, bytes]) -> dict[str, int]:
    return {name.decode(): int(value) for name, value in found.items()}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _entries(entries: Any) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """A stream's entries; RESP3 wraps them in one more list than RESP2."""
    return entries[0] if entries and isinstance(entries[0], list) else entries


def _check_password(url: str) -> None:
    parts = urlsplit(url)
    local = parts.scheme == "unix" or parts.hostname in ("localhost", "::1") or str(parts.hostname).startswith("127.")
    if not local and not parts.password:
        raise BrokerRefused(
            f"the server at {parts.hostname} is reached without a password: whoever reaches it could read results. "
            "Set requirepass there and put the password into RUNNER_URL (redis://:PASSWORD@HOST:PORT/0)."
        )


def _check_policy(server: redis.Redis) -> list[str]:
    try:
        memory = server.info("memory")
    except redis.exceptions.NoPermissionError:
        return []  # a client of least rights may not ask; the workers do
    policy = str(memory.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        raise BrokerRefused(
            f"the server evicts any key when memory is full (maxmemory-policy {policy}), jobs included: "
            "set it with `CONFIG SET maxmemory-policy volatile-lru`."
        )
    if not server.info("persistence").get("aof_enabled"):
        return ["the server keeps no append-only file: a restart of it loses sweeps (`CONFIG SET appendonly yes`)."]
    return []
