"""Kraken's public OHLC data: the newest 720 bars of each interval, and no older ones.

Format: docs.kraken.com, REST API, "Get OHLC Data". Its guide says that one can page forward with ``last``, its
reference that older data cannot be had whatever ``since`` says; this builds on the reference.
"""

from __future__ import annotations

from typing import Any

from runner.columns import shown_time
from runner.errors import BadAnswer, FetchError, SourceRefused, SourceUnavailable, SymbolUnknown
from workers.session import HttpClient, Rate, Request
from workers.sources import parse
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual

BASE_URL = "https://api.kraken.com"
NEWEST_BARS = 720
# Public endpoints: one a second for each pair and address (support.kraken.com, "What are the API rate limits?").
RATE = Rate("kraken", weight_per_period=60, period_s=60.0, burst=5)
# All spans of a symbol are cut from the same answer: it is asked for once. So short that hardly a bar closes meanwhile;
# what the answer itself calls unfinished is left out whatever the clock says.
SHARED_S = 5.0

# 1m is left out: 720 minutes are half a day, so no calendar day is ever whole.
MINUTES = {"5m": 5, "15m": 15, "30m": 30, "1h": 60, "4h": 240, "1d": 1440, "1w": 10_080, "15d": 21_600}
# Spans well below 720 bars: one that the answer does not wholly cover is refused.
UNITS: dict[str, Unit] = {"4h": "month", "1d": "month", "1w": "year", "15d": "year"}

FIELDS = {"open": 1, "high": 2, "low": 3, "close": 4, "volume": 6}
ROW_FIELDS = 8

UNKNOWN_PAIR = "EQuery:Unknown asset pair"
# Beginnings of the errors that pass by themselves (docs.kraken.com, "API error messages"); they come with HTTP 200.
PASSING = (
    "EService:",
    "EAPI:Rate limit",
    "EGeneral:Too many requests",
    "EGeneral:Internal error",
    "EGeneral:Temporary",
)
REFUSING = ("EGeneral:Permission denied", "EAPI:Invalid key")


class Kraken(Usual):
    """One request a symbol and interval; history beyond it is refused, never shown as empty."""

    name = "kraken"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = tuple(MINUTES)
    options: tuple[str, ...] = ()

    def unit(self, interval: str) -> Unit:
        """The calendar unit of one cached entry."""
        return UNITS.get(interval, "day")

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """The span's bars; see `workers.sources.protocol.Source.load`.

        Raises:
            SourceRefused: also when Kraken has only a part of the span: an answer without the rest would look whole.
        """
        label = parse.where(self.name, ask)
        base, private = parse.base_url(ask, BASE_URL)
        request = Request(
            f"{base}/0/public/OHLC",
            params={"pair": ask.symbol, "interval": str(MINUTES[ask.interval])},
            deadline_s=parse.DEADLINE_S,
            rate=parse.rate_of(RATE, ask),
            cache_ttl_s=SHARED_S,
            private=private,
        )
        [page] = await parse.answers(http, [request], label)
        if page.status != 200:
            raise parse.status_error(page, label)
        rows, last = _rows(parse.json_of(page, label), label)
        time = parse.stamps(parse.column(rows, 0, label), label)
        columns = {name: parse.floats(parse.column(rows, at, label), name, label) for name, at in FIELDS.items()}
        if len(rows) >= NEWEST_BARS and time.min() >= ask.start_ns + parse.interval_ns(ask.interval):
            raise SourceRefused(
                f"{label}: Kraken has only the last {NEWEST_BARS} bars, here from {shown_time(time.min())} on. "
                "Ask for a later start or a longer interval, or take another source."
            )
        final = time <= parse.stamps([last], label)[0]
        return parse.table(ask, time[final], {name: values[final] for name, values in columns.items()}, label)


def _rows(said: Any, label: str) -> tuple[list[Any], Any]:
    """The rows, and the time of the last one that is final."""
    if not isinstance(said, dict) or not isinstance(said.get("error"), list):
        raise BadAnswer(f"{label}: expected an object with error and result, got {parse.quoted(said)}.")
    if said["error"]:
        raise _refusal(" ".join(map(str, said["error"])), label)
    result = said.get("result")
    # The pair's name is not the one asked for (XBTUSD is XXBTZUSD), so there has to be exactly one.
    pairs = [key for key in result if key != "last"] if isinstance(result, dict) else []
    if not isinstance(result, dict) or len(pairs) != 1 or "last" not in result:
        raise BadAnswer(f"{label}: expected one pair and last, got {parse.quoted(result)}.")
    parse.check_width(result[pairs[0]], ROW_FIELDS, label)
    return result[pairs[0]], result["last"]


def _refusal(error: str, label: str) -> FetchError:
    if UNKNOWN_PAIR in error:
        return SymbolUnknown(f"{label}: no such pair. Kraken spells them without a separator, such as XBTUSD.")
    if error.startswith(PASSING):
        return SourceUnavailable(f"{label}: {parse.quoted(error)}. Ask again later.")
    if error.startswith(REFUSING):
        return SourceRefused(f"{label}: {parse.quoted(error)}.")
    return BadAnswer(f"{label}: {parse.quoted(error)}.")
