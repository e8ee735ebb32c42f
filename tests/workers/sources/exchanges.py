"""The exchanges of the stand-in server at a fixed moment, and answers made of its own with one thing wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.misbehaving import Fault, Trouble, serving, status
from tests.workers.sources.asking import ns
from workers.sources.protocol import Ask, Table
from workers.standin import Prices, make_app

# A Monday; half an hour into an hourly bar, half a day into a daily one.
NOW = "2025-03-10T12:30"


@dataclass(frozen=True)
class Exchanges:
    """Address, what happened to requests, and the data behind."""

    url: str
    trouble: Trouble
    prices: Prices

    def forget(self) -> None:
        self.trouble.plan.clear()
        self.trouble.calls.clear()
        self.trouble.seen.clear()

    def calls(self) -> int:
        return sum(self.trouble.calls.values())


def behind(server: Exchanges, question: Ask) -> Table:
    """The bars that the server has in that span."""
    return server.prices.bars(question.symbol.replace("/", ""), question.interval, question.start_ns, question.end_ns)


@contextmanager
def exchanges(now: str = NOW) -> Iterator[Exchanges]:
    prices = Prices(ns(now))
    app = make_app(prices)
    trouble = Trouble(app)
    with serving(app) as url:
        yield Exchanges(url, trouble, prices)


def answering(said: Any) -> Fault:
    """200 with that JSON."""
    return status(200, json.dumps(said).encode(), Content_Type="application/json")


def same(found: Table, expected: Table) -> bool:
    """Whether both hold the same times and OHLCV columns, bit for bit."""
    names = ("open", "high", "low", "close", "volume")
    return (
        set(found.columns) == set(names)
        and found.time.tobytes() == expected.time.tobytes()
        and all(found.columns[name].tobytes() == expected.columns[name].tobytes() for name in names)
    )


def part(bars: Table, rows: slice | list[int]) -> Table:
    """Some rows of a table."""
    return Table(bars.time[rows], {name: values[rows] for name, values in bars.columns.items()})
