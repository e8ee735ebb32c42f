"""A stand-in of the providers on loopback, and one question to a source."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from tests.misbehaving import Trouble, serving
from workers.session import HttpClient, Limits
from workers.sources.protocol import Ask, Source, Table
from workers.standin import make_app

DAY_NS = 86_400 * 10**9


@dataclass(frozen=True)
class Standin:
    """Its address, and what happened to its requests."""

    url: str
    trouble: Trouble


@contextmanager
def standing_in() -> Iterator[Standin]:
    app = make_app()
    trouble = Trouble(app)
    with serving(app) as url:
        yield Standin(url, trouble)


def ns(moment: str) -> int:
    return int(np.datetime64(moment, "ns").astype(np.int64))


def ask(
    symbol: str, start: str, end: str, interval: str = "1d", *, now: str = "", etag: str = "", **options: str | bool
) -> Ask:
    now_ns = ns(now) if now else time.time_ns()
    return Ask(symbol, interval, ns(start), ns(end), now_ns, options, etag)


def load(source: Source, question: Ask) -> Table:
    async def answer() -> Table:
        http = HttpClient(limits=Limits(backoff_s=0.01))
        try:
            return await source.load(question, http)
        finally:
            await http.close()

    return asyncio.run(answer())


def dates(table: Table) -> list[str]:
    assert (table.time % DAY_NS == 0).all()
    return [str(day) for day in table.time.view("datetime64[ns]").astype("datetime64[D]")]
