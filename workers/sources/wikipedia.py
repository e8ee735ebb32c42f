"""Page views of Wikipedia's articles: how many people read about something, day by day since July 2015."""

from __future__ import annotations

from datetime import date
from urllib.parse import quote

from runner.errors import SymbolUnknown
from workers.session import HttpClient, Request, Response
from workers.sources import days
from workers.sources.at_once import AtOnce
from workers.sources.parse import (
    answers,
    base_url,
    column,
    floats,
    json_of,
    no_data,
    rate_of,
    status_error,
    table,
    where,
)
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual
from workers.throttle import Rate

URL = "https://wikimedia.org/api/rest_v1"
FIRST_DAY = date(2015, 7, 1)  # of the present way of counting
# Since March 2026 Wikimedia limits unnamed clients by calls under way (3) and by a rate whose number it leaves open.
MOST_AT_ONCE = 3
RATE = Rate("wikipedia", weight_per_period=5, period_s=1.0, burst=MOST_AT_ONCE)


class Wikipedia(Usual):
    """Views a day by the article's title, such as "Bitcoin" or "S&P 500": ``value``, stamped with the day counted.

    A day's count appears the next day or the one after: join with a lag of two days. Days without views are left out.

    Options: ``project`` ("en.wikipedia"), ``access`` ("all-access", "desktop", "mobile-web", "mobile-app"), ``agent``
    ("user", "spider", "automated", "all-agents").
    """

    name = "wikipedia"
    kind: Kind = "series"
    intervals: tuple[str, ...] = ("1d",)
    options: tuple[str, ...] = ("access", "agent", "project")

    def __init__(self) -> None:
        self._at_once = AtOnce(MOST_AT_ONCE)

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """A year is 50 kB of JSON, and closed years never change."""
        return "year"

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """See `Source`."""
        label = where(self.name, ask)
        first, last = days.first_and_last(ask)
        if last < max(first, FIRST_DAY):
            raise no_data(label)
        response = await self._get(ask, http, max(first, FIRST_DAY), last, label)
        if response.status == 404:
            # The same answer for a day without views and for an article that never was: ask about all days.
            _, today = days.first_and_last(_ever(ask))
            known = await self._get(ask, http, FIRST_DAY, today, label)
            raise no_data(label) if known.status == 200 else _unknown(label)
        if response.status != 200:
            raise status_error(response, label)
        [items] = column([json_of(response, label)], "items", label)
        stamps = [f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}" for stamp in map(str, column(items, "timestamp", label))]
        return table(
            ask,
            days.midnights(stamps, label),
            {"value": floats(column(items, "views", label), "views", label)},
            label,
        )

    async def _get(self, ask: Ask, http: HttpClient, first: date, last: date, label: str) -> Response:
        url, private = base_url(ask, URL)
        options = {"project": "en.wikipedia", "access": "all-access", "agent": "user", **ask.options}
        parts = [str(options[name]) for name in ("project", "access", "agent")]
        # An article called AC/DC is one part of the path.
        path = "/".join(quote(part, safe="") for part in (*parts, ask.symbol.strip().replace(" ", "_")))
        request = Request(
            f"{url}/metrics/pageviews/per-article/{path}/daily/{first:%Y%m%d}00/{last:%Y%m%d}00",
            rate=rate_of(RATE, ask),
            private=private,
        )
        async with self._at_once.slot():
            [response] = await answers(http, [request], label)
        return response


def _ever(ask: Ask) -> Ask:
    return Ask(ask.symbol, ask.interval, ask.start_ns, ask.now_ns, ask.now_ns, ask.options)


def _unknown(label: str) -> SymbolUnknown:
    return SymbolUnknown(
        f"{label}: no article of that title was ever read. Titles are case-sensitive and stand in the page's address, "
        "such as 'Bitcoin'; other languages need the option project, such as 'de.wikipedia'."
    )
