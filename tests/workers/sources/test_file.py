from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import runner
from runner.errors import BadAnswer, NoData, SettingsError, SourceRefused, SymbolUnknown
from tests.workers.sources.asking import ask, dates, load, ns
from workers.sources import tables
from workers.sources.file import File
from workers.sources.protocol import Ask, Unchanged

HEADER = "Date,Open,High,Low,Close,Volume\n"
ROW = "2020-01-02,2,3,1,2.5,7\n"


def asked(path: Path | str, interval: str = "1d", etag: str = "", **options: str) -> Ask:
    return ask(str(path), "2000-01-01", "2030-01-01", interval, etag=etag, **options)


def written(folder: Path, text: str | bytes, name: str = "prices.csv") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet"])
def test_prices_are_those_of_the_file_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    bars = runner.sample_data("AAPL")
    path = tmp_path / f"AAPL.{kind}"
    frame = bars.to_frame()
    frame.to_parquet(path) if kind == "parquet" else frame.to_csv(path)
    table = load(File(), asked(path))
    assert table.time.tolist() == bars.time.tolist()
    for name in ("open", "high", "low", "close", "volume"):
        assert table.columns[name].tolist() == getattr(bars, name).tolist()
    assert set(table.columns) == {"open", "high", "low", "close", "volume"}


def test_digits_are_read_exactly(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "2020-01-02,0.1,1e22,0.1,8.409007672735193,1e23\n")
    table = load(File(), asked(path))
    assert [float(table.columns[name][0]) for name in ("close", "high", "volume")] == [8.409007672735193, 1e22, 1e23]


def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + ROW)
    version = load(File(), asked(path)).etag
    with pytest.raises(Unchanged):
        load(File(), asked(path, etag=version))
    written(tmp_path, HEADER + ROW + "2020-01-03,2,3,1,2.5,7\n")
    assert len(load(File(), asked(path, etag=version)).time) == 2


def test_splits_and_dividends_are_columns_and_empty_cells_mean_none(tmp_path: Path) -> None:
    text = "date,open,high,low,close,split,dividend,note\n2020-01-02,2,3,1,2,,0.5,a\n2020-01-03,1,3,1,2,2,,b\n"
    table = load(File(), asked(written(tmp_path, text)))
    assert table.columns["split"].tolist() == [1.0, 2.0]
    assert table.columns["dividend"].tolist() == [0.5, 0.0]
    assert "note" not in table.columns
    assert "volume" not in table.columns
    with pytest.raises(BadAnswer, match="column 'split' has values of 0"):
        load(File(), asked(written(tmp_path, "date,open,high,low,close,split\n2020-01-02,2,3,1,2,0\n")))


def test_disorder_duplicates_and_gaps_become_clean_rows(tmp_path: Path) -> None:
    rows = "2020-01-06,2,3,1,2,7\n2020-01-03,2,3,1,,7\n2020-01-02,2,3,1,1.5,7\n2020-01-02,2,3,1,2.5,7\n"
    table = load(File(), asked(written(tmp_path, HEADER + rows)))
    assert dates(table) == ["2020-01-02", "2020-01-06"]
    assert table.columns["close"].tolist() == [2.5, 2.0]


@pytest.mark.parametrize("stamp", ["2020-07-01 00:00:00-04:00", "2020-07-01T04:00:00Z", "2020-07-01 00:00:00+02:00"])
def test_days_are_the_dates_as_written(tmp_path: Path, stamp: str) -> None:
    assert dates(load(File(), asked(written(tmp_path, HEADER + ROW.replace("2020-01-02", stamp))))) == ["2020-07-01"]


def test_days_of_a_parquet_file_are_those_of_its_zone(tmp_path: Path) -> None:
    frame = runner.sample_data("AAPL").to_frame().tz_localize(None).tz_localize("Europe/Berlin")
    frame.to_parquet(tmp_path / "index.parquet")
    frame.reset_index().to_parquet(tmp_path / "column.parquet")
    for name in ("index", "column"):
        assert dates(load(File(), asked(tmp_path / f"{name}.parquet")))[0] == "2000-03-01"


def test_intraday_times_are_in_utc(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + ROW.replace("2020-01-02", "2020-01-02 09:30:00-05:00"))
    assert load(File(), asked(path, "1m")).time.tolist() == [ns("2020-01-02T14:30")]


def test_times_as_numbers_need_their_unit(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + ROW.replace("2020-01-02", "1577923200000"))
    assert dates(load(File(), asked(path, time_unit="ms"))) == ["2020-01-02"]
    with pytest.raises(BadAnswer, match="holds times as numbers"):
        load(File(), asked(path))
    with pytest.raises(SettingsError, match="option time_unit='hours': expected 's', 'ms', 'us', 'ns'"):
        load(File(), asked(path, time_unit="hours"))


