"""What all sources share: asking, reading answers, and bringing rows into one shape. Strict: nothing wrong is kept."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt

from runner.columns import PRICES, RANGE_TOLERANCE, shown_time
from runner.errors import BadAnswer, FetchError, NoData, SettingsError, SourceRefused
from workers.addresses import is_public
from workers.session import HttpClient, Rate, Request, Response
from workers.sources.protocol import Ask, Table

Times = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SECOND_NS = 10**9
DAY_NS = 86_400 * SECOND_NS
UNIT_NS = {"s": SECOND_NS, "m": 60 * SECOND_NS, "h": 3600 * SECOND_NS, "d": DAY_NS, "w": 7 * DAY_NS, "M": 28 * DAY_NS}
WHOLE = re.compile(r"-?[0-9]{1,19}")
INTERVAL = re.compile(r"([1-9]\d*)([smhdwM])")

# A time from 1973 to 5138 is of these magnitudes in seconds, milliseconds and microseconds; beyond is nanoseconds.
# Binance's files changed from milliseconds to microseconds at 2025-01-01 in the middle of a column that has no unit.
BELOW_IS_SECONDS, BELOW_IS_MS, BELOW_IS_US = 10**11, 10**14, 10**17

# For one page, the wait for its turn under the provider's rate limit included; a whole symbol has ten minutes.
DEADLINE_S = 300.0

# As much of a provider's own words as helps in a message.
QUOTED_CHARS = 200


# Asking


def where(name: str, ask: Ask) -> str:
    """The beginning of every message: "binance: BTCUSDT 1d 2020-01-01..2021-01-01"."""
    return f"{name}: {ask.symbol} {ask.interval} {shown_time(ask.start_ns)}..{shown_time(ask.end_ns)}"


def base_url(ask: Ask, default: str) -> tuple[str, bool]:
    """The address to ask, without a slash at its end, and whether the user named it (then it may be a private one).

    Raises:
        SettingsError: the user's is no http or https URL, or has a query.
    """
    given = ask.options.get("base_url")
    if given is None:
        return default, False
    try:
        parts = urlsplit(str(given))
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SettingsError(
            "option base_url: expected an http or https URL without a query, such as https://api.example.com."
        )
    return str(given).rstrip("/"), True


def rate_of(usual: Rate, ask: Ask) -> Rate | None:
    """The allowance to keep to: the provider's; one apart for another address; none for the user's own server."""
    given = ask.options.get("base_url")
    if given is None:
        return usual
    host = urlsplit(str(given)).hostname or ""
    try:
        public = is_public(host)
    except ValueError:
        public = host != "localhost"
    return replace(usual, key=f"{usual.key}:{sha256(host.encode()).hexdigest()[:8]}") if public else None


async def answers(http: HttpClient, requests: Sequence[Request], label: str) -> list[Response]:
    """All answers in order, asked at once under the client's limits.

    Unless a request says otherwise the client keeps none of them: it cannot know which are wrong, and what is right is
    kept by the cache behind the source.

    Raises:
        FetchError: the first that failed, in words that begin with ``label``.
    """
    got: list[Response] = []
    unkept = [replace(one, cache_ttl_s=0) if one.cache_ttl_s is None else one for one in requests]
    for answer in await http.get_many(unkept):
        if isinstance(answer, FetchError):
            raise type(answer)(f"{label}: {answer}") from answer
        got.append(answer)
    return got


async def pages(
    http: HttpClient, requests: Sequence[Request], refusal: Callable[[Response, str], FetchError], label: str
) -> list[Response]:
    """All answers in order, the first alone: a symbol that does not exist costs one request, not one a page.

    Raises:
        FetchError: as `answers`, and ``refusal(page, label)`` for a status other than 200.
    """
    got: list[Response] = []
    for part in (requests[:1], requests[1:]):
        for page in await answers(http, part, label):
            if page.status != 200:
                raise refusal(page, label)
            got.append(page)
    return got


def status_error(response: Response, label: str) -> FetchError:
    """The error for a final answer that is neither data nor one that the source understands."""
    if response.status in (401, 403, 451):  # 451: not served in this country
        return SourceRefused(
            f"{label}: refused with HTTP {response.status}. Check the key if there is one, and whether the provider "
            f"serves this address and country."
        )
    return BadAnswer(
        f"{label}: HTTP {response.status}, {quoted(response.body)}. Is the provider's interface still this one?"
    )


def quoted(said: object) -> str:
    """A provider's own words, shortened and escaped."""
    text = said.decode("utf-8", "replace") if isinstance(said, bytes) else str(said)
    return repr(text[:QUOTED_CHARS]) + ("..." if len(text) > QUOTED_CHARS else "")


