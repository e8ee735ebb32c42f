from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.errors import BadAnswer, NoData, SettingsError, SourceRefused
from tests.workers.sources.asking import DAY_NS, ask, ns
from workers.session import Rate, Response
from workers.sources import parse
from workers.sources.protocol import Ask, Table

LABEL = "binance: BTCUSDT 1d 2020-01-01..2021-01-01"


def said(body: bytes, media: str | None = "application/json", status: int = 200) -> Response:
    headers = {"Content-Type": media} if media is not None else {}
    return Response("http://x/", status, headers, body, from_cache=False, attempts=1)


def asked(now: str = "2022-01-01", interval: str = "1d") -> Ask:
    return ask("BTCUSDT", "2020-01-01", "2021-01-01", interval, now=now)


def bars(
    days: list[int], closes: list[float] | None = None, asked_for: Ask | None = None, **columns: list[float]
) -> Table:
    """A table of daily bars at 10, or what the columns say, so many days after 2020-01-01."""
    time = np.array([ns("2020-01-01") + day * DAY_NS for day in days], dtype=np.int64)
    named = {name: np.full(len(days), 10.0) for name in ("open", "high", "low", "close", "volume")}
    if closes is not None:
        named["close"] = np.array(closes)
        named["high"], named["low"] = np.full(len(days), 1000.0), np.full(len(days), 0.5)
    named |= {name: np.array(values) for name, values in columns.items()}
    return parse.table(asked_for or asked(), time, named, LABEL)


# Asking


def test_messages_begin_with_provider_symbol_interval_and_range() -> None:
    assert parse.where("binance", asked()) == LABEL


def test_without_a_base_url_the_default_is_asked_as_a_public_address() -> None:
    assert parse.base_url(asked(), "https://api.example.com") == ("https://api.example.com", False)


def test_a_base_url_may_be_private_and_loses_its_last_slash() -> None:
    question = ask("X", "2020-01-01", "2021-01-01", base_url="http://127.0.0.1:8000/binance/")
    assert parse.base_url(question, "https://api.example.com") == ("http://127.0.0.1:8000/binance", True)


@pytest.mark.parametrize("given", ["ftp://x", "x", "", "http://", "http://x/?key=SECRET", "http://[", "file:///etc/x"])
def test_a_base_url_that_is_none_is_refused_without_repeating_it(given: str) -> None:
    with pytest.raises(SettingsError, match="expected an http or https URL") as caught:
        parse.base_url(ask("X", "2020-01-01", "2021-01-01", base_url=given), "")
    assert "SECRET" not in str(caught.value)


def test_the_own_server_has_no_provider_s_limit_and_another_address_one_apart() -> None:
    usual = Rate("binance", 10, 1.0, 1)

    def rate(**options: str) -> Rate | None:
        return parse.rate_of(usual, ask("X", "2020-01-01", "2021-01-01", **options))

    assert rate() == usual
    assert (
        rate(base_url="http://127.0.0.1:1")
        is rate(base_url="http://localhost:1")
        is rate(base_url="http://10.0.0.7")
        is None
    )
    mirror = rate(base_url="https://api.example.com")
    assert mirror is not None
    assert mirror.key.startswith("binance:")
    assert mirror.weight_per_period == usual.weight_per_period
    assert mirror.key != getattr(rate(base_url="https://api.example.org"), "key", None)


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, SourceRefused), (403, SourceRefused), (451, SourceRefused), (418, BadAnswer), (404, BadAnswer)],
)
def test_a_status_that_nobody_explains_is_an_error_that_names_it(status: int, kind: type[Exception]) -> None:
    error = parse.status_error(said(b"what?", status=status), LABEL)
    assert type(error) is kind
    assert str(error).startswith(LABEL)
    assert str(status) in str(error)


def test_what_a_provider_said_is_shortened_and_escaped() -> None:
    assert parse.quoted(b"a\nb") == r"'a\nb'"
    assert len(parse.quoted("x" * 10_000)) < 250


# Reading


def test_json_is_read_whatever_its_type_is_called_exactly() -> None:
    for media in ("application/json", "application/json; charset=utf-8", "application/vnd.api+json", "text/json"):
        assert parse.json_of(said(b'{"a": [1.5, null]}', media), LABEL) == {"a": [1.5, None]}


