from __future__ import annotations

from bisect import bisect_left
from datetime import timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import runner
from runner.bars import Bars
from runner.columns import Floats
from runner.errors import BarsError, InputError
from runner.joining import closes, joined
from tests.runner.prices import DAY_NS, random_bars

HOUR_NS = DAY_NS // 24
BARS = random_bars(10)
VALUES = pd.Series(np.arange(10.0), index=pd.date_range("1970-01-01", periods=10, tz="UTC"), name="alt")


def days(*dates: str) -> Any:
    return pd.DatetimeIndex(dates).as_unit("ns").asi8


def plain_close(time: list[int], i: int) -> int:
    steps = [after - before for before, after in pairwise(time)]
    if not steps:
        return time[0] + 1
    usual = max(sorted(set(steps)), key=steps.count)
    return time[i] + min(usual, steps[i] if i < len(steps) else min(steps))


def plain_join(time: list[int], rows: list[tuple[int, float]], lag: int, max_age: int | None) -> list[float]:
    # The plain twin: for each bar, look at every value.
    column = []
    for i in range(len(time)):
        close, best = plain_close(time, i), float("nan")
        for stamp, value in rows:
            known_for = close - (stamp + lag)
            if known_for > 0 and not np.isnan(value):
                best = value if max_age is None or known_for <= max_age else float("nan")
        column.append(best)
    return column


hours = st.integers(0, 200)
stamps = st.lists(hours, min_size=1, max_size=30, unique=True).map(sorted)
rows = st.dictionaries(hours, st.one_of(st.just(float("nan")), st.floats(-1e6, 1e6)), min_size=1, max_size=30)


def series_of(by_hour: dict[int, float]) -> pd.Series[Any]:
    index = pd.DatetimeIndex(np.array(sorted(by_hour)) * HOUR_NS).tz_localize("UTC")
    return pd.Series([by_hour[hour] for hour in sorted(by_hour)], index=index, name="alt")


@given(stamps, rows, st.integers(0, 50), st.none() | st.integers(1, 100))
def test_it_is_the_latest_value_known_before_the_close(
    time: list[int], values: dict[int, float], lag: int, max_age: int | None
) -> None:
    column = joined(
        np.array(time) * HOUR_NS,
        series_of(values),
        lag=timedelta(hours=lag),
        max_age=None if max_age is None else timedelta(hours=max_age),
    )["alt"]
    in_ns = [(hour * HOUR_NS, value) for hour, value in sorted(values.items())]
    expected = plain_join(
        [hour * HOUR_NS for hour in time], in_ns, lag * HOUR_NS, None if max_age is None else max_age * HOUR_NS
    )
    np.testing.assert_array_equal(column, expected)


@given(stamps, rows, st.integers(0, 50), st.data())
def test_no_value_still_unknown_at_a_close_changes_that_bar_or_one_before(
    time: list[int], values: dict[int, float], lag: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(time) - 1))
    close = plain_close([hour * HOUR_NS for hour in time], at)
    later = [hour for hour in values if (hour + lag) * HOUR_NS >= close]
    changed = {**values, **{hour: data.draw(st.floats(1e9, 2e9)) for hour in later}}
    for hour in data.draw(st.lists(hours)):
        if (hour + lag) * HOUR_NS >= close:
            changed.setdefault(hour, 3e9)
    before, after = (
        joined(np.array(time) * HOUR_NS, series_of(each), lag=f"{lag}h")["alt"] for each in (values, changed)
    )
    np.testing.assert_array_equal(before[: at + 1], after[: at + 1])


@given(stamps, st.integers(1, 30))
def test_a_bar_never_closes_after_the_next_one_opens(time: list[int], more: int) -> None:
    whole = closes(np.array([*time, time[-1] + more]) * HOUR_NS)
    assert (whole[:-1] <= np.array([*time[1:], time[-1] + more]) * HOUR_NS).all()
    assert (whole > np.array([*time, time[-1] + more]) * HOUR_NS).all()


def test_fridays_bar_closes_on_saturday_and_the_last_as_if_it_were_the_shortest() -> None:
    daily = days("2024-01-04", "2024-01-05", "2024-01-08", "2024-01-09")
    assert closes(daily).tolist() == days("2024-01-05", "2024-01-06", "2024-01-09", "2024-01-10").tolist()
    monthly = days("2023-12-01", "2024-01-01", "2024-02-01", "2024-03-01")
    assert closes(monthly).tolist() == days("2024-01-01", "2024-02-01", "2024-03-01", "2024-03-30").tolist()
    sessions = days("2024-01-04 09:30", "2024-01-04 13:30", "2024-01-05 09:30", "2024-01-05 13:30")
    assert closes(sessions).tolist() == (sessions + 4 * HOUR_NS).tolist()