# Reading


def json_of(response: Response, label: str) -> Any:
    """The answer's JSON.

    Raises:
        BadAnswer: said to be something else, such as an HTML page with status 200, or broken (NaN is no JSON).
    """
    media = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if not media.endswith(("/json", "+json")):
        raise BadAnswer(f"{label}: expected JSON, got {media or 'an unnamed type'}: {quoted(response.body)}.")
    try:
        return json.loads(response.body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise BadAnswer(f"{label}: expected JSON, got {quoted(response.body)} ({error}).") from None


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def column(rows: Any, key: int | str, label: str) -> list[Any]:
    """One field of every row.

    Args:
        rows: JSON lists or objects.
        key: place or name of the field.
        label: begins the message.

    Raises:
        BadAnswer: not a list of rows, or one row without that field.
    """
    kind: type = list if isinstance(key, int) else dict
    if not isinstance(rows, list) or not all(isinstance(row, kind) for row in rows):
        raise BadAnswer(f"{label}: expected a list of rows, got {quoted(rows)}.")
    try:
        return [row[key] for row in rows]
    except (IndexError, KeyError):
        raise BadAnswer(f"{label}: a row has no field {key!r}: {quoted(rows[-1])} is the last one.") from None


def check_width(rows: Any, width: int, label: str) -> None:
    """BadAnswer unless ``rows`` are lists of so many fields: with one more or less, the others may have moved."""
    if not isinstance(rows, list):
        raise BadAnswer(f"{label}: expected a list of rows, got {quoted(rows)}.")
    for row in rows:
        if not isinstance(row, list) or len(row) != width:
            raise BadAnswer(f"{label}: expected rows of {width} fields, got {quoted(row)}.")


def rows_of(found: Sequence[Response], width: int, label: str, *, most: int | None = None) -> list[list[Any]]:
    """The rows of all pages, ``width`` fields each; BadAnswer also when a page has more than the ``most`` asked for."""
    rows: list[list[Any]] = []
    for page in found:
        some = json_of(page, label)
        check_width(some, width, label)
        if most is not None and len(some) > most:
            raise BadAnswer(f"{label}: {len(some):,} rows on a page, {most:,} were asked for.")
        rows += some
    return rows


def floats(values: Sequence[Any], name: str, label: str) -> Floats:
    """float64[n] of numbers and numbers as text; null is NaN.

    Raises:
        BadAnswer: text that is no number, or one that is not finite.
    """
    return np.array([math.nan if value is None else _number(value, name, label) for value in values], dtype=np.float64)


def _number(value: Any, name: str, label: str) -> float:
    number = math.nan
    # float() also reads "1_0", "nan" and what is no ASCII; providers write none of these on purpose.
    if (isinstance(value, str) and value.isascii() and "_" not in value) or type(value) in (int, float):
        try:
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
    if not math.isfinite(number):
        raise BadAnswer(f"{label}: {name} is {quoted(value)}, expected a number.")
    return number


def stamps(values: Sequence[Any], label: str) -> Times:
    """int64[n] nanoseconds since 1970 of whole numbers (or such as text) in s, ms, us or ns, told by their magnitude.

    Raises:
        BadAnswer: one is no whole number.
    """
    try:
        given = np.array([_whole(value) for value in values], dtype=np.int64)
    except (ValueError, OverflowError):
        raise BadAnswer(f"{label}: a time is no whole number: {quoted(list(values)[-3:])}.") from None
    return to_ns(given)


def to_ns(given: Times) -> Times:
    """Times in s, ms, us or ns, each told by its magnitude, as nanoseconds."""
    size = np.abs(given)
    below = [size < BELOW_IS_SECONDS, size < BELOW_IS_MS, size < BELOW_IS_US]
    factor: Times = np.select(below, [SECOND_NS, 10**6, 10**3], 1).astype(np.int64)
    return given * factor


def _whole(value: Any) -> int:
    if type(value) is int or (isinstance(value, str) and WHOLE.fullmatch(value)):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ValueError


# Into one shape


def interval_ns(interval: str) -> int:
    """Nanoseconds of the shortest bar of that interval: its length, but 28 days for a month."""
    count, unit = _split(interval)
    return count * UNIT_NS[unit]


def closes_ns(time: Times, interval: str) -> Times:
    """When the bars that open at ``time`` close, by the calendar where the interval is in months."""
    count, unit = _split(interval)
    if unit != "M":
        return time + count * UNIT_NS[unit]
    months = time.view("datetime64[ns]").astype("datetime64[M]") + count
    return months.astype("datetime64[ns]").view(np.int64)


def _split(interval: str) -> tuple[int, str]:
    match = INTERVAL.fullmatch(interval)
    if not match:
        raise SettingsError(f"interval={interval!r}: expected a number and one of s, m, h, d, w, M, such as '1h'.")
    return int(match[1]), match[2]


def table(
    ask: Ask, time: Times, columns: Mapping[str, Floats], label: str, *, etag: str = "", last_modified: str = ""
) -> Table:
    """Rows in any order as the source's answer: checked, sorted, each time once (its last row), in the span, closed.

    A row without a price or value is a gap and left out.

    Args:
        ask: gives span, interval and the present.
        time: int64[n], nanoseconds of the opens.
        columns: float64[n] by name; NaN where the provider said null.
        label: begins the messages.
        etag: of the answer.
        last_modified: of the answer.

    Raises:
        BadAnswer: prices that no market makes, or null where neither price nor value.
        NoData: no row is left.
    """
    whole = np.ones(len(time), dtype=np.bool_)
    for name in (*PRICES, "value"):
        if name in columns:
            whole &= ~np.isnan(columns[name])
    time, named = time[whole], {name: values[whole] for name, values in columns.items()}
    _check(time, named, label)
    order = np.argsort(time, kind="stable")
    ordered = time[order]
    last_of_its_time = np.append(ordered[1:] != ordered[:-1], np.ones(min(1, len(ordered)), dtype=np.bool_))
    kept = order[last_of_its_time]
    opens = time[kept]
    kept = kept[(opens >= ask.start_ns) & (opens < ask.end_ns) & (closes_ns(opens, ask.interval) <= ask.now_ns)]
    if not len(kept):
        raise no_data(label)
    return Table(time[kept], {name: values[kept] for name, values in named.items()}, etag, last_modified)


def check_inside(time: Times, start_ns: int, end_ns: int, label: str) -> None:
    """BadAnswer when a row lies outside start_ns..end_ns, from a provider that never sends such rows."""
    outside = time[(time < start_ns) | (time >= end_ns)]
    if len(outside):
        raise BadAnswer(
            f"{label}: {len(outside)} rows lie outside of the range that was asked for, the first at "
            f"{shown_time(outside[0])}. Does base_url lead to this provider?"
        )


def no_data(label: str) -> NoData:
    """The error for a range in which a known symbol has nothing."""
    return NoData(f"{label}: the provider has nothing in this range. Was it listed then? Ask for other dates.")


def _check(time: Times, columns: Mapping[str, Floats], label: str) -> None:
    for name, values in columns.items():
        _refuse(~np.isfinite(values), time, values, f"{name} is no finite number", label)
    if all(name in columns for name in PRICES):
        high, low = columns["high"], columns["low"]
        for name in PRICES:
            values = columns[name]
            _refuse(values <= 0, time, values, f"{name} is not above 0", label)
            outside = (values - high > high * RANGE_TOLERANCE) | (low - values > low * RANGE_TOLERANCE)
            _refuse(outside, time, values, f"{name} is outside low..high", label)
    if "volume" in columns:
        _refuse(columns["volume"] < 0, time, columns["volume"], "volume is below 0", label)


def _refuse(bad: Flags, time: Times, values: Floats, what: str, label: str) -> None:
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise BadAnswer(
            f"{label}: {what} at {shown_time(time[first])} ({float(values[first])!r}, {int(bad.sum())} such rows). "
            "Nothing of this answer was kept; ask again later, or take another source."
        )
