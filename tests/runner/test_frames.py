from __future__ import annotations

import decimal
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.bars import Bars
from runner.errors import BarsError
from tests.runner.prices import DAY_NS, ohlcv

JAN_1 = 18262 * DAY_NS


def by_column(name: str = "Date", change: Callable[[Any], Any] = lambda dates: dates) -> pd.DataFrame:
    df = ohlcv().reset_index(names=name)
    return df.assign(**{name: change(df[name])})


def wide(*, swap: bool = False) -> pd.DataFrame:
    """What yf.download returns for two symbols, of which OPEN is listed a day later and traded when A was not."""
    later = ohlcv(4, index=pd.date_range("2020-01-02", periods=4))
    df = pd.concat({"A": ohlcv(), "OPEN": later}, axis=1, names=["Ticker", "Price"])
    return df.swaplevel(axis=1).sort_index(axis=1) if swap else df


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC"])
def test_times_of_every_resolution_are_nanoseconds_and_naive_ones_utc(unit: Any, zone: str | None) -> None:
    index = pd.date_range("2020-01-01", periods=4, unit=unit, tz=zone)
    assert Bars.from_frame(ohlcv(index=index)).time.tolist() == [JAN_1 + i * DAY_NS for i in range(4)]


def test_local_midnight_is_an_instant_and_daylight_saving_moves_it() -> None:
    index = pd.date_range("2020-03-07", periods=3, tz="America/New_York")
    bars = Bars.from_frame(ohlcv(3, index=index))
    assert bars.time.view("datetime64[ns]").astype("datetime64[h]").astype(str).tolist() == [
        "2020-03-07T05",
        "2020-03-08T05",
        "2020-03-09T04",
    ]


@pytest.mark.parametrize("change", [str.upper, str.lower, str.title, lambda name: f" {name}"])
def test_columns_are_found_in_any_case(change: Callable[[str], str]) -> None:
    assert Bars.from_frame(ohlcv().rename(columns=change)) == Bars.from_frame(ohlcv())


@pytest.mark.parametrize(
    "df",
    [
        by_column("Date"),
        by_column("datetime"),
        by_column("Time"),
        by_column("TIMESTAMP"),
        by_column("Date", lambda dates: dates.dt.strftime("%Y-%m-%d")),
        by_column("Date", lambda dates: dates.dt.date),
        by_column("Date", lambda dates: dates.dt.tz_localize("UTC")),
        by_column("Date", lambda dates: dates.dt.strftime("%Y-%m-%dT05:00:00+05:00")),
        by_column("Date").set_index("Date"),
        by_column("Date", lambda dates: dates.dt.strftime("%Y-%m-%d")).set_index("Date"),
        ohlcv(index=[f"2020-01-0{day}" for day in range(1, 5)]),
        ohlcv(index=pd.period_range("2020-01-01", periods=4, freq="D")),
        ohlcv(Volume=pd.array([0, 10, 20, 30], dtype="Int64")),
        ohlcv(Close=pd.array([10.0, 11.0, 12.0, 13.0], dtype="float64[pyarrow]")),
        ohlcv(Close=np.array([10, 11, 12, 13], dtype=np.float32)),
    ],
)
def test_the_same_prices_are_the_same_bars_however_they_are_held(df: pd.DataFrame) -> None:
    assert Bars.from_frame(df) == Bars.from_frame(ohlcv())


def test_volume_is_optional_and_other_numeric_columns_are_kept() -> None:
    df = ohlcv(Flag=[True, False] * 2, vix=pd.array([1, None, 3, 4], dtype="Int64")).assign(**{"Adj Close": 1.5})
    bars = Bars.from_frame(df.drop(columns="Volume"))
    assert bars.volume is None
    assert list(bars.extra) == ["adj_close", "flag", "vix"]
    assert bars["flag"].tolist() == [1, 0, 1, 0]
    np.testing.assert_array_equal(bars["vix"], [1, np.nan, 3, 4])


def test_a_symbol_column_or_index_level_splits_a_frame() -> None:
    a, b = ohlcv(), ohlcv(3)
    frames = [
        pd.concat([a.assign(Symbol="A"), b.assign(Symbol="B")]),
        pd.concat([a.assign(ticker="A"), b.assign(ticker="B")]).sort_index(kind="stable"),
        pd.concat({"A": a, "B": b}),
        pd.concat({"A": a, "B": b}, names=["symbol", "date"]).swaplevel(),
        pd.concat({"A": a, "B": b}, names=["symbol", "date"]).reset_index(),
    ]
    for df in frames:
        parts = Bars.split_frame(df)
        assert parts == {"A": Bars.from_frame(a), "B": Bars.from_frame(b)}
        assert [part.symbol for part in parts.values()] == ["A", "B"]
    assert list(Bars.split_frame(frames[0].iloc[::-1].sort_index(kind="stable"))) == ["B", "A"]  # first come


@pytest.mark.parametrize("swap", [False, True])
def test_columns_of_two_levels_split_in_either_order_and_lose_only_rows_of_the_other_symbol(*, swap: bool) -> None:
    parts = Bars.split_frame(wide(swap=swap))
    assert parts["A"] == Bars.from_frame(ohlcv())
    assert parts["OPEN"] == Bars.from_frame(ohlcv(index=pd.date_range("2020-01-02", periods=4)))