def test_of_a_single_bar_only_its_open_is_known() -> None:
    known = joined(np.array([3 * DAY_NS]), VALUES, lag="1d")["alt"]
    assert known.tolist() == [2.0]


def test_a_lag_of_a_day_gives_the_day_before_on_real_data() -> None:
    vix = runner.sample_series("VIX")
    bars = runner.sample_data("SP500")
    column = bars.join(vix, lag="1d")["vix"]
    given_values = vix.dropna()
    dates = given_values.index.as_unit("ns").asi8.tolist()  # type: ignore[attr-defined]  # the stubs lack asi8
    for stamp, value in zip(bars.time.tolist(), column.tolist(), strict=True):
        before = bisect_left(dates, stamp)
        if before:
            assert value == given_values.iloc[before - 1]
        else:
            assert np.isnan(value)
    assert np.isfinite(column).sum() == 1256


@pytest.mark.parametrize(
    ("lag", "hours_of_it"),
    [
        ("0s", 0),
        ("1d", 24),
        ("1D", 24),
        ("1.5d", 36),
        ("1d12h", 36),
        ("1 day", 24),
        ("36h", 36),
        ("90min", 1.5),
        ("30m", 0.5),
        ("1w", 168),
        (timedelta(hours=5), 5),
        (pd.Timedelta("5h"), 5),
        (np.timedelta64(5, "h"), 5),
    ],
)
def test_a_lag_may_be_said_in_many_ways(lag: Any, hours_of_it: float) -> None:
    hourly = np.arange(400) * HOUR_NS
    column = joined(hourly, VALUES, lag=lag)["alt"]
    first = int(np.flatnonzero(np.isfinite(column))[0])
    assert first == int(hours_of_it)  # the bar during which it becomes known


@pytest.mark.parametrize("lag", [None, 1, 1.0, "", "5", "soon", "NaT", pd.NaT, "1M", "999999999999d", [1]])
def test_a_lag_that_is_no_length_of_time_is_refused(lag: Any) -> None:
    with pytest.raises(InputError, match="expected a length of time, such as '1d'"):
        BARS.join(VALUES, lag=lag)


def test_a_negative_lag_would_be_look_ahead() -> None:
    for lag in ("-1d", timedelta(seconds=-1)):
        with pytest.raises(InputError, match="is negative: bars would use values before"):
            BARS.join(VALUES, lag=lag)


def test_a_lag_has_no_default() -> None:
    with pytest.raises(TypeError, match="lag"):
        BARS.join(VALUES)  # type: ignore[call-arg]  # the point of the test


def test_a_dead_feed_ends_when_its_last_value_is_too_old() -> None:
    dead = VALUES[:3]
    assert joined(BARS.time, dead, lag="0s")["alt"].tolist() == [0, 1] + [2] * 8
    column = joined(BARS.time, dead, lag="0s", max_age="3d")["alt"]
    np.testing.assert_array_equal(column, [0, 1, 2, 2, 2, *[np.nan] * 5])
    with pytest.raises(InputError, match="every value would be too old"):
        BARS.join(VALUES, lag="0s", max_age="0s")
    with pytest.raises(InputError, match="max_age=7: expected a length"):
        BARS.join(VALUES, lag="0s", max_age=7)  # type: ignore[arg-type]  # the point of the test


def test_the_age_of_a_value_centuries_old_is_still_known() -> None:
    old = pd.Series([1.0], index=pd.DatetimeIndex(["1700-01-01"]), name="alt")
    recent = days("2024-01-04", "2024-01-05")
    assert np.isnan(joined(recent, old, lag="0s", max_age="365d")["alt"]).all()
    assert joined(recent, old, lag="0s")["alt"].tolist() == [1.0, 1.0]
    never = pd.Series([1.0], index=pd.DatetimeIndex(["2262-01-01"]), name="alt")
    assert np.isnan(joined(recent, never, lag="36500d")["alt"]).all()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York"])
def test_times_of_any_unit_and_zone_mean_the_same_moment(unit: Any, zone: str | None) -> None:
    index = pd.DatetimeIndex(VALUES.index).as_unit(unit)
    same = VALUES.set_axis(index.tz_localize(None) if zone is None else index.tz_convert(zone))
    np.testing.assert_array_equal(joined(BARS.time, same, lag="1d")["alt"], joined(BARS.time, VALUES, lag="1d")["alt"])


