from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pytest

import runner
from runner.bars import Bars, DataRef
from runner.errors import BarsError
from tests.runner.prices import DAY_NS, bars_of, ohlcv, random_bars

COLUMNS: dict[str, Any] = {
    "time": np.array([0, DAY_NS, 2 * DAY_NS]),
    "open": [1.0, 2.0, 3.0],
    "high": [2.0, 3.0, 4.0],
    "low": [0.5, 1.5, 2.5],
    "close": [1.5, 2.5, 3.5],
    "volume": [0.0, 10.0, 20.0],
}


def test_every_array_is_read_only_contiguous_and_of_its_type() -> None:
    bars = Bars(**COLUMNS, extra={"vix": [1, 2, 3]}, symbol="A")
    assert bars.time.dtype == np.int64
    for name in ("open", "high", "low", "close", "volume", "vix"):
        assert bars[name].dtype == np.float64
        assert bars[name].flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            bars[name][0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        bars.time[0] = 1


def test_bars_do_not_change_with_the_array_they_were_made_from() -> None:
    close = np.array([1.5, 2.5, 3.5])
    bars = Bars(**{**COLUMNS, "close": close})
    close[0] = 1.7
    assert bars.close[0] == 1.5


def test_attributes_cannot_be_set_or_deleted() -> None:
    bars = Bars(**COLUMNS)
    with pytest.raises(AttributeError, match="immutable"):
        bars.close = np.zeros(3)
    with pytest.raises(AttributeError, match="immutable"):
        del bars.close
    with pytest.raises(TypeError):
        bars.extra["vix"] = np.zeros(3)  # type: ignore[index]  # the point of the test


def test_a_column_is_found_by_name_and_an_unknown_one_gets_a_hint() -> None:
    bars = Bars(**COLUMNS, extra={"Adj Close": [1.0, 2.0, 3.0]})
    assert bars["close"] is bars.close
    assert bars["Adj Close"] is bars.extra["adj_close"]
    with pytest.raises(BarsError, match="no column 'clsoe': did you mean 'close'"):
        bars["clsoe"]
    with pytest.raises(BarsError, match="no column 3"):
        bars[3]  # type: ignore[call-overload]  # the point of the test


def test_a_slice_is_bars_of_those_positions() -> None:
    bars = Bars(**COLUMNS, extra={"vix": [1.0, 2.0, 3.0]}, symbol="A")
    part = bars[1:]
    assert (len(part), part.symbol) == (2, "A")
    assert part.time.tolist() == [DAY_NS, 2 * DAY_NS]
    assert part.volume is not None
    assert part.volume.tolist() == [10.0, 20.0]
    assert part.extra["vix"].tolist() == [2.0, 3.0]
    assert bars[:] == bars
    assert bars[-1:].close.tolist() == [3.5]


def test_a_slice_has_a_memo_of_its_own() -> None:
    bars = random_bars(50)
    bars.sma(3)
    assert np.isnan(bars[10:].sma(3)[:2]).all()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (slice(None, None, 2), "a step leaves bars out"),
        (slice(None, None, -1), "a step leaves bars out"),
        (slice("2010", "2015"), "expected positions"),
        (slice(2, 2), "there are no bars"),
    ],
)
def test_a_slice_that_makes_no_bars_is_refused(key: slice, message: str) -> None:
    with pytest.raises(BarsError, match=message):
        Bars(**COLUMNS)[key]


def test_the_digest_is_of_the_content_and_not_of_symbol_or_order() -> None:
    one, two = [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]
    bars = Bars(**COLUMNS, extra={"a": one, "b": two}, symbol="A")
    same = Bars(**COLUMNS, extra={"b": two, "a": one}, symbol="B")
    assert bars.digest == same.digest
    assert bars == same
    assert hash(bars) == hash(same)
    others = [
        Bars(**COLUMNS, extra={"a": two, "b": one}),
        Bars(**COLUMNS, extra={"a": one, "c": two}),
        Bars(**COLUMNS, extra={"a": one}),
        Bars(**{**COLUMNS, "volume": None}, extra={"volume_": COLUMNS["volume"]}),
        Bars(**{**COLUMNS, "volume": None}),
        Bars(**{**COLUMNS, "time": COLUMNS["time"] + 1}),
        Bars(**{**COLUMNS, "close": [1.5, 2.5, np.nextafter(3.5, 4)]}),
    ]
    assert len({bars.digest, *(other.digest for other in others)}) == 8
    assert bars != "bars"


def test_the_digest_of_given_bars_never_changes() -> None:
    # Frozen: workers of two versions share one cache by it.
    assert Bars(**COLUMNS).digest == "3d7cc42c521f330e9b70d1241e6b8aeac1e29ef7334ead2514fd029087f53c37"


def test_a_nan_has_one_digest_whatever_its_bits() -> None:
    odd = np.array([0x7FF8000000000001], dtype=np.uint64).view(np.float64)[0]
    plain = Bars(**COLUMNS, extra={"vix": [np.nan, 1.0, 2.0]})
    assert Bars(**COLUMNS, extra={"vix": [odd, 1.0, 2.0]}).digest == plain.digest


