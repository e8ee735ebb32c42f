"""A fetch that was submitted: wait for it, and turn what the workers stored into Bars and Series."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

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
    items: dict[str, _Landed] = {}
    download = _Download(ledger, batch)
    with ProgressBar(f"{source.provider} {source.interval}", len(source), shown=progress, unit="symbol") as bar:
        while not follower.complete:
            for blob in follower.look(min(BEAT_S, max(0.0, deadline - time.monotonic()))):
                items.update(download.take(json.loads(blob)))
            bar.show(follower.seen.done, f"{follower.seen.failed:,} failed" if follower.seen.failed else "")
            if time.monotonic() >= deadline and not follower.complete:
                raise SweepTimeout(
                    f"{follower.seen.done:,} of {len(source):,} symbols fetched after {timeout_s:g} s: call it again, "
                    "what was fetched is in the cache."
                )
    return _fetched(source, items)


class _Landed(NamedTuple):
    """What a worker said of one symbol, and its value; None of one that failed."""

    item: dict[str, Any]
    value: Any


class _Download:
    """Takes values off the server as they land: a large fetch never stands there whole."""

    def __init__(self, ledger: Ledger, batch: str) -> None:
        self._ledger = ledger
        self._batch = batch
        # Two symbols may have the same prices; the first that takes them has removed them.
        self._values: dict[str, Any] = {}

    def take(self, items: Sequence[dict[str, Any]]) -> Iterator[tuple[str, _Landed]]:
        """A chunk's symbols and their values."""
        for at in range(0, len(items), DOWNLOAD_AT_ONCE):
            part = items[at : at + DOWNLOAD_AT_ONCE]
            wanted = {item["digest"]: item["kind"] for item in part if "error" not in item}
            new = [digest for digest in wanted if digest not in self._values]
            for digest, blob in zip(new, self._ledger.take("data", new, self._batch), strict=True):
                self._values[digest] = _value(blob, wanted[digest])
            for item in part:
                value = None if "error" in item else _named(self._values[item["digest"]], item["symbol"])
                yield item["symbol"], _Landed(item, value)


def _fetched(source: Source, items: dict[str, _Landed]) -> Fetched:
    import pandas as pd

    fetched = Fetched()
    for symbol in source.symbols:
        item, value = items[symbol]
        if "error" in item:
            fetched.errors[symbol] = error_of(item["error"])
            continue
        fetched[symbol] = value
        if item["stale_since_s"] is not None:
            fetched.stale[symbol] = pd.Timestamp(item["stale_since_s"], unit="s", tz="UTC").floor("s")
    return fetched


def _value(blob: bytes, kind: str) -> Bars | pd.Series[Any]:
    if kind == "bars":
        return Bars.from_bytes(blob)
    import pandas as pd

    stamps, named, _ = codec.unpack(blob)
    index = pd.DatetimeIndex(stamps.view("datetime64[ns]"), name="time").tz_localize("UTC")
    return pd.Series(named["value"], index=index)


def _named(value: Bars | pd.Series[Any], symbol: str) -> Bars | pd.Series[Any]:
    return value.with_symbol(symbol) if isinstance(value, Bars) else value.rename(symbol)


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
