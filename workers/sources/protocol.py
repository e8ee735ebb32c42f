"""What a source of market data is: given one calendar span of one symbol, it answers plain columns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from workers.session import HttpClient

Kind = Literal["bars", "series"]
# Calendar units that cached entries are cut into, so that overlapping requests share them; "all": the whole history.
Unit = Literal["day", "month", "year", "decade", "all"]


@dataclass(frozen=True, slots=True)
class Ask:
    """One span of one symbol.

    Attributes:
        symbol: as the provider spells it.
        interval: "1m", "1h", "1d", ...; one of the source's.
        start_ns, end_ns: the span, nanoseconds since 1970 UTC, end exclusive.
        now_ns: the present; bars that are not closed by then are dropped.
        options: what the user passed beyond these, such as base_url or feed.
        etag, last_modified: validators of a stale copy that the cache still has; "" when there is none.
    """

    symbol: str
    interval: str
    start_ns: int
    end_ns: int
    now_ns: int
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    etag: str = ""
    last_modified: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """What a source answers: rows oldest first, each time once, all inside the span, numbers as the provider has them.

    Attributes:
        time: int64[n], nanoseconds since 1970 UTC of each bar's open (daily bars of an exchange with sessions: midnight
            UTC of the trading date), strictly increasing.
        columns: float64[n] by name. Bars: open, high, low, close, volume, and where the provider has them the raw
            prices' ``split`` (factor by which the number of shares grew on that bar, 1 when none) and ``dividend``
            (cash a share with ex-date on that bar, 0 when none). Series: ``value``.
        etag, last_modified: validators of the answer, "" when there are none.
    """

    time: npt.NDArray[np.int64]
    columns: Mapping[str, npt.NDArray[np.float64]]
    etag: str = ""
    last_modified: str = ""


class Unchanged(Exception):
    """The copy whose validators were sent is still right."""


class Usual:
    """What holds for most sources, and for those that do not say.

    Attributes:
        ttl_s: seconds for which an answer is good. None: the cache decides by the calendar. 0: each question asks the
            source, which raises `Unchanged` when that costs it little.
        local: it reads what is this host's own, so that its answers are not for workers on others.
    """

    ttl_s: float | None = None
    local: bool = False


class Source(Protocol):
    """One provider. Made once a process, without arguments; it holds no connection. It may say what `Usual` says.

    Attributes:
        name: how users name it.
        kind: "bars" (OHLCV) or "series" (one value a time: alternative data).
        intervals: those it has, the shortest first.
        options: names of the options that it takes, beside ``base_url``.
    """

    name: str
    kind: Kind
    intervals: tuple[str, ...]
    options: tuple[str, ...]

    def unit(self, interval: str) -> Unit:
        """The calendar unit of one cached entry."""

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """The span's rows, raw and complete: every page, no running bar.

        Raises:
            SymbolUnknown, NoData, SourceRefused, SourceUnavailable, BadAnswer: each names provider, symbol and range.
            Unchanged: the copy that the ask's validators belong to is still right.
        """
