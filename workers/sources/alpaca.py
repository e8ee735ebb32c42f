"""Alpaca: minute to daily bars of US shares since 2016, raw, with their splits and cash dividends. Needs a key."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from runner.errors import BadAnswer, NoData, SettingsError, SourceRefused, SymbolUnknown
from workers.session import HttpClient, Request, Response
from workers.sources import accounts, days
from workers.sources.parse import (
    SECOND_NS,
    Flags,
    Floats,
    Times,
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

URL = "https://data.alpaca.markets"
KEY_ID, SECRET_KEY = "RUNNER_ALPACA_KEY_ID", "RUNNER_ALPACA_SECRET_KEY"
PER_MINUTE, FREE_PER_MINUTE = "RUNNER_ALPACA_PER_MINUTE", 200
TIMEFRAMES = {"1m": "1Min", "5m": "5Min", "15m": "15Min", "30m": "30Min", "1h": "1Hour", "1d": "1Day"}
ROWS_A_PAGE, ACTIONS_A_PAGE = 10_000, 1_000  # the API's upper bounds
# A month of minutes is three pages, a year of days one: far more means that the tokens lead nowhere.
MOST_PAGES = 100
# Without a feed Alpaca answers from the whole market's tape, of which free plans lack the last 15 minutes, and from
# one small exchange within those: two kinds of volume in one column.
TAPE_DELAY_NS = 16 * 60 * SECOND_NS
ZONE = "America/New_York"
OPENS_MINUTE, CLOSES_MINUTE = 9 * 60 + 30, 16 * 60  # of the day there
# The endpoint filters by the day an action was processed, for cash dividends the day of payment: up to a quarter
# after the ex-date, which is what counts here.
BEFORE, AFTER = timedelta(days=7), timedelta(days=100)
FIELDS = {"open": "o", "high": "h", "low": "l", "close": "c", "volume": "v"}


@dataclass(frozen=True, slots=True)
class _Call:
    """One account, address and wording of messages."""

    http: HttpClient
    url: str
    private: bool
    headers: dict[str, str]
    rate: Rate | None
    label: str


class Alpaca(Usual):
    """Bars by ticker, with the two halves of a key in RUNNER_ALPACA_KEY_ID and RUNNER_ALPACA_SECRET_KEY.

    Intraday bars are those that open in the exchange's regular hours, 09:30 to before 16:00 in New York (so the first
    full hour is 10:00; the afternoons of half days are not told apart); ``session="extended"`` gives all.
    ``feed`` is Alpaca's: "sip" for the whole market's tape, "iex" for one exchange's, which free plans may read to the
    present; without it, the tape but for its last 16 minutes. Splits and dividends are put on the first bar of their
    ex-date; stock dividends and spin-offs are not among them.
    RUNNER_ALPACA_PER_MINUTE is what a paid plan allows; without it, the free plan's 200.
    """

    name = "alpaca"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = tuple(TIMEFRAMES)
    options: tuple[str, ...] = ("feed", "session")

    def unit(self, interval: str) -> Unit:
        """A page or two of days or half hours, three of minutes."""
        return "month" if interval in ("1m", "5m", "15m") else "year"

    async def load(self, ask: Ask, http: HttpClient) -> Table:
        """See `Source`."""
        label = where(self.name, ask)
        session = _session(ask)
        key, secret = accounts.key(KEY_ID, label), accounts.key(SECRET_KEY, label)
        allowed = accounts.allowance(PER_MINUTE, FREE_PER_MINUTE)
        url, private = base_url(ask, URL)
        headers = {"APCA-API-KEY-ID": key, "APCA-API-SECRET-KEY": secret}
        rate = rate_of(Rate(f"alpaca:{accounts.tag(key)}", allowed, 60.0, max(1, allowed // 10)), ask)
        call = _Call(http, url, private, headers, rate, label)
        with accounts.hidden(key, secret):
            time, columns = await _bars(ask, call)
            if ask.interval != "1d" and session == "regular":
                open_then = _regular(time)
                time, columns = time[open_then], {name: values[open_then] for name, values in columns.items()}
            bars = table(ask, time, columns, label)
            return await _with_actions(ask, bars, call)


async def _bars(ask: Ask, call: _Call) -> tuple[Times, dict[str, Floats]]:
    end_ns = min(ask.end_ns, ask.now_ns - (0 if "feed" in ask.options else TAPE_DELAY_NS))
    if end_ns <= ask.start_ns:
        raise no_data(call.label)
    params = {
        "symbols": ask.symbol,
        "timeframe": TIMEFRAMES[ask.interval],
        "start": _rfc3339(ask.start_ns),
        "end": _rfc3339(end_ns - 1),  # inclusive
        "limit": str(ROWS_A_PAGE),
        "adjustment": "raw",
    }
    if "feed" in ask.options:
        params["feed"] = str(ask.options["feed"])
    rows: list[Any] = []
    async for page in _pages("/v2/stocks/bars", "bars", params, call):
        rows += _listed(page, ask.symbol, call.label)  # pages go through one symbol after the other
    if not rows:
        raise NoData(
            f"{call.label}: Alpaca has nothing, and answers the same about a symbol that it does not know. "
            "Check the symbol, and ask for dates from 2016 on."
        )
    moments = _moments(column(rows, "t", call.label), call.label)
    time = (
        days.trading_dates(moments.tz_convert(ZONE))
        if ask.interval == "1d"
        else np.asarray(moments.asi8, dtype=np.int64)
    )
    return time, {name: floats(column(rows, field, call.label), name, call.label) for name, field in FIELDS.items()}


async def _with_actions(ask: Ask, bars: Table, call: _Call) -> Table:
    """The bars with ``split`` and ``dividend``."""
    first, last = days.first_and_last(ask)
    params = {
        "symbols": ask.symbol,
        "types": "forward_split,reverse_split,cash_dividend",
        "start": (first - BEFORE).isoformat(),
        "end": (last + AFTER).isoformat(),
        "limit": str(ACTIONS_A_PAGE),
    }
    split, dividend = np.ones(len(bars.time)), np.zeros(len(bars.time))
    async for page in _pages("/v1/corporate-actions", "corporate_actions", params, call):
        for kind in ("forward_splits", "reverse_splits"):
            rows = _listed(page, kind, call.label)
            for place, new, old in _actions(ask, bars, rows, ("new_rate", "old_rate"), call.label):
                if not (new > 0 and old > 0):
                    raise BadAnswer(f"{call.label}: a split of {new:g} for {old:g} shares.")
                split[place] *= new / old
        rows = _listed(page, "cash_dividends", call.label)
        for place, rate in _actions(ask, bars, rows, ("rate",), call.label):
            dividend[place] += rate
    return Table(bars.time, {**bars.columns, "split": split, "dividend": dividend})


def _actions(ask: Ask, bars: Table, rows: list[Any], rates: tuple[str, ...], label: str) -> Iterator[tuple[Any, ...]]:
    """Place and rates of each action on the first bar at or after its ex-date, when that date is inside the span."""
    mine = [row for row, symbol in zip(rows, column(rows, "symbol", label), strict=True) if symbol == ask.symbol]
    numbers = [floats(column(mine, name, label), name, label) for name in rates]
    if not all(np.all(values >= 0) for values in numbers):
        raise BadAnswer(f"{label}: {' or '.join(rates)} is missing or below 0: {quoted(mine)}.")
    days_ns = days.midnights(column(mine, "ex_date", label), label)
    zone = "UTC" if ask.interval == "1d" else ZONE
    opens = pd.DatetimeIndex(days_ns.view("datetime64[ns]")).tz_localize(zone).as_unit("ns").asi8
    places = np.searchsorted(bars.time, opens)
    inside = (opens >= ask.start_ns) & (opens < ask.end_ns) & (places < len(bars.time))
    return zip(places[inside], *(values[inside] for values in numbers), strict=True)


async def _pages(path: str, field: str, params: dict[str, str], call: _Call) -> AsyncIterator[dict[str, Any]]:
    """That field of every page, in order."""
    token = ""
    for _ in range(MOST_PAGES):
        asked = {**params, "page_token": token} if token else params
        request = Request(f"{call.url}{path}", asked, call.headers, rate=call.rate, private=call.private)
        [response] = await answers(call.http, [request], call.label)
        payload = _payload(response, call.label)
        [page] = column([payload], field, call.label)
        page = {} if page is None else page  # null when there is nothing
        if not isinstance(page, dict):
            raise BadAnswer(f"{call.label}: expected {field} by name, got {quoted(page)}.")
        yield page
        token = payload.get("next_page_token") or ""
        if not token:
            return
    raise BadAnswer(f"{call.label}: more than {MOST_PAGES} pages, which is more than such a span has.")


def _payload(response: Response, label: str) -> Any:
    said = response.body.decode("utf-8", "replace")
    if response.status == 403 and "subscription" in said:
        raise SourceRefused(
            f"{label}: the account's plan does not have these data (recent ones of the whole market, usually). Leave "
            "the option feed out, take feed='iex', or end 15 minutes before now."
        )
    if response.status in (401, 403):
        raise accounts.refused(f"{KEY_ID} and {SECRET_KEY}", response.status, label)
    if response.status in (400, 422) and "symbol" in said:
        raise SymbolUnknown(f"{label}: Alpaca takes no such symbol. It writes classes with a dot, such as BRK.B.")
    if response.status != 200:
        raise status_error(response, label)
    return json_of(response, label)


def _listed(by_name: dict[str, Any], name: str, label: str) -> list[Any]:
    rows = by_name.get(name) or []
    if not isinstance(rows, list):
        raise BadAnswer(f"{label}: expected a list of {name}, got {quoted(rows)}.")
    return rows


def _moments(texts: list[Any], label: str) -> pd.DatetimeIndex:
    try:
        moments = pd.DatetimeIndex(pd.to_datetime(texts, utc=True, format="ISO8601")).as_unit("ns")
    except (ValueError, TypeError):
        moments = pd.DatetimeIndex([pd.NaT])
    if moments.hasnans:
        raise BadAnswer(f"{label}: expected times such as 2020-01-31T05:00:00Z, got {quoted(texts[-3:])}.")
    return moments


def _regular(time: Times) -> Flags:
    there = pd.DatetimeIndex(time.view("datetime64[ns]")).tz_localize("UTC").tz_convert(ZONE)
    minute = np.asarray(there.hour * 60 + there.minute)
    return (minute >= OPENS_MINUTE) & (minute < CLOSES_MINUTE)


def _rfc3339(stamp_ns: int) -> str:
    return f"{np.datetime64(stamp_ns, 'ns')}Z"


def _session(ask: Ask) -> str:
    session = str(ask.options.get("session", "regular"))
    if session not in ("regular", "extended"):
        raise SettingsError(f"option session={session!r}: expected 'regular' or 'extended'.")
    return session
