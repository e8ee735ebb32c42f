"""Real alternative data that comes with the package; the real prices are `runner.sample_data`."""

from __future__ import annotations

from difflib import get_close_matches
from importlib import resources
from typing import TYPE_CHECKING, Any

from runner import frames
from runner.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

SERIES = ("VIX",)


def sample_series(name: str) -> pd.Series[Any]:
    """A series to `Bars.join`: "VIX", its daily close from 2014 to 2018 (see runner/data/README.md).

    Returns:
        float64 by time in UTC, each value at 00:00 of its own date; NaN on the days without one.
    """
    import pandas as pd

    known = name.upper() if isinstance(name, str) else ""
    if known not in SERIES:
        close = get_close_matches(known, SERIES, n=1)
        hint = f": did you mean {close[0]!r}?" if close else ""
        raise InputError(f"no sample series {name!r}{hint}. There is {', '.join(SERIES)}.")
    frame = frames.read_parquet(resources.files("runner.data").joinpath(f"{known}.parquet").read_bytes())
    series = frame.set_index("time")["value"].rename(known)
    return series.set_axis(pd.DatetimeIndex(series.index).as_unit("ns"))