@pytest.mark.parametrize(
    ("body", "media"),
    [
        (b"<!doctype html>", "text/html; charset=utf-8"),
        (b"[1]", "text/html"),
        (b"[1]", None),
        (b"[1", "application/json"),
        (b"", "application/json"),
        (b"[NaN]", "application/json"),
        (b"[-Infinity]", "application/json"),
        (b"\xff\xfe", "application/json"),
        (b"[" * 100_000, "application/json"),
        (b"1" * 10_000, "application/json"),
    ],
    ids=["html", "json called html", "no type", "cut", "empty", "nan", "infinity", "no utf-8", "too deep", "too long"],
)
def test_what_is_no_json_is_a_bad_answer(body: bytes, media: str | None) -> None:
    with pytest.raises(BadAnswer, match=f"^{LABEL}: expected JSON"):
        parse.json_of(said(body, media), LABEL)


def test_columns_are_taken_by_place_or_by_name() -> None:
    assert parse.column([[1, 2], [3, 4]], 1, LABEL) == [2, 4]
    assert parse.column([{"o": 1, "c": 2}], "c", LABEL) == [2]
    assert parse.column([], 1, LABEL) == []


@pytest.mark.parametrize("rows", [None, {}, "12", 1, [1], ["12"], [{"o": 1}], [[1], None], [[]]])
def test_rows_without_the_field_are_a_bad_answer(rows: object) -> None:
    with pytest.raises(BadAnswer, match=f"^{LABEL}"):
        parse.column(rows, 1, LABEL)


def test_a_row_of_another_width_is_a_bad_answer() -> None:
    parse.check_width([[1, 2], [3, 4]], 2, LABEL)
    for rows in ([[1, 2], [3]], [[1, 2, 3]], ["12"], {"a": [1, 2]}, None):
        with pytest.raises(BadAnswer, match=f"^{LABEL}: expected"):
            parse.check_width(rows, 2, LABEL)


def test_numbers_as_text_are_read_to_the_last_bit_and_null_is_nan() -> None:
    read = parse.floats(["0.1", 0.1, 3, "1e-8", None], "open", LABEL)
    assert read[:4].tolist() == [0.1, 0.1, 3.0, 1e-8]
    assert math.isnan(read[4])


@pytest.mark.parametrize("value", ["", ".", "n/a", "nan", "inf", "1_0", "1,5", "٣", True, [], {}, 10**400, math.inf])
def test_what_is_no_number_is_a_bad_answer(value: object) -> None:
    with pytest.raises(BadAnswer, match=f"^{LABEL}: open is .*, expected a number"):
        parse.floats([1.0, value], "open", LABEL)


@pytest.mark.parametrize("per_second", [1, 10**3, 10**6, 10**9])
def test_times_are_read_in_any_unit(per_second: int) -> None:
    moments = ["1990-01-01", "2017-08-17", "2025-03-10T12:30", "2100-01-01"]
    values = [ns(moment) // 10**9 * per_second for moment in moments]
    assert parse.stamps(values, LABEL).tolist() == [ns(moment) for moment in moments]
    assert parse.stamps(list(map(str, values)), LABEL).tolist() == [ns(moment) for moment in moments]


def test_the_unit_may_change_inside_a_column() -> None:
    first, second = ns("2024-12-31T23:59"), ns("2025-01-01")
    assert parse.stamps([first // 10**6, second // 10**3], LABEL).tolist() == [first, second]


@pytest.mark.parametrize("value", [1.5, "1.5", "1_0", " 1", "", None, True, [], "2020-01-01", 2**70])
def test_a_time_that_is_no_whole_number_is_a_bad_answer(value: object) -> None:
    with pytest.raises(BadAnswer, match=f"^{LABEL}: a time is no whole number"):
        parse.stamps([1_700_000_000, value], LABEL)


# Into one shape


def test_bars_close_after_their_interval_and_months_by_the_calendar() -> None:
    opens = np.array([ns("2024-01-01"), ns("2024-02-01"), ns("2024-12-01")])
    assert parse.closes_ns(opens, "1M").tolist() == [ns("2024-02-01"), ns("2024-03-01"), ns("2025-01-01")]
    assert parse.closes_ns(opens, "4h").tolist() == (opens + 4 * 3600 * 10**9).tolist()
    assert parse.interval_ns("15m") == 900 * 10**9
    assert parse.interval_ns("1M") == 28 * DAY_NS


def test_an_interval_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError, match="interval='0m'"):
        parse.interval_ns("0m")


def test_rows_are_sorted_and_of_a_time_that_comes_twice_the_last_one_stays() -> None:
    table = bars([3, 1, 2, 1], closes=[30.0, 10.0, 20.0, 11.0])
    assert ((table.time - ns("2020-01-01")) // DAY_NS).tolist() == [1, 2, 3]
    assert table.columns["close"].tolist() == [11.0, 20.0, 30.0]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 999)), min_size=1))