def test_bytes_round_trip_every_bit_and_the_symbol() -> None:
    bars = Bars(**COLUMNS, extra={"vix": [np.nan, np.inf, -0.0]}, symbol="Ä/B")
    again = Bars.from_bytes(bars.to_bytes())
    assert again == bars
    assert again.symbol == "Ä/B"
    assert again.extra["vix"].tobytes() == bars.extra["vix"].tobytes()
    without = Bars(**{**COLUMNS, "volume": None})
    assert Bars.from_bytes(without.to_bytes()).volume is None


def _read(payload: bytes) -> Bars | None:
    """What the bytes say, None when they are refused."""
    try:
        return Bars.from_bytes(payload)
    except BarsError:
        return None


def test_damaged_bytes_are_refused() -> None:
    bars = Bars(**COLUMNS, symbol="A")
    payload = bars.to_bytes()
    read = [_read(payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]) for at in range(len(payload))]
    assert {again for again in read if again is not None} == {
        bars
    }  # the blow fell on the symbol, no part of the content
    assert read.count(None) > 0.9 * len(payload)
    for junk in (b"", b"junk", payload[: len(payload) // 2]):
        with pytest.raises(BarsError, match="not bars"):
            Bars.from_bytes(junk)


def test_bars_survive_pickle_and_deepcopy() -> None:
    bars = bars_of([1.0, 2.0]).with_symbol("A")
    assert pickle.loads(pickle.dumps(bars)) == bars
    assert copy.deepcopy(bars).symbol == "A"


def test_with_symbol_renames_and_nothing_else() -> None:
    bars = Bars(**COLUMNS, extra={"vix": [1.0, 2.0, 3.0]})
    assert bars.with_symbol("A").symbol == "A"
    assert bars.with_symbol("A") == bars
    with pytest.raises(BarsError, match="expected a string"):
        bars.with_symbol(None)  # type: ignore[arg-type]  # the point of the test


def test_a_join_makes_new_bars_and_leaves_these() -> None:
    vix = pd.Series([7.0, 8.0], index=pd.to_datetime([0, DAY_NS], utc=True), name="VIX")
    bars = Bars(**COLUMNS, extra={"mood": [1.0, 2.0, 3.0]}, symbol="A")
    joined = bars.join(vix, lag="1d")
    assert (joined.symbol, list(joined.extra), list(bars.extra)) == ("A", ["mood", "vix"], ["mood"])
    np.testing.assert_array_equal(joined["vix"], [np.nan, 7.0, 8.0])
    assert joined != bars
    assert joined["mood"].tolist() == [1.0, 2.0, 3.0]
    assert joined.volume is not None
    assert Bars.from_frame(joined.to_frame()) == joined


def test_a_data_reference_survives_the_wire() -> None:
    ref = Bars(**COLUMNS, symbol="A").ref
    assert ref == DataRef("A", Bars(**COLUMNS).digest, 3)
    assert DataRef.from_wire(ref.to_wire()) == ref
    with pytest.raises(BarsError, match="different versions"):
        DataRef.from_wire({"symbol": "A"})


def test_repr_names_symbol_count_and_dates() -> None:
    assert repr(Bars(**COLUMNS, symbol="A")) == "Bars(A: 3 bars from 1970-01-01 to 1970-01-03)"
    hourly = {**COLUMNS, "time": COLUMNS["time"] // 24}
    assert repr(Bars(**hourly)) == "Bars(3 bars from 1970-01-01 to 1970-01-01T02:00:00)"


def test_html_is_a_table_with_what_a_user_wrote_escaped() -> None:
    html = Bars(**COLUMNS, extra={"<script>": [1.0, 2.0, 3.0]}, symbol="<b>")._repr_html_()
    assert "<script>" not in html
    assert "&lt;b&gt;" in html
    assert html.count("<tr>") == 4
    assert random_bars(100)._repr_html_().count("<tr>") == 7


def test_from_frame_takes_one_symbol_and_says_what_to_do_with_two() -> None:
    assert Bars.from_frame(ohlcv(symbol="A")).symbol == "A"
    assert Bars.from_frame(ohlcv(symbol="A"), symbol="B").symbol == "B"
    assert Bars.from_frame(ohlcv()).symbol == ""
    with pytest.raises(BarsError, match=r"2 symbols \('A', 'B'\).*split_frame"):
        Bars.from_frame(ohlcv(symbol=["A", "B", "A", "B"]))


def test_a_frame_comes_back_as_it_went_in() -> None:
    bars = runner.sample_data("GOOG")
    frame = bars.to_frame()
    assert Bars.from_frame(frame) == bars
    assert list(frame.columns) == ["open", "high", "low", "close", "volume", "adj_close"]
    assert str(frame.index.dtype) == "datetime64[ns, UTC]"
    assert frame.index.name == "time"
    frame.loc[frame.index[0], "close"] = 0.0
    assert bars.close[0] > 0
