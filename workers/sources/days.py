"""Calendar days of providers that count in days, and the trading dates of exchanges."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

import numpy as np

from runner.errors import BadAnswer
from workers.sources.parse import SECOND_NS, Times, quoted
from workers.sources.protocol import Ask

if TYPE_CHECKING:
    import pandas as pd

DAY = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def first_and_last(ask: Ask) -> tuple[date, date]:
    """The days, both inclusive, of the span's part that is not in the future; in the wrong order when none is."""
    return _day(ask.start_ns), _day(min(ask.end_ns, ask.now_ns) - 1)


def midnights(days: Sequence[object], label: str) -> Times:
    """int64[n] nanoseconds of midnight UTC of days written as 2020-01-31, whatever follows after them.

    Raises:
        BadAnswer: one of them is no day.
    """
    texts = [day[:10] if isinstance(day, str) else "" for day in days]
    if all(map(DAY.fullmatch, texts)):
        with suppress(ValueError):  # a 31st of February
            stamps: Times = np.array(texts, dtype="datetime64[D]").astype("datetime64[ns]").view(np.int64)
            return stamps
    raise BadAnswer(f"{label}: expected days such as 2020-01-31, got {quoted(list(days)[-3:])}.")


def trading_dates(times: pd.DatetimeIndex) -> Times:
    """Midnight UTC of the date that a clock in the index's own time zone showed."""
    days = times.tz_localize(None).normalize().as_unit("ns")
    return np.asarray(days.asi8, dtype=np.int64)


def _day(stamp_ns: int) -> date:
    return datetime.fromtimestamp(stamp_ns // SECOND_NS, UTC).date()