def test_one_symbol_in_columns_of_two_levels_is_one_symbol() -> None:
    one = wide()[["A"]].dropna()
    assert Bars.from_frame(one).symbol == "A"
    assert Bars.from_frame(one.rename_axis("Date").reset_index()) == Bars.from_frame(one)
    with pytest.raises(BarsError, match=r"symbol 'A': .*not a finite number at 2020-01-05"):
        Bars.split_frame(wide()[["A"]])


@pytest.mark.parametrize(
    ("df", "message"),
    [
        (None, "expected a pandas DataFrame of prices, not NoneType"),
        (ohlcv().Close, "not Series"),
        (pd.DataFrame(), "the frame is empty"),
        (ohlcv(0), "the frame is empty"),
        (ohlcv(index=range(4)), "no times: expected a DatetimeIndex or a column date, .* of type int64"),
        (ohlcv(index=list("abcd")), r"'\(index\)' cannot be read as times"),
        (
            by_column(change=lambda dates: dates.dt.strftime("%d/%m/%Y")),
            r"'date' cannot be read as times .*ISO8601 format\)",
        ),
        (by_column(change=lambda dates: dates.astype("int64")), "times as numbers .*unit='ms'"),
        (by_column(change=lambda dates: dates.where(dates.index != 2)), "'date' has no time in row 2"),
        (ohlcv(index=pd.date_range("1500-01-01", periods=4, unit="s")), "Out of bounds"),
        (by_column().assign(Time=1), "has 'date' and 'time': keep the one"),
        (ohlcv(date=pd.date_range("2020-01-01", periods=4)), r"has '\(index\)' and 'date'"),
        (ohlcv().iloc[::-1], r"not in order: 2020-01-03 comes after 2020-01-04.*df.sort_index\(\)"),
        (ohlcv(index=pd.DatetimeIndex(["2020-01-01"] * 4)), "2020-01-01 occurs twice"),
        (ohlcv(Close=[1, np.nan, 3, 4]), "'close' is not a finite number at 2020-01-02"),
        (ohlcv().rename(columns={"Open": "Opn"}), r"missing: open.*rename\(columns={'Opn': 'open'}\)"),
        (ohlcv().rename(columns={"Close": "Adj Close"}), "missing: close.*{'Adj Close': 'close'}"),
        (ohlcv()[["Volume"]], "missing: open, high, low, close. The frame has"),
        (ohlcv(close=1.0), r"\['Close', 'close'\] are both 'close'"),
        (ohlcv(Close=["10", "11", "x", "13"]), "'close' is of type str, not numeric .'x' at 2020-01-03.*to_numeric"),
        (ohlcv(Close=[decimal.Decimal(10)] * 4), "'close' is of type object, not numeric .Decimal"),
        (ohlcv(Sector=list("abcd")), "'sector' is of type str, not numeric"),
        (ohlcv(when=pd.Timestamp("2020-01-01")), "'when' is of type datetime64"),
        (ohlcv(Close=[10j, 11, 12, 13]), "'close' is of type complex128"),
        (ohlcv(symbol=["A", None, "A", "A"]), "'symbol' has no symbol in row 1"),
        (ohlcv(symbol="A", ticker="A"), "has 'symbol' and 'ticker'"),
        (wide(), r"2 symbols \('A', 'OPEN'\)"),
        (pd.concat({"x": wide()}, axis=1), "columns have 3 levels"),
        (wide().drop(columns=[("A", "Close")]), "symbol 'A': columns are missing: close"),
    ],
)
def test_a_frame_that_cannot_be_used_is_refused_with_the_cure(df: Any, message: str) -> None:
    with pytest.raises(BarsError, match=message):
        Bars.from_frame(df)


def test_a_bad_symbol_is_named() -> None:
    df = pd.concat([ohlcv(symbol="A"), ohlcv(symbol="B", Close=-1.0)])
    with pytest.raises(BarsError, match="symbol 'B': column 'close' is not above 0"):
        Bars.split_frame(df)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 10_000_000), min_size=1, max_size=30, unique=True).map(sorted),
    st.sampled_from(["Asia/Tokyo", "America/New_York", "UTC", "Asia/Kathmandu"]),
)
def test_instants_are_kept_in_every_zone(minutes: list[int], zone: str) -> None:
    instants = pd.DatetimeIndex(
        np.array(minutes) * np.timedelta64(1, "m") + np.datetime64("2000-01-01", "ns"), tz="UTC"
    )
    bars = Bars.from_frame(ohlcv(len(minutes), index=instants.tz_convert(zone)))
    assert bars.time.tolist() == instants.as_unit("ns").asi8.tolist()
    assert bars.to_frame().index.equals(instants.as_unit("ns").rename("time"))


def test_the_frame_given_is_left_as_it_was() -> None:
    df = ohlcv(symbol="A")
    before = df.copy()
    Bars.from_frame(df)
    pd.testing.assert_frame_equal(df, before)
