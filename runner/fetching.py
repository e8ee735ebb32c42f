"""A fetch that was submitted: wait for it, and turn what the workers stored into Bars and Series."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from runner import codec, errors
from runner.bars import Bars
from runner.errors import FetchError, RunnerError, SweepTimeout
from runner.following import BEAT_S, Follower
from runner.progressbar import ProgressBar

if TYPE_CHECKING:
    import pandas as pd

    from runner.source import Source
    from runner.store import Ledger

# Blobs taken in one round trip: a year of minutes is about 3 MB, so this is what a client holds twice.
DOWNLOAD_AT_ONCE = 32


class Fetched(dict[str, Any]):
    """{symbol: Bars}, or {symbol: Series} from a provider of alternative data, in the order asked for.

    Attributes:
        errors: {symbol: RunnerError, mostly a FetchError} of those that could not be had; they are no keys.
        stale: {symbol: when it was fetched} of those that came from a cache because the provider did not answer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.errors: dict[str, RunnerError] = {}
        self.stale: dict[str, pd.Timestamp] = {}

    def __repr__(self) -> str:
        failed = f", {len(self.errors):,} failed" if self.errors else ""
        stale = f", {len(self.stale):,} stale" if self.stale else ""
        return f"<{len(self):,} symbols fetched{failed}{stale}>"


def collect(ledger: Ledger, batch: str, source: Source, *, progress: bool, timeout_s: float | None) -> Fetched:
    """Wait for the end of a fetch and take what it brought.

    Raises:
        SweepTimeout: not done in time.
        SweepNotFound: it is gone from the server.
    """
    deadline = math.inf if timeout_s is None else time.monotonic() + timeout_s
    follower = Follower(ledger, batch, len(source))
    items: dict[str, dict[str, Any]] = {}
    with ProgressBar(f"{source.provider} {source.interval}", len(source), shown=progress, unit="symbol") as bar:
        while not follower.complete:
            for blob in follower.look(min(BEAT_S, max(0.0, deadline - time.monotonic()))):
                items.update({item["symbol"]: item for item in json.loads(blob)})
            bar.show(follower.seen.done, f"{follower.seen.failed:,} failed" if follower.seen.failed else "")
            if time.monotonic() >= deadline and not follower.complete:
                raise SweepTimeout(
                    f"{follower.seen.done:,} of {len(source):,} symbols fetched after {timeout_s:g} s: call it again, "
                    "what was fetched is in the cache."
                )
    return _fetched(ledger, source, items)


def _fetched(ledger: Ledger, source: Source, items: dict[str, dict[str, Any]]) -> Fetched:
    import pandas as pd

    fetched = Fetched()
    good = [symbol for symbol in source.symbols if "error" not in items[symbol]]
    for symbol, blob in _download(ledger, good, items):
        fetched[symbol] = _value(blob, symbol, items[symbol]["kind"])
        if items[symbol]["stale_since_s"] is not None:
            fetched.stale[symbol] = pd.Timestamp(items[symbol]["stale_since_s"], unit="s", tz="UTC").floor("s")
    fetched.errors = {s: error_of(items[s]["error"]) for s in source.symbols if "error" in items[s]}
    return fetched


def _download(ledger: Ledger, symbols: list[str], items: dict[str, dict[str, Any]]) -> Iterator[tuple[str, bytes]]:
    for at in range(0, len(symbols), DOWNLOAD_AT_ONCE):
        part = symbols[at : at + DOWNLOAD_AT_ONCE]
        yield from zip(part, ledger.blobs("data", [items[symbol]["digest"] for symbol in part]), strict=True)


def _value(blob: bytes, symbol: str, kind: str) -> Bars | pd.Series[Any]:
    if kind == "bars":
        return Bars.from_bytes(blob).with_symbol(symbol)
    import pandas as pd

    stamps, named, _ = codec.unpack(blob)
    index = pd.DatetimeIndex(stamps.view("datetime64[ns]"), name="time").tz_localize("UTC")
    return pd.Series(named["value"], index=index, name=symbol)


def error_of(wire: dict[str, str]) -> RunnerError:
    """The error that a worker described, as an exception of its own class, if it is one of ours."""
    kind = getattr(errors, wire["kind"], None)
    if isinstance(kind, type) and issubclass(kind, RunnerError):
        return kind(wire["message"])
    return FetchError(f"{wire['kind']}: {wire['message']}")


def complaints(fetched: Fetched, source: Source) -> Iterator[str]:
    """What the caller should be warned of: what is missing and what is old."""
    if fetched.errors:
        first = next(iter(fetched.errors.values()))
        failed = f"{len(fetched.errors):,} of {len(source):,} symbols"
        yield f"{failed} could not be fetched, see .errors; the first: {first}"
    if fetched.stale:
        symbol, since = next(iter(fetched.stale.items()))
        yield (
            f"{source.provider} did not answer: {len(fetched.stale):,} symbols are from the cache, {symbol} as of "
            f"{since}; see .stale."
        )