def test_any_order_gives_each_time_once_with_its_last_row(rows: list[tuple[int, int]]) -> None:
    table = bars([day for day, _ in rows], closes=[float(close) for _, close in rows])
    expected = sorted(dict(rows).items())
    assert ((table.time - ns("2020-01-01")) // DAY_NS).tolist() == [day for day, _ in expected]
    assert table.columns["close"].tolist() == [close for _, close in expected]


def test_rows_outside_of_the_span_are_cut_and_its_end_is_exclusive() -> None:
    table = bars([-1, 0, 365, 366])  # 2020 had 366 days
    assert ((table.time - ns("2020-01-01")) // DAY_NS).tolist() == [0, 365]


def test_a_bar_that_has_not_closed_is_dropped_and_one_that_has_just_closed_is_kept() -> None:
    assert len(bars([0, 1, 2], asked_for=asked(now="2020-01-03T23:59:59")).time) == 2
    assert len(bars([0, 1, 2], asked_for=asked(now="2020-01-04")).time) == 3


def test_a_month_runs_until_its_last_day() -> None:
    assert len(bars([0, 31], asked_for=asked("2020-02-29T23:00", "1M")).time) == 1
    assert len(bars([0, 31], asked_for=asked("2020-03-01", "1M")).time) == 2


def test_a_row_without_a_price_is_a_gap() -> None:
    table = bars([0, 1, 2, 3], open=[10, math.nan, 10, 10], close=[10, 10, math.nan, 10])
    assert ((table.time - ns("2020-01-01")) // DAY_NS).tolist() == [0, 3]


def test_a_price_without_a_volume_is_a_bad_answer() -> None:
    with pytest.raises(BadAnswer, match=f"^{LABEL}: volume is no finite number at 2020-01-02"):
        bars([0, 1], volume=[1, math.nan])


@pytest.mark.parametrize(
    ("columns", "what"),
    [
        ({"high": [10, 9]}, "open is outside low..high"),
        ({"low": [10, 11]}, "open is outside low..high"),
        ({"close": [10, 12]}, "close is outside low..high"),
        ({"open": [10, 0], "low": [10, 0]}, "open is not above 0"),
        ({"low": [10, -1]}, "low is not above 0"),
        ({"volume": [1, -1]}, "volume is below 0"),
        ({"high": [10, math.inf]}, "high is no finite number"),
    ],
)
def test_prices_that_no_market_makes_are_a_bad_answer(columns: dict[str, Any], what: str) -> None:
    with pytest.raises(BadAnswer, match=f"^{LABEL}: {what} at 2020-01-02 .*Nothing of this answer was kept"):
        bars([0, 1], **columns)


def test_a_range_that_is_left_by_rounding_alone_is_accepted() -> None:
    assert len(bars([0], high=[10 - 1e-7]).time) == 1


def test_a_series_may_be_negative_and_its_missing_values_are_gaps() -> None:
    time = np.array([ns("2020-01-01"), ns("2020-01-02"), ns("2020-01-03")])
    table = parse.table(asked(), time, {"value": np.array([-1.0, math.nan, 0.0])}, LABEL)
    assert table.columns["value"].tolist() == [-1.0, 0.0]


def test_nothing_left_is_no_data() -> None:
    for days in ([], [-5], [400]):
        with pytest.raises(NoData, match=f"^{LABEL}: the provider has nothing"):
            bars(days)


def test_rows_outside_of_what_was_asked_can_be_refused() -> None:
    parse.check_inside(np.array([5, 9]), 5, 10, LABEL)
    for outside in (4, 10):
        with pytest.raises(BadAnswer, match=f"^{LABEL}: 1 rows lie outside"):
            parse.check_inside(np.array([5, outside]), 5, 10, LABEL)
