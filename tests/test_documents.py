"""docs/data.md: its code is run, against the stand-in instead of the providers themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiohttp import web

import runner
from tests.misbehaving import serving
from tests.support import ROOT, Worker
from tests.workers.sources.asking import ask, dates, load
from workers.sources import registry
from workers.standin import make_app

DATA = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##)", DATA, flags=re.MULTILINE | re.DOTALL))
# Its package does its own HTTP, to Yahoo alone; tests/workers/sources/test_yahoo.py leads it to the stand-in.
NOT_HERE = {"yfinance"}


class Led:
    """The client of the documents, its requests led to the stand-in."""

    def __init__(self, client: runner.Client, url: str, folder: Path) -> None:
        self._client, self._url, self._folder = client, url, folder

    def fetch(self, symbols: Any, *, source: str, **options: Any) -> Any:
        if source == "url":
            symbols = symbols.replace("https://example.com", f"{self._url}/files")
            options["private"] = True
        elif source == "file":
            symbols = str(self._folder / Path(symbols).name)
        else:
            options["base_url"] = f"{self._url}/{'binance' if source == 'ccxt' else source}"
        return self._client.fetch(symbols, source=source, **options)

    def sweep(self, strategy: Any, source: runner.Source, space: Any) -> Any:
        options = {"interval": source.interval, "start": pd.Timestamp(source.start_ns or 0, unit="ns")}
        led = runner.Source(source.provider, source.symbols, base_url=f"{self._url}/{source.provider}", **options)  # type: ignore[arg-type]  # two of many options
        return self._client.sweep(strategy, led, space)

    def health(self) -> Any:
        return self._client.health()


@pytest.fixture
def client(team: runner.Client, fetcher: Worker, tmp_path: Path) -> Iterator[Led]:
    runner.sample_data("SP500").to_frame().to_csv(tmp_path / "SP500.csv.gz")
    with serving(make_app()) as url:
        yield Led(team, url, tmp_path)


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def test_every_source_has_its_section() -> None:
    assert set(SECTIONS) == set(registry.sources())


@pytest.mark.parametrize("name", sorted(SECTIONS))
def test_each_is_shown_in_five_lines(name: str) -> None:
    [code] = blocks(SECTIONS[name])
    assert len(code.splitlines()) <= 5
    assert f'source="{name}"' in code


@pytest.mark.parametrize("name", sorted(set(SECTIONS) - NOT_HERE))
def test_what_is_shown_of_a_source_runs(name: str, client: Led) -> None:
    [code] = blocks(SECTIONS[name])
    names: dict[str, Any] = {"client": client, "runner": runner}
    exec(code, names)  # noqa: S102 - our own document
    [found] = [names[name] for name in ("prices", "vix", "views", "greed") if name in names]
    assert len(found) > 10


def test_the_rest_of_the_document_runs(client: Led, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "connect", lambda **_: client)
    rest = re.sub(r"^### .*?(?=^## )", "", DATA, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for code in blocks(rest):
        exec(code, names)  # noqa: S102 - likewise
    assert len(names["many"]) == 2
    assert names["result"].best("sharpe") is not None


def test_the_source_of_one_s_own_answers_closed_bars_of_the_span_whatever_comes() -> None:
    [code] = [code for code in blocks(DATA) if "class Mine" in code]
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - likewise
    seen: list[Any] = []

    async def all_days(request: web.Request) -> web.Response:
        seen.append(request)
        days = pd.date_range("2019-12-25", "2020-06-01")
        return web.Response(text="".join(f"{day.value},2,3,1,2.5,7\n" for day in reversed(days)))

    app = web.Application()
    app.router.add_get("/ACME", all_days)
    with serving(app) as url:
        question = ask("ACME", "2020-01-01", "2021-01-01", now="2020-03-01T12:00", base_url=url)
        table = load(names["Mine"](), question)
    assert dates(table) == [str(day.date()) for day in pd.date_range("2020-01-01", "2020-02-29")]
    assert table.columns["close"].tolist() == [2.5] * 60
    [request] = seen
    assert (request.query["from"], request.query["to"]) == (str(question.start_ns), str(question.end_ns))
