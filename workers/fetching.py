"""What a worker of the fetch queue does with a chunk: symbols of a source, several at once on the one event loop."""

from __future__ import annotations

import asyncio
import json
import math
import secrets
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import redis

from runner import signing
from runner.app import QUEUE_BACKTEST, QUEUE_FETCH
from runner.errors import RunnerError, SweepNotFound
from runner.source import Source
from runner.store import CHUNK_BUDGET_S, Begun
from workers import chunks
from workers.cache import Closed, Entry
from workers.chunks import Done, Following, Job
from workers.desk import desk
from workers.market import Market, Prices, prices
from workers.resources import Resources
from workers.sources.protocol import Table

# Symbols of one chunk under way at once; the HTTP client bounds the requests, this bounds what is in memory.
SYMBOLS_AT_ONCE = 16


def run_chunk(held: Resources, batch: str, start: int, worker: str) -> list[Following]:
    """Fetch the chunk that begins at symbol ``start``, and open the runs on what it brought."""
    sweep = held.ledger.fed_by(batch)
    # A name of its own for each delivery: a thread that gets a chunk which another thread still does leaves it alone.
    job = Job(
        queue=QUEUE_FETCH,
        owner=f"{worker}/{secrets.token_hex(4)}",
        died=lambda _: False,
        run=partial(_run, held, sweep),
        poisoned=partial(_poisoned, held, sweep),
    )
    following = chunks.run_chunk(held, job, batch, start)
    return following + (_opened(held, sweep) if sweep else [])


def _run(held: Resources, sweep: str, batch: str, start: int, begun: Begun) -> Done:
    """As many of the symbols as fit into the budget, at least one. Their prices are kept for the sweep, if any."""
    wanted = _source(held, batch)
    began = time.monotonic()
    landed: list[dict[str, Any]] = []
    while start + len(landed) < begun.stop and time.monotonic() - began < CHUNK_BUDGET_S:
        at = start + len(landed)
        landed += _fetch(held, sweep or batch, wanted, wanted.symbols[at : min(at + SYMBOLS_AT_ONCE, begun.stop)])
    # Of symbols side by side none took the time of all: a chunk that is short for want of symbols looked dear, and the
    # next one would be shorter still.
    places = SYMBOLS_AT_ONCE * math.ceil(len(landed) / SYMBOLS_AT_ONCE)
    return _done(sweep, start, landed, (time.monotonic() - began) * len(landed) / places)


def _done(sweep: str, start: int, landed: list[dict[str, Any]], seconds: float) -> Done:
    return Done(
        stop=start + len(landed),
        failed=sum("error" in item for item in landed),
        seconds=seconds,
        blob=json.dumps(landed).encode(),
        landed=landed if sweep else (),
    )


def _fetch(held: Resources, user: str, wanted: Source, symbols: Sequence[str]) -> list[dict[str, Any]]:
    """Each symbol's reference, its prices stored under it for the batch that uses them, or its error."""

    async def fetch(market: Market) -> list[dict[str, Any]]:
        return list(await asyncio.gather(*(_item(held, market, user, wanted, symbol) for symbol in symbols)))

    return desk(held).run(fetch)


async def _item(held: Resources, market: Market, user: str, wanted: Source, symbol: str) -> dict[str, Any]:
    """A bad symbol is a row: a chunk that raised would be handed out for ever. Only the order to stop hands it back."""
    try:
        async with market.room(wanted):
            entries = await market.entries(wanted, symbol)
            return await asyncio.to_thread(_stored, held, user, wanted, symbol, entries)
    except (Closed, redis.RedisError, SweepNotFound):
        raise
    except Exception as error:  # noqa: BLE001 - see above
        return {"symbol": symbol, "error": _described(error)}


def _stored(held: Resources, user: str, wanted: Source, symbol: str, entries: list[Entry[Table]]) -> dict[str, Any]:
    brought = prices(wanted, symbol, entries)
    if not held.ledger.has("data", brought.digest, user):
        held.ledger.put("data", brought.digest, brought.blob, user)
    return _reference(symbol, brought)


def _reference(symbol: str, brought: Prices) -> dict[str, Any]:
    return {
        "symbol": symbol,
        "kind": brought.kind,
        "digest": brought.digest,
        "n_bars": brought.n,
        "stale_since_s": brought.stale_since_s,
    }


def _described(error: BaseException) -> dict[str, str]:
    words = str(error) if isinstance(error, RunnerError) else f"{type(error).__name__}: {error}"
    return {"kind": type(error).__name__, "message": words}


def _poisoned(held: Resources, sweep: str, batch: str, start: int) -> Done:
    symbol = _source(held, batch).symbols[start]
    shown = symbol.partition("?")[0]
    message = f"fetching {shown!r} ended the worker process that did it, twice (out of memory, or a crash in C code)"
    return _done(sweep, start, [{"symbol": symbol, "error": {"kind": "WorkerLost", "message": message}}], 0.0)


def _source(held: Resources, batch: str) -> Source:
    return Source.from_wire(json.loads(signing.verify_spec(held.secret, batch, held.ledger.spec(batch))))


def _opened(held: Resources, sweep: str) -> list[Following]:
    """Chunks of the sweep that a fetch feeds, now that there are prices for them."""
    try:
        queue, priority = held.ledger.route(sweep)
    except SweepNotFound:
        return []  # removed meanwhile
    starts = held.ledger.top_up(sweep, held.ledger.slots(QUEUE_BACKTEST))
    return [Following(sweep, start, queue, priority) for start in starts]