def test_numbers_of_any_type_are_taken() -> None:
    expected = joined(BARS.time, VALUES, lag="0s")["alt"]
    for dtype in ("int64", "Int64", "float32", "Float64"):
        np.testing.assert_array_equal(joined(BARS.time, VALUES.astype(dtype), lag="0s")["alt"], expected)
    gap = VALUES.astype("Int64").mask(VALUES == 4)
    assert joined(BARS.time, gap, lag="0s")["alt"][4] == 3.0


def test_a_frame_makes_a_column_of_each_of_its_own() -> None:
    frame = pd.DataFrame({"Put Call": VALUES, "vix": VALUES.where(VALUES != 5) * 2})
    bars = BARS.join(frame, lag="0s")
    assert list(bars.extra) == ["put_call", "vix"]
    assert bars["put_call"].tolist() == list(range(10))
    assert bars["vix"].tolist() == [0, 2, 4, 6, 8, 8, 12, 14, 16, 18]


def test_a_name_is_normal_and_may_be_given() -> None:
    assert list(BARS.join(VALUES.rename("Fear & Greed"), lag="0s").extra) == ["fear_&_greed"]
    assert list(BARS.join(VALUES, lag="0s", name="My VIX").extra) == ["my_vix"]
    assert list(BARS.join(VALUES.rename(None), lag="0s", name="x").extra) == ["x"]


@pytest.mark.parametrize(
    ("series", "options", "message"),
    [
        ([1.0], {}, "expected a pandas Series or DataFrame by time, not list"),
        (VALUES[:0], {}, "the series is empty"),
        (VALUES.to_frame()[[]], {}, "the series is empty"),
        (VALUES.rename(None), {}, r"has no name: give it one with name='...'"),
        (VALUES.rename("Close"), {}, "already a column 'close': choose another with name="),
        (VALUES.rename("time"), {}, "already a column 'time'"),
        (VALUES, {"name": "volume"}, "already a column 'volume'"),
        (pd.DataFrame({"a b": VALUES, "A  B": VALUES}), {}, r"already a column 'a_b': choose another with df.rename"),
        (VALUES.to_frame(), {"name": "x"}, "name='x' is for a Series"),
        (VALUES[::-1], {}, r"1970-01-09 comes after 1970-01-10. Sort it with series.sort_index"),
        (pd.concat([VALUES, VALUES[-1:]]), {}, r"1970-01-10 twice \(1 duplicates\): keep one .*keep='last'"),
        (VALUES.set_axis(VALUES.index.strftime("%Y-%m-%d")), {}, "not times: convert it with .*to_datetime"),  # type: ignore[attr-defined]  # it has strftime
        (VALUES.reset_index(drop=True), {}, "index is of type int64, not times"),
        (VALUES.tz_localize(None).to_period("D"), {}, r"periods with series.to_timestamp"),
        (VALUES.set_axis([pd.NaT, *VALUES.index[1:]]), {}, "no time in row 0: drop such rows"),
        (VALUES.astype("object").mask(VALUES == 2, "."), {}, r"not numeric \('.' at 1970-01-03\): .*to_numeric"),
        (VALUES.astype("str"), {}, r"not numeric \('0.0' at 1970-01-01\)"),
        (VALUES.astype("complex"), {}, "not numeric"),
        (VALUES.replace(2.0, np.inf), {}, "'alt' is infinite at 1970-01-03: drop such values"),
    ],
)
def test_a_series_that_cannot_be_joined_is_refused_with_the_cure(
    series: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        BARS.join(series, lag="1d", **options)


def test_a_time_beyond_what_nanoseconds_hold_is_refused() -> None:
    ancient = VALUES.set_axis([pd.Timestamp("1600-01-01", tz="UTC"), *VALUES.index[1:]])
    with pytest.raises(BarsError, match="between 1678 and 2262"):
        BARS.join(ancient, lag="1d")


def test_joining_twice_under_one_name_is_refused() -> None:
    once = BARS.join(VALUES, lag="1d")
    with pytest.raises(BarsError, match="already a column 'alt'"):
        once.join(VALUES, lag="2d")
    assert list(once.join(VALUES, lag="2d", name="alt_late").extra) == ["alt", "alt_late"]


def test_a_series_without_overlap_leaves_nothing() -> None:
    assert np.isnan(BARS.join(VALUES.shift(freq="36500D"), lag="0s")["alt"]).all()


def test_joined_bars_are_sliced_and_sent_like_any() -> None:
    bars = BARS.join(VALUES, lag="1d").with_symbol("A")
    again = Bars.from_bytes(bars.to_bytes())
    column: Floats = again[2:]["alt"]
    assert (again, again.symbol, column.tolist()) == (bars, "A", [1.0, 2, 3, 4, 5, 6, 7, 8])
