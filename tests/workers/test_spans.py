from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.sources.protocol import Unit
from workers.spans import SECOND_NS, spans

UNITS: list[Unit] = ["day", "month", "year", "decade"]
MOMENTS = st.datetimes(datetime(1800, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - hypothesis wants them naive


def ns(year: int, month: int, day: int) -> int:
    return int(datetime(year, month, day, tzinfo=UTC).timestamp()) * SECOND_NS


@pytest.mark.parametrize(
    ("unit", "names"),
    [
        ("day", ["2019-12-31", "2020-01-01"]),
        ("month", ["2019-12", "2020-01"]),
        ("year", ["2019", "2020"]),
        ("decade", ["2010s", "2020s"]),
        ("all", ["all"]),
    ],
)
def test_a_range_over_new_year_takes_the_pieces_on_both_sides(unit: Unit, names: list[str]) -> None:
    assert [span.name for span in spans(unit, ns(2019, 12, 31), ns(2020, 1, 2))] == names


def test_a_range_that_ends_on_a_border_does_not_take_the_next_piece() -> None:
    assert [span.name for span in spans("year", ns(2019, 1, 1), ns(2020, 1, 1))] == ["2019"]


@given(unit=st.sampled_from(UNITS), moments=st.lists(MOMENTS, min_size=2, max_size=2, unique=True))
def test_pieces_cover_the_range_without_gap_or_overlap(unit: Unit, moments: list[datetime]) -> None:
    start, end = sorted(int(moment.timestamp()) * SECOND_NS for moment in moments)
    end = min(end, start + 400 * 86_400 * SECOND_NS)  # days of centuries are many
    if start == end:
        return
    pieces = list(spans(unit, start, end))
    assert pieces[0].start_ns <= start < pieces[0].end_ns
    assert pieces[-1].start_ns < end <= pieces[-1].end_ns
    assert all(one.end_ns == other.start_ns for one, other in pairwise(pieces))
    assert len({piece.name for piece in pieces}) == len(pieces)


@given(unit=st.sampled_from(UNITS), moment=MOMENTS, shift=st.integers(0, 40 * 86_400))
def test_overlapping_ranges_share_their_pieces(unit: Unit, moment: datetime, shift: int) -> None:
    start = int(moment.timestamp()) * SECOND_NS
    end = start + 50 * 86_400 * SECOND_NS
    one = set(spans(unit, start, end))
    other = set(spans(unit, start + shift * SECOND_NS, end))
    assert other <= one
