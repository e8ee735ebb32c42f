"""Claim (f): a thousand symbols that have been fetched are fetched again without a call to their provider."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import runner
from benchmarks.measure import Row, timed

SYMBOLS = 1_000


@contextmanager
def provider() -> Iterator[str]:
    """The stand-in, in a process of its own."""
    command = [sys.executable, "-m", "workers.standin", "--port", "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            yield str(json.loads(process.stdout.readline())["url"])
        finally:
            process.terminate()


def measure(client: runner.Client) -> Row:
    """Two closed years of daily bars a symbol; what goes over the wire is counted where it is sent."""
    symbols = [f"SYM{i}" for i in range(SYMBOLS)]
    fetched: list[Any] = []

    def attempts() -> int:
        return client._ledger.health()[0].get("http_attempts", 0)  # noqa: SLF001 - the count itself, not its share

    with provider() as url:
        options: dict[str, Any] = {"start": "2018-01-01", "end": "2020-01-01", "base_url": f"{url}/binance"}

        def fetch() -> None:
            fetched.append(client.fetch(symbols, source="binance", progress=False, **options))

        first_s = timed(fetch)
        asked = attempts()
        again_s = timed(fetch)
        upstream = attempts() - asked
    assert len(fetched[0]) == SYMBOLS
    assert fetched[0] == fetched[1]
    return Row(
        claim=f"upstream calls of a fetch of {SYMBOLS:,} symbols made again",
        figure=f"{upstream}",
        target="0",
        reached=upstream == 0,
        made_of=f"first {asked:,} calls in {first_s:.1f} s, then {SYMBOLS / again_s:,.0f} symbols a second",
    )