def test_a_missing_file_is_named_and_where_it_should_be(tmp_path: Path) -> None:
    with pytest.raises(SymbolUnknown, match=r"file: /.*/none\.csv 1d 2000-01-01.*on the worker's machine"):
        load(File(), asked(tmp_path / "none.csv"))
    with pytest.raises(SymbolUnknown, match="that is a folder"):
        load(File(), asked(tmp_path))
    with pytest.raises(SymbolUnknown, match="that is no path"):
        load(File(), asked("a\0b"))


def test_only_files_that_are_named_as_prices_are_opened(tmp_path: Path) -> None:
    secret = written(tmp_path, "RUNNER_TIINGO_KEY=0123456789abcdef", "environ")
    (tmp_path / "link.csv").symlink_to(secret)
    for path in (secret, tmp_path / "link.csv", "/proc/self/environ"):
        with pytest.raises(SourceRefused, match=r"expected a file named \.csv, \.csv\.gz, \.parquet"):
            load(File(), asked(path))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(BadAnswer, match="no regular file"):
        load(File(), asked(tmp_path / "pipe.csv"))


def test_only_the_allowed_folder_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "data"
    inside.mkdir()
    outside = written(tmp_path, HEADER + ROW, "outside.csv")
    written(inside, HEADER + ROW, "inside.csv")
    (inside / "link.csv").symlink_to(outside)
    (inside / "kept.csv").symlink_to(inside / "inside.csv")
    monkeypatch.setenv("RUNNER_DATA_DIR", str(inside))
    for path in ("inside.csv", inside / "inside.csv", "kept.csv"):
        assert len(load(File(), asked(path)).time) == 1
    for path in (outside, "../outside.csv", "link.csv", "/etc/hostname", "../data2/x.csv", "~/x.csv/../../../x.csv"):
        with pytest.raises(SourceRefused, match="outside the folder of RUNNER_DATA_DIR"):
            load(File(), asked(path))


def test_no_row_in_the_range_is_no_data(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + ROW)
    with pytest.raises(NoData, match="file: "):
        load(File(), ask(str(path), "2021-01-01", "2022-01-01"))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "cannot be read"),
        (HEADER.encode(), "the frame is empty"),
        (b"<!doctype html><title>log in</title>", "expected CSV or Parquet"),
        (b'{"a": 1}', "expected CSV or Parquet"),
        (b"\x7fELF" + bytes(100), "expected CSV or Parquet"),
        (b"PAR1" + bytes(100), "cannot be read"),
        (b"\x1f\x8b" + bytes(100), "damaged"),
        (gzip.compress((HEADER + ROW).encode())[:-9], "damaged"),
        (b"date,price\n2020-01-02,1\n", "columns are missing: open, high, low, close"),
        (b"open,high,low,close\n1,1,1,1\n", "has no times"),
        ((HEADER + ROW.replace("2.5", "n/k")).encode(), "not numeric"),
        ((HEADER + ROW.replace("2020-01-02", "02.01.2020")).encode(), "cannot be read as times"),
        ((HEADER + ROW.replace("2.5", "3.5")).encode(), r"outside low\.\.high"),
        (b"date,symbol,open,high,low,close\n2020-01-02,A,1,1,1,1\n2020-01-02,B,1,1,1,1\n", "holds 2 symbols"),
    ],
)
def test_another_kind_of_file_is_told_what_is_wrong(tmp_path: Path, body: bytes, said: str) -> None:
    with pytest.raises(BadAnswer, match=f"^file: .*{said}"):
        load(File(), asked(written(tmp_path, body)))


def test_a_file_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars = runner.sample_data("AAPL").to_frame()
    bars.assign(**dict.fromkeys(bars.columns, 1.0)).to_parquet(tmp_path / "bomb.parquet")
    monkeypatch.setattr(tables, "MOST_BYTES", 100_000)
    written(tmp_path, gzip.compress(bytes(1_000_000)), "bomb.csv.gz")
    written(tmp_path, HEADER + ROW * 10_000, "large.csv")
    assert (tmp_path / "bomb.parquet").stat().st_size < 100_000
    for name in ("bomb.csv.gz", "bomb.parquet", "large.csv"):
        with pytest.raises(BadAnswer, match="Split it into files"):
            load(File(), asked(tmp_path / name))


ROWS, TEXT = 20_000, "x" * 20_000  # 400 MB when each row holds its own


