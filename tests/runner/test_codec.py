from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runner import codec, sample_data
from runner.bars import SAMPLES
from runner.errors import BarsError

DAY = 86_400 * 10**9
BITS = arrays.arrays(np.int64, st.integers(0, 40), elements=st.integers(-(2**63), 2**63 - 1))


def round_trip(time: Any, named: Mapping[str, Any]) -> bytes:
    """Pack, unpack and compare every bit; returns the bytes."""
    payload = codec.pack(time, named, {})
    back, columns, _ = codec.unpack(payload)
    assert back.tobytes() == time.tobytes()
    assert back.dtype == np.int64
    assert list(columns) == list(named)
    for name, column in named.items():
        assert columns[name].dtype == np.float64
        assert columns[name].tobytes() == column.tobytes(), name
    return payload


def altered(payload: bytes, **changes: Any) -> bytes:
    """The same bytes under a header that promises something else."""
    _, length = codec.PREFIX.unpack_from(payload)
    header = json.loads(payload[codec.PREFIX.size : codec.PREFIX.size + length])
    for key, value in changes.items():
        target = header if key in header else header["columns"][1]
        target[key] = value
    written = json.dumps(header).encode()
    return codec.PREFIX.pack(codec.MAGIC, len(written)) + written + payload[codec.PREFIX.size + length :]


def prices(n: int, places: int) -> dict[str, Any]:
    rng = np.random.default_rng(places)
    close = 10**places * 50 + np.cumsum(rng.integers(-9, 10, n))
    opened = np.concatenate((close[:1], close[:-1]))
    whole = {
        "open": opened,
        "high": np.maximum(opened, close) + 3,
        "low": np.minimum(opened, close) - 2,
        "close": close,
    }
    return {name: column / 10**places for name, column in whole.items()}


@given(bits=BITS, time=st.data())
def test_any_bits_come_back_as_they_were(bits: Any, time: st.DataObject) -> None:
    stamps = time.draw(arrays.arrays(np.int64, len(bits), elements=st.integers(-(2**63), 2**63 - 1)))
    round_trip(stamps, {"close": bits.view(np.float64), "a": bits.view(np.float64)[::-1].copy()})


@given(
    floats=arrays.arrays(np.float64, st.tuples(st.just(5), st.integers(1, 30)), elements=st.floats(width=64)),
    places=st.integers(0, 9),
)
def test_any_prices_come_back_as_they_were_whether_decimals_or_not(floats: Any, places: int) -> None:
    with np.errstate(all="ignore"):
        decimals = np.round(floats, places)
    names = ("open", "high", "low", "close", "volume")
    time = np.arange(floats.shape[1]) * DAY
    round_trip(time, dict(zip(names, decimals, strict=True)))
    round_trip(time, dict(zip(names, [*decimals[:2], *floats[2:]], strict=True)))


@given(places=st.lists(st.integers(0, 8), min_size=4, max_size=4), n=st.integers(1, 50))
@settings(max_examples=30)
def test_prices_of_different_places_come_back(places: list[int], n: int) -> None:
    names = ("open", "high", "low", "close")
    round_trip(np.arange(n) * DAY, {name: prices(n, own)[name] for name, own in zip(names, places, strict=True)})


@pytest.mark.parametrize(
    "odd",
    [
        [-0.0, 1.5],
        [np.nan, 1.5],
        [np.inf, -np.inf],
        [5e-324, 1.0],
        [2.0**53, 2.0**53 + 2],
        [1.7e308, -1.7e308],
        [0.1, 1 / 3],
    ],
)
def test_odd_floats_come_back(odd: list[float]) -> None:
    round_trip(np.arange(2), {"close": np.array(odd), "a": np.array(odd[::-1])})


def test_the_bits_of_a_nan_come_back() -> None:
    payload_of_its_own = np.array([0x7FF8_0000_DEAD_BEEF, 0xFFF8_0000_0000_0001], np.uint64).view(np.float64)
    round_trip(np.arange(2), {"a": payload_of_its_own})


