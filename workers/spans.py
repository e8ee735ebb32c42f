"""Calendar spans: the fixed pieces that a range of time is cached in, so that overlapping ranges share them."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from workers.sources.protocol import Unit

SECOND_NS = 10**9
# "The whole history": from before the first exchange-traded series to where int64 nanoseconds end, in 2262.
EARLIEST_NS, LATEST_NS = -5_364_662_400 * SECOND_NS, 2**63 - 1  # 1800-01-01


class Span(NamedTuple):
    """One calendar piece: its name as in cache keys, and its bounds in nanoseconds since 1970 UTC, end exclusive."""

    name: str
    start_ns: int
    end_ns: int


def spans(unit: Unit, start_ns: int, end_ns: int) -> Iterator[Span]:
    """The pieces that cover start_ns..end_ns, oldest first; each lies on the calendar's own borders."""
    if unit == "all":
        yield Span("all", EARLIEST_NS, LATEST_NS)
        return
    first = _floor(unit, datetime.fromtimestamp(start_ns // SECOND_NS, UTC))
    while _ns(first) < end_ns:
        following = _next(unit, first)
        yield Span(_name(unit, first), _ns(first), _ns(following))
        first = following


def _floor(unit: Unit, moment: datetime) -> datetime:
    year = moment.year // 10 * 10 if unit == "decade" else moment.year
    month = moment.month if unit in ("month", "day") else 1
    return datetime(year, month, moment.day if unit == "day" else 1, tzinfo=UTC)


def _next(unit: Unit, first: datetime) -> datetime:
    if unit == "day":
        return datetime.fromtimestamp(first.timestamp() + 86_400, UTC)
    if unit == "month":
        return first.replace(year=first.year + first.month // 12, month=first.month % 12 + 1)
    return first.replace(year=first.year + (10 if unit == "decade" else 1))


def _name(unit: Unit, first: datetime) -> str:
    return first.strftime({"day": "%Y-%m-%d", "month": "%Y-%m", "year": "%Y", "decade": "%Ys"}[unit])


def _ns(moment: datetime) -> int:
    return int(moment.timestamp()) * SECOND_NS