def repeating(path: Path, encoding: str = "dictionary", **columns: str) -> Path:
    """A small file of days at 1.0, with columns of one text in every row."""
    days = pa.array(pd.date_range("1950-01-01", periods=ROWS))
    prices = dict.fromkeys(("open", "high", "low", "close"), pa.array([1.0] * ROWS))
    nothing = pa.array([0] * ROWS, pa.int32())
    texts = {name: pa.DictionaryArray.from_arrays(nothing, [text]) for name, text in columns.items()}
    table = pa.table({"date": days, **prices, **texts})
    pq.write_table(table, path, use_dictionary=encoding == "dictionary", compression="zstd", store_schema=False)
    assert path.stat().st_size < 500_000
    return path


@contextmanager
def arrow_takes_at_most(size_bytes: int) -> Iterator[None]:
    """Its buffers come from a pool that nothing else uses here, whose peak is therefore theirs."""
    usual, own = pa.default_memory_pool(), pa.system_memory_pool()
    assert own.backend_name != usual.backend_name
    pa.set_memory_pool(own)
    try:
        yield
    finally:
        pa.set_memory_pool(usual)
    assert 0 < own.max_memory() <= size_bytes


def test_a_long_text_that_a_column_repeats_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MOST_BYTES", 20_000_000)
    path = repeating(tmp_path / "prices.parquet", note=TEXT)
    with arrow_takes_at_most(20_000_000):
        assert len(load(File(), ask(str(path), "1900-01-01", "2030-01-01")).time) == ROWS


@pytest.mark.parametrize("name", ["symbol", "close", "time"])
@pytest.mark.parametrize("encoding", ["dictionary", "plain"])
def test_a_long_text_in_a_needed_column_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, encoding: str
) -> None:
    monkeypatch.setattr(tables, "MOST_BYTES", 20_000_000)
    path = repeating(tmp_path / "prices.parquet", encoding, **{name: TEXT})
    with arrow_takes_at_most(20_000_000), pytest.raises(BadAnswer, match="Split it into files"):
        load(File(), asked(path))


@pytest.mark.parametrize("kind", ["text", "categories", "dates", "index of text", "two levels"])
def test_a_parquet_file_may_hold_its_days_in_many_ways(tmp_path: Path, kind: str) -> None:
    frame = runner.sample_data("AAPL").to_frame().tz_localize(None)
    days = pd.DatetimeIndex(frame.index)
    text = days.strftime("%Y-%m-%d")
    made = {
        "text": lambda: frame.assign(date=text, symbol="AAPL").reset_index(drop=True),
        "categories": lambda: frame.assign(date=pd.Categorical(text)).reset_index(drop=True),
        "dates": lambda: frame.assign(date=days.date).reset_index(drop=True),
        "index of text": lambda: frame.set_index(text),
        "two levels": lambda: pd.concat({"AAPL": frame}, axis=1),
    }[kind]()
    made.to_parquet(tmp_path / "prices.parquet")
    table = load(File(), asked(tmp_path / "prices.parquet"))
    assert table.time.tolist() == runner.sample_data("AAPL").time.tolist()
    assert table.columns["close"].tolist() == frame["close"].tolist()


def test_a_parquet_file_without_prices_is_told_what_it_has(tmp_path: Path) -> None:
    pd.DataFrame({"date": ["2020-01-02"], "price": [1.0]}).to_parquet(tmp_path / "prices.parquet")
    with pytest.raises(BadAnswer, match=r"columns are missing: open, .* The frame has 'date', 'price'"):
        load(File(), asked(tmp_path / "prices.parquet"))


def test_a_parquet_column_that_holds_no_numbers_is_named(tmp_path: Path) -> None:
    prices = {name: [1.0] for name in ("open", "high", "low")}
    pq.write_table(pa.table({"date": ["2020-01-02"], **prices, "close": [[1.0]]}), tmp_path / "prices.parquet")
    with pytest.raises(BadAnswer, match=r"column 'close' is of type list<.*expected numbers"):
        load(File(), asked(tmp_path / "prices.parquet"))


@pytest.mark.parametrize(
    "about",
    [b"{", b"[1]", b'{"a": 1}', b'{"index_columns": 3}', b'{"index_columns": [], "columns": [3]}', b"[" * 100_000],
)
def test_damage_in_what_pandas_writes_beside_the_data_is_a_bad_answer(tmp_path: Path, about: bytes) -> None:
    frame = pd.DataFrame({"date": ["2020-01-02"], **{name: [1.0] for name in ("open", "high", "low", "close")}})
    table = pa.Table.from_pandas(frame).replace_schema_metadata({"pandas": about})
    pq.write_table(table, tmp_path / "prices.parquet")
    with pytest.raises(BadAnswer, match="cannot be read as a table"):
        load(File(), asked(tmp_path / "prices.parquet"))
