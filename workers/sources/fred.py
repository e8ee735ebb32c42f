"""FRED, the Federal Reserve Bank of St. Louis: macroeconomic series and rates, as they stand or as they once stood."""

from __future__ import annotations

import csv
import re
from datetime import date

from runner.errors import BadAnswer, SettingsError, SymbolUnknown
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

CSV_URL, API_URL = "https://fred.stlouisfed.org", "https://api.stlouisfed.org"
KEY = "RUNNER_FRED_KEY"
# The CSV has no published limit; a careful client's pace. The API documents 120 a minute.
CSV_RATE = Rate("fred", weight_per_period=2, period_s=1.0, burst=2)
API_PER_MINUTE, API_BURST = 120, 10
# The CSV of a long series takes its time, and 504s before it.
DEADLINE_S = 120.0
# The API's own upper bound; a daily series of 270 years fits.
MOST_ROWS = 100_000
MISSING = (".", "")


class Fred(Usual):
    """Series by id, such as DGS10 or VIXCLS: ``value``, stamped with the date that the value is *for*.

    Values are published after that date and revised later: join with a lag, or ask with ``realtime="2020-03-01"`` for
    what was known on that day (needs a free key in RUNNER_FRED_KEY). Days without a value (holidays) are left out.
    """

    name = "fred"
    kind: Kind = "series"
    intervals: tuple[str, ...] = ("1d",)
    options: tuple[str, ...] = ("realtime",)

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """A daily series' decade is 40 kB."""
        return "decade"

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """See `Source`."""
        label = where(self.name, ask)
        first, last = days.first_and_last(ask)
        if last < first:
            raise no_data(label)
        if "realtime" in ask.options:
            return await self._as_known_on(_date(ask), ask, http, label)
        url, private = base_url(ask, CSV_URL)
        params = {"id": ask.symbol, "cosd": first.isoformat(), "coed": last.isoformat()}
        request = Request(
            f"{url}/graph/fredgraph.csv", params, deadline_s=DEADLINE_S, rate=rate_of(CSV_RATE, ask), private=private
        )
        [response] = await answers(http, [request], label)
        if response.status in (400, 404):
            raise _unknown(label)
        if response.status != 200:
            raise status_error(response, label)
        rows = _csv_rows(response, label)
        return _table(ask, [row[0] for row in rows], [row[1] for row in rows], label)

    async def _as_known_on(self, day: date, ask: Ask, http: HttpClient, label: str) -> Table:
        key = accounts.key(KEY, label)
        url, private = base_url(ask, API_URL)
        first, last = days.first_and_last(ask)
        params = {
            "series_id": ask.symbol,
            "file_type": "json",
            "realtime_start": day.isoformat(),
            "realtime_end": day.isoformat(),
            "observation_start": first.isoformat(),
            "observation_end": last.isoformat(),
            "limit": str(MOST_ROWS),
            "api_key": key,  # the API takes it nowhere else
        }
        rate = rate_of(Rate(f"fred:{accounts.tag(key)}", API_PER_MINUTE, 60.0, API_BURST), ask)
        request = Request(
            f"{url}/fred/series/observations", params, deadline_s=DEADLINE_S, rate=rate, cache_ttl_s=0, private=private
        )
        with accounts.hidden(key):
            [response] = await answers(http, [request], label)
            if response.status in (400, 403, 404):
                raise _api_error(response, label)
            if response.status != 200:
                raise status_error(response, label)
            [rows] = column([json_of(response, label)], "observations", label)
            return _table(ask, column(rows, "date", label), column(rows, "value", label), label)


def _table(ask: Ask, dates: list[str], values: list[str], label: str) -> Table:
    numbers = floats([None if value in MISSING else value for value in values], "value", label)
    return table(ask, days.midnights(dates, label), {"value": numbers}, label)


# A line of JSON with one comma has two fields too.
HEADING = re.compile(r"[\w.-]+")


def _csv_rows(response: Response, label: str) -> list[list[str]]:
    """The rows below the header, whose names have changed before ("DATE", then "observation_date") and mean nothing."""
    text = response.body.decode("utf-8-sig", "replace")
    try:
        rows = [row for row in csv.reader(text.splitlines()) if row]
    except csv.Error:  # such as a field of more than 128 KiB
        rows = []
    if not rows or any(len(row) != 2 for row in rows) or not all(map(HEADING.fullmatch, rows[0])):
        raise BadAnswer(f"{label}: expected CSV of date and value, got {quoted(response.body)}.")
    return rows[1:]


def _unknown(label: str) -> SymbolUnknown:
    return SymbolUnknown(
        f"{label}: FRED has no such series. Take the id that stands in its page's address, such as DGS10."
    )


def _api_error(response: Response, label: str) -> Exception:
    """The API says with one status that the key, the series or the date is wrong."""
    said = response.body.decode("utf-8", "replace")
    if "api_key" in said:
        return accounts.refused(KEY, response.status, label)
    return _unknown(label) if "does not exist" in said else status_error(response, label)


def _date(ask: Ask) -> date:
    given = ask.options["realtime"]
    try:
        return date.fromisoformat(str(given))
    except ValueError:
        raise SettingsError(f"option realtime={given!r}: expected a date, such as '2020-03-01'.") from None
