"""The Crypto Fear & Greed Index of alternative.me: one number a day, from 0 (fear) to 100 (greed), since 2018."""

from __future__ import annotations

from runner.errors import BadAnswer, SymbolUnknown
from workers.session import HttpClient, Request
from workers.sources.parse import (
    answers,
    base_url,
    column,
    floats,
    json_of,
    quoted,
    rate_of,
    stamps,
    status_error,
    table,
    where,
)
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual
from workers.throttle import Rate

URL = "https://api.alternative.me"
SYMBOL = "FNG"  # there is one index
# No limit is documented; the whole history comes in one answer.
RATE = Rate("fear_greed", weight_per_period=1, period_s=1.0, burst=2)


class FearGreed(Usual):
    """``value`` by day, symbol "FNG"; a day's number is made from the days before it, and shown at its midnight UTC."""

    name = "fear_greed"
    kind: Kind = "series"
    intervals: tuple[str, ...] = ("1d",)
    options: tuple[str, ...] = ()

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """There is no way to ask for a part that is not the newest."""
        return "all"

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """See `Source`."""
        label = where(self.name, ask)
        if ask.symbol.upper() != SYMBOL:
            raise SymbolUnknown(f"{label}: there is one index here, its symbol is {SYMBOL!r}.")
        url, private = base_url(ask, URL)
        request = Request(f"{url}/fng/", {"limit": "0", "format": "json"}, rate=rate_of(RATE, ask), private=private)
        [response] = await answers(http, [request], label)
        if response.status != 200:
            raise status_error(response, label)
        payload = json_of(response, label)
        metadata = payload.get("metadata") if isinstance(payload, dict) else None
        if isinstance(metadata, dict) and metadata.get("error") is not None:
            raise BadAnswer(f"{label}: the provider says {quoted(metadata['error'])}. Ask again later.")
        [rows] = column([payload], "data", label)
        return table(
            ask,
            stamps(column(rows, "timestamp", label), label),
            {"value": floats(column(rows, "value", label), "value", label)},
            label,
        )
