from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import runner
from runner import arguments
from runner.errors import BarsError, InputError, SpaceError


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("n=5:8", [5, 6, 7]),
        ("n=20:27:3", [20, 23, 26]),
        ("n=3:0:-1", [3, 2, 1]),
        ("k=0.1:0.4:0.1", [0.1, 0.2, 0.3]),
        ("k=0.5:2:0.5", [0.5, 1.0, 1.5]),
        ("n=5,10,20", [5, 10, 20]),
        ("k=1.5,2,-1e-3", [1.5, 2, -0.001]),
        ("mode=long,short", ["long", "short"]),
        ("flag=true,False,none", [True, False, None]),
        ("n=7", [7]),
    ],
)
def test_an_axis_is_a_range_as_in_python_or_a_list(text: str, values: list[Any]) -> None:
    (axis,) = arguments.axes([text]).values()
    assert list(axis) == values
    assert [type(value) for value in axis] == [type(value) for value in values]


@pytest.mark.parametrize(
    "text",
    [
        "n",
        "n=",
        "=1:2",
        "1n=1:2",
        "n=5:5",
        "n=5:1",
        "n=1:2:0",
        "n=1:2:3:4",
        "n=a:b",
        "n=1:nan",
        "n=1:inf",
        "n=0:1:1e-9",
    ],
)
def test_what_is_no_axis_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(SpaceError, match="expected"):
        arguments.axes([text])


def test_an_axis_given_twice_is_refused() -> None:
    with pytest.raises(SpaceError, match="fast is given twice"):
        arguments.axes(["fast=1:3", "slow=1:3", "fast=5"])


CONDITIONS = [
    ("fast < slow", lambda p: p["fast"] < p["slow"]),
    ("2 < fast <= slow - 1", lambda p: 2 < p["fast"] <= p["slow"] - 1),
    ("fast * 2 < slow and not slow % 4 == 0", lambda p: p["fast"] * 2 < p["slow"] and p["slow"] % 4 != 0),
    (
        "fast == 3 or slow // 2 > 3 or fast / slow >= 0.9",
        lambda p: p["fast"] == 3 or p["slow"] // 2 > 3 or p["fast"] / p["slow"] >= 0.9,
    ),
    ("fast != -3 + 7", lambda p: p["fast"] != 4),
]


@pytest.mark.parametrize(("text", "python"), CONDITIONS)
def test_a_condition_means_what_it_means_in_python(text: str, python: Any) -> None:
    condition = arguments.condition(text, ["fast", "slow"])
    points = [{"fast": fast, "slow": slow} for fast in range(1, 9) for slow in range(1, 9)]
    expected = [bool(python(point)) for point in points]
    assert [bool(condition(point)) for point in points] == expected
    columns: Mapping[str, Any] = {name: np.array([point[name] for point in points]) for name in ("fast", "slow")}
    assert condition(columns).tolist() == expected


def test_a_condition_can_compare_words() -> None:
    assert arguments.condition("mode == 'long'", ["mode"])({"mode": "long"})


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('true')",
        "fast.real < 3",
        "fast[0] < 3",
        "(lambda: 1)() < fast",
        "[fast] == 1",
        "fast ** 99999999 > 1",
        "fast < slowly",
        "fast <",
        "fast is slow",
        "x := 3",
        "b'x' == fast",
        "f'{fast}' == '1'",
        "\0",
    ],
)
def test_anything_but_comparisons_of_axes_is_refused(text: str) -> None:
    with pytest.raises(SpaceError):
        arguments.condition(text, ["fast", "slow"])


def test_a_condition_makes_the_grid_that_python_makes() -> None:
    axes = arguments.axes(["fast=5:60", "slow=20:240:2"])
    typed = runner.grid(where=arguments.condition("fast < slow", list(axes)), **axes)
    written = runner.grid(fast=range(5, 60), slow=range(20, 240, 2), where=lambda p: p.fast < p.slow)
    assert typed.digest == written.digest


def test_a_bare_strategy_name_is_one_of_ours() -> None:
    assert arguments.strategy_path("sma_cross") == "runner.strategies:sma_cross"
    assert arguments.strategy_path("mine:cross") == "mine:cross"


@pytest.mark.parametrize("kind", [".parquet", ".csv", ".csv.gz"])
def test_prices_survive_a_file(tmp_path: Path, kind: str) -> None:
    bars = runner.sample_data("IBM")
    file = tmp_path / f"ibm{kind}"
    bars.to_frame().to_parquet(file) if kind == ".parquet" else bars.to_frame().to_csv(file)
    read = arguments.prices(str(file))
    assert isinstance(read, runner.Bars)
    assert read == bars
    assert read.symbol == "ibm"


def test_a_symbol_column_makes_many_symbols(tmp_path: Path) -> None:
    import pandas as pd

    frames = [runner.sample_data(name).to_frame().assign(symbol=name) for name in ("IBM", "GOOG")]
    pd.concat(frames).to_parquet(tmp_path / "two.parquet")
    read = arguments.prices(str(tmp_path / "two.parquet"))
    assert isinstance(read, dict)
    assert {name: bars == runner.sample_data(name) for name, bars in read.items()} == {"IBM": True, "GOOG": True}


def test_a_bare_word_is_a_sample(tmp_path: Path) -> None:
    sample = arguments.prices("SP500")
    assert isinstance(sample, runner.Bars)
    assert sample == runner.sample_data("SP500")


@pytest.mark.parametrize("name", ["missing.parquet", "missing.csv", "notes.txt", "SP5OO"])
def test_prices_that_are_not_there_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("buy low")
    with pytest.raises(InputError):
        arguments.prices(name)


def test_a_file_that_is_no_parquet_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "fake.parquet").write_text("no")
    with pytest.raises(BarsError, match=r"fake\.parquet cannot be read"):
        arguments.prices(str(tmp_path / "fake.parquet"))


@pytest.mark.parametrize("name", ["out.xlsx", "out", "nowhere/out.parquet"])
def test_a_table_that_cannot_be_written_is_refused_before_anything_runs(name: str) -> None:
    with pytest.raises(InputError, match=r"ends in \.parquet or \.csv|does not exist"):
        arguments.output(name)


# Sources


def test_options_of_a_source_are_names_and_plain_values() -> None:
    found = arguments.options(["feed=iex", "n=3", "private=true", "base_url=http://a/b?c=d"])
    assert found == {"feed": "iex", "n": 3, "private": True, "base_url": "http://a/b?c=d"}


@pytest.mark.parametrize("texts", [["feed"], ["=iex"], ["a b=c"], ["feed=a", "feed=b"]])
def test_an_option_that_is_none_is_said(texts: list[str]) -> None:
    with pytest.raises(InputError, match="NAME=VALUE"):
        arguments.options(texts)


@pytest.mark.parametrize("name", ["prices.parquet", "prices.csv"])
def test_what_is_written_can_be_read_again(tmp_path: Path, name: str) -> None:
    bars = {symbol: runner.sample_data(symbol)[:50] for symbol in ("AAPL", "IBM")}
    arguments.write(bars, tmp_path / name)
    assert arguments.prices(str(tmp_path / name)) == bars


def test_a_series_is_written_with_its_symbol(tmp_path: Path) -> None:
    series = runner.sample_series("VIX").dropna()
    arguments.write({"VIX": series}, tmp_path / "vix.parquet")
    table = pd.read_parquet(tmp_path / "vix.parquet")
    assert table["value"].to_list() == series.to_list()
    assert set(table["symbol"]) == {"VIX"}
