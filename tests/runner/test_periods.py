from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import runner
from runner.columns import Times
from runner.periods import periods_per_year


def stamps(index: pd.DatetimeIndex) -> Times:
    return np.asarray(index.tz_localize("UTC").as_unit("ns").asi8 if index.tz is None else index.as_unit("ns").asi8)


def business_days(zone: str) -> pd.DatetimeIndex:
    return pd.bdate_range("2019-01-01", "2021-01-01", tz=zone)


def sessions(minutes: int, zone: str, opens: str, bars: int) -> pd.DatetimeIndex:
    hours = [
        day + pd.Timedelta(opens) + pd.Timedelta(minutes=minutes * i)
        for day in business_days(zone)
        for i in range(bars)
    ]
    return pd.DatetimeIndex(hours)


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (pd.bdate_range("2019-01-01", "2021-01-01"), 252),
        (business_days("America/New_York"), 252),
        (business_days("Asia/Tokyo"), 252),  # opens on Sunday in UTC
        (business_days("Asia/Riyadh"), 252),
        (pd.date_range("2019-01-01", "2021-01-01"), 365),
        (pd.date_range("2019-01-01", "2021-01-01").delete([40, 41, 300]), 365),
        (pd.date_range("2019-01-01", "2021-01-01", freq="W"), 52),
        (pd.date_range("2019-01-01", "2021-01-01", freq="MS"), 12),
        (pd.date_range("2010-01-01", "2021-01-01", freq="QS"), 4),
        (pd.date_range("2000-01-01", "2021-01-01", freq="YS"), 1),
        (pd.date_range("2020-01-01", "2020-03-01", freq="h"), 24 * 365),
        (pd.date_range("2020-01-01", "2020-03-01", freq="12h"), 2 * 365),
        (pd.date_range("2020-01-01", "2020-01-10", freq="min"), 1440 * 365),
        (sessions(60, "America/New_York", "9h30min", 7), 7 * 252),
        (sessions(5, "Asia/Tokyo", "9h", 60), 60 * 252),
        (sessions(60, "Australia/Sydney", "10h", 6), 6 * 252),  # crosses midnight UTC in summer
        (pd.date_range("2020-01-01", periods=1), 252),
        (pd.date_range("2020-01-06", periods=5), 252),  # Monday to Friday
        (pd.date_range("2020-01-01", "2021-01-01", freq="10D"), 36.525),
    ],
)
def test_periods_per_year_are_read_off_the_times(index: pd.DatetimeIndex, expected: float) -> None:
    assert periods_per_year(stamps(index)) == pytest.approx(expected)


@pytest.mark.parametrize("name", ["SP500", "AAPL", "GOOG", "IBM"])
def test_the_sample_data_is_daily(name: str) -> None:
    assert runner.sample_data(name).periods_per_year == 252
