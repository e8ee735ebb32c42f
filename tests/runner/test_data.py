from __future__ import annotations

from importlib import resources

import numpy as np
import pytest

import runner
from runner.bars import SAMPLES
from runner.errors import BarsError, InputError
from runner.samples import SERIES


@pytest.mark.parametrize(
    ("name", "bars", "first", "last"),
    [
        ("SP500", 5031, ("1999-01-04", 1228.099976), ("2018-12-31", 2506.850098)),
        ("AAPL", 3270, ("2000-03-01", 130.31), ("2013-03-01", 430.47)),
        ("GOOG", 2148, ("2004-08-19", 100.335), ("2013-03-01", 806.19)),
        ("IBM", 3270, ("2000-03-01", 100.25), ("2013-03-01", 202.91)),
    ],
)
def test_sample_data_is_what_its_readme_says(
    name: str, bars: int, first: tuple[str, float], last: tuple[str, float]
) -> None:
    data = runner.sample_data(name)
    dates = np.datetime_as_string(data.time.view("datetime64[ns]"), unit="D")
    assert (len(data), data.symbol, list(data.extra)) == (bars, name, ["adj_close"])
    assert (dates[0], data.close[0]) == first
    assert (dates[-1], data.close[-1]) == last
    assert data.volume is not None
    readme = (resources.files("runner.data") / "README.md").read_text()
    assert f"| {first[0]} | {last[0]} | {bars} |" in readme


def test_the_adjusted_close_ends_at_or_near_the_close_and_removes_splits() -> None:
    apple = runner.sample_data("AAPL")
    returns = apple["adj_close"][1:] / apple["adj_close"][:-1] - 1
    raw = apple.close[1:] / apple.close[:-1] - 1
    splits = np.abs(raw - returns) > 0.3
    assert splits.sum() == 2  # 2000-06-21 and 2005-02-28


def test_a_name_is_found_in_any_case_and_a_wrong_one_gets_a_hint() -> None:
    assert runner.sample_data("goog") == runner.sample_data("GOOG")
    with pytest.raises(BarsError, match="no sample data 'SPY500': did you mean 'SP500'"):
        runner.sample_data("SPY500")
    with pytest.raises(BarsError, match="There is AAPL, GOOG, IBM, SP500"):
        runner.sample_data(3)  # type: ignore[arg-type]  # the point of the test


def test_a_sample_series_is_what_its_readme_says() -> None:
    vix = runner.sample_series("vix")
    assert (vix.name, str(vix.dtype), str(vix.index.dtype)) == ("VIX", "float64", "datetime64[ns, UTC]")
    assert (len(vix), int(vix.isna().sum())) == (1305, 46)
    assert (str(vix.index[0].date()), vix.iloc[0]) == ("2014-01-03", 13.76)
    assert (str(vix.index[-1].date()), vix.iloc[-1]) == ("2019-01-03", 25.45)
    assert (vix.min(), vix.max()) == (9.14, 40.74)
    readme = (resources.files("runner.data") / "README.md").read_text()
    assert "| 2014-01-03 | 2019-01-03 | 1305 |" in readme
    assert "46 of its rows" in readme


def test_a_wrong_series_name_gets_a_hint() -> None:
    with pytest.raises(InputError, match="no sample series 'VIXX': did you mean 'VIX'"):
        runner.sample_series("VIXX")
    with pytest.raises(InputError, match="There is VIX"):
        runner.sample_series(3)  # type: ignore[arg-type]  # the point of the test


def test_the_package_stays_small() -> None:
    sizes = [len(resources.files("runner.data").joinpath(f"{name}.parquet").read_bytes()) for name in SAMPLES + SERIES]
    assert max(sizes) < 200_000
