"""Tiingo: daily prices of US shares and funds over decades, raw, with their splits and dividends. Needs a key."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from runner.errors import BadAnswer, SourceUnavailable, SymbolUnknown
from workers.session import HttpClient, Request, Response
from workers.sources import accounts, days
from workers.sources.parse import (
    answers,
    base_url,
    column,
    floats,
    json_of,
    no_data,
    quoted,
    rate_of,
    status_error,
    table,
    where,
)
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual
from workers.throttle import Rate

URL = "https://api.tiingo.com"
KEY = "RUNNER_TIINGO_KEY"
# The free plan's, as its users report it; it comes back on the hour, so all of it may be used at once.
HOURLY, FREE_HOURLY = "RUNNER_TIINGO_HOURLY", 50
FIELDS = {
    "open": "open",
    "high": "high",
    "low": "low",
    "close": "close",
    "volume": "volume",
    "split": "splitFactor",
    "dividend": "divCash",
}


class Tiingo(Usual):
    """Daily bars by ticker, such as AAPL or BRK-B, with the key in RUNNER_TIINGO_KEY of the worker's environment.

    RUNNER_TIINGO_HOURLY is what a paid plan allows an hour; without it, the free plan's 50.
    """

    name = "tiingo"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = ("1d",)
    options: tuple[str, ...] = ()

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """Requests are few, and a decade is half a megabyte."""
        return "decade"

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """See `Source`."""
        label = where(self.name, ask)
        first, last = days.first_and_last(ask)
        if last < first:
            raise no_data(label)
        key, hourly = accounts.key(KEY, label), accounts.allowance(HOURLY, FREE_HOURLY)
        url, private = base_url(ask, URL)
        request = Request(
            f"{url}/tiingo/daily/{quote(ask.symbol, safe='')}/prices",
            {
                "startDate": first.isoformat(),
                "endDate": last.isoformat(),
                "resampleFreq": "daily",
                "format": "json",
            },
            {"Authorization": f"Token {key}"},
            rate=rate_of(Rate(f"tiingo:{accounts.tag(key)}", hourly, 3600.0, hourly), ask),
            private=private,
        )
        with accounts.hidden(key):
            [response] = await answers(http, [request], label)
            rows = _rows(response, label)
            columns = {name: floats(column(rows, field, label), field, label) for name, field in FIELDS.items()}
            return table(ask, days.midnights(column(rows, "date", label), label), columns, label)


def _rows(response: Response, label: str) -> Any:
    if response.status in (401, 403):
        raise accounts.refused(KEY, response.status, label)
    if response.status == 404:
        raise SymbolUnknown(f"{label}: Tiingo has no such ticker. It writes classes with a dash, such as BRK-B.")
    if response.status != 200:
        raise status_error(response, label)
    rows = json_of(response, label)
    if isinstance(rows, dict) and "detail" in rows:  # some of its refusals come with status 200
        if "allocation" in str(rows["detail"]):
            raise SourceUnavailable(f"{label}: the plan's requests are used up for this hour, day or month.")
        raise BadAnswer(f"{label}: the provider says {quoted(rows['detail'])}.")
    return rows