def test_decimals_that_stop_being_so_after_the_sample_come_back() -> None:
    column = np.ones(5000)
    column[4000] = 1 / 3
    later = np.ones(5000)
    later[4000] = 1.12345
    round_trip(np.arange(5000), {"a": column, "b": later, "close": later})


@pytest.mark.parametrize("n", [0, 1, 2])
def test_few_rows_come_back(n: int) -> None:
    round_trip(np.arange(n), {"close": np.full(n, 1.5), "open": np.full(n, 1.25), "a": np.full(n, np.pi)})
    round_trip(np.arange(n), {})


def test_every_column_of_real_prices_comes_back_and_is_smaller() -> None:
    for name in SAMPLES:
        bars = sample_data(name)
        named = {"close": bars.close, "open": bars.open, "high": bars.high, "low": bars.low}
        assert len(round_trip(bars.time, named)) < 5 * bars.time.nbytes / 3


def test_minute_prices_of_two_places_take_less_than_a_sixth() -> None:
    n = 43_200
    assert len(round_trip(np.arange(n) * 60 * 10**9, prices(n, 2))) < 5 * 8 * n / 6


def test_stamps_at_a_regular_distance_cost_next_to_nothing() -> None:
    assert len(codec.pack(np.arange(10_000) * DAY, {}, {})) < 400


def test_what_comes_back_is_read_only_and_notes_are_kept() -> None:
    time, named, notes = codec.unpack(codec.pack(np.arange(3), {"a": np.ones(3), "b": np.full(3, np.pi)}, {"Ä": "ö"}))
    assert not any(column.flags.writeable for column in (time, *named.values()))
    assert notes == {"Ä": "ö"}


def test_the_same_columns_are_the_same_bytes() -> None:
    assert codec.pack(np.arange(3), {"a": np.ones(3)}, {}) == codec.pack(np.arange(3), {"a": np.ones(3)}, {})


@pytest.mark.parametrize(
    ("time", "column"),
    [
        (np.arange(3), np.ones(2)),
        (np.arange(3), np.arange(3)),
        (np.ones(3), np.ones(3)),
        (np.arange(4), np.ones((2, 2))),
    ],
)
def test_columns_of_another_type_or_length_are_refused(time: Any, column: Any) -> None:
    with pytest.raises(BarsError, match=r"expected (int64|float64)\[\d\]"):
        codec.pack(time, {"a": column}, {})


@pytest.mark.parametrize("payload", [b"", b"not columns at all", codec.PREFIX.pack(codec.MAGIC, 2**32 - 1)])
def test_other_bytes_are_refused(payload: bytes) -> None:
    with pytest.raises(BarsError, match=r"expected what Bars.to_bytes\(\) returned"):
        codec.unpack(payload)


def test_bytes_cut_off_anywhere_are_refused() -> None:
    payload = codec.pack(np.arange(9), {"close": np.arange(9) / 4}, {})
    for length in range(len(payload)):
        with pytest.raises(BarsError):
            codec.unpack(payload[:length])


@pytest.mark.parametrize(
    "changes",
    [
        {"rows": 2**40},
        {"rows": 10**6},
        {"rows": 2**28},
        {"rows": -1},
        {"rows": "9"},
        {"rows": 10},
        {"columns": []},
        {"names": []},
        {"notes": 5},
        {"width": 0},
        {"width": 9},
        {"width": 2},
        {"size": -1},
        {"size": 10**9},
        {"first": 2**70},
        {"guessed": True, "names": ["open"]},
    ],
)
def test_a_header_that_promises_what_is_not_there_is_refused(changes: dict[str, Any]) -> None:
    payload = codec.pack(np.arange(9), {"close": np.arange(9) / 4}, {})
    with pytest.raises(BarsError):
        codec.unpack(altered(payload, **changes))


@given(at=st.integers(0, 10**6), value=st.integers(1, 255))
def test_a_flipped_byte_never_raises_anything_but_a_bars_error(at: int, value: int) -> None:
    payload = bytearray(codec.pack(np.arange(9) ** 2, {**prices(9, 2), "a": np.arange(9) / 7}, {"symbol": "A"}))
    payload[at % len(payload)] ^= value
    with suppress(BarsError):
        codec.unpack(bytes(payload))
