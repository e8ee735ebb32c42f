"""Yahoo Finance by way of the yfinance package (an extra), which does its own HTTP. Yahoo's terms: for personal use."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import numpy as np

from runner.columns import OHLCV
from runner.errors import BadAnswer, FetchError, NoData, SourceRefused, SourceUnavailable, SymbolUnknown
from workers.session import HttpClient
from workers.sources import days
from workers.sources.at_once import AtOnce
from workers.sources.parse import interval_ns, table, where
from workers.sources.protocol import Ask, Kind, Table, Unit, Usual

if TYPE_CHECKING:
    import pandas as pd

COLUMNS = {name: name.capitalize() for name in OHLCV}
# Yahoo bars addresses that ask fast; yfinance's requests are not under our limits.
MOST_AT_ONCE = 1
# Of one request of yfinance, which makes up to six for one symbol; and of all of them.
TIMEOUT_S, DEADLINE_S = 15.0, 90.0


class Yfinance(Usual):
    """Bars by Yahoo's ticker, such as AAPL, BMW.DE or ^GSPC; minutes reach back 8 days, hours two years.

    Yahoo gives prices, volumes and dividends adjusted for splits; here they are put back to what was quoted.
    """

    name = "yfinance"
    kind: Kind = "bars"
    intervals: tuple[str, ...] = ("1m", "5m", "15m", "30m", "1h", "1d")
    options: tuple[str, ...] = ()

    def __init__(self) -> None:
        self._at_once = AtOnce(MOST_AT_ONCE)

    def unit(self, interval: str) -> Unit:  # noqa: ARG002 - the protocol's
        """What was quoted in the past follows from all splits up to now."""
        return "all"

    async def load(self, ask: Ask, http: HttpClient) -> Table:  # noqa: ARG002 - yfinance takes no session of aiohttp
        """See `Source`. The thread goes on after the deadline until yfinance's own time-outs end it."""
        label = where(self.name, ask)
        async with self._at_once.slot():
            try:
                frame = await asyncio.wait_for(asyncio.to_thread(_history, ask.symbol, ask.interval, label), DEADLINE_S)
            except TimeoutError:
                raise SourceUnavailable(f"{label}: no answer within {DEADLINE_S:g} s. Ask again later.") from None
        return from_frame(frame, ask)


def from_frame(frame: pd.DataFrame, ask: Ask) -> Table:
    """What ``Ticker.history(period="max", auto_adjust=False, actions=True)`` returned, as the source's answer.

    With F the product of all later splits' factors: quoted = price * F, traded = volume / F, paid = dividend * F.

    Raises:
        BadAnswer, NoData: as `workers.sources.parse.table`.
    """
    import pandas as pd

    label = where(Yfinance.name, ask)
    missing = [name for name in (*COLUMNS.values(), "Dividends", "Stock Splits") if name not in frame.columns]
    if missing or not isinstance(frame.index, pd.DatetimeIndex) or frame.index.tz is None:
        raise BadAnswer(
            f"{label}: expected yfinance's columns with times in a zone; {', '.join(missing) or 'the zone'} is "
            "missing. Is this version of yfinance a known one?"
        )
    frame = frame.sort_index()
    index = pd.DatetimeIndex(frame.index)
    named = {name: frame[title].to_numpy(dtype=np.float64) for name, title in COLUMNS.items()}
    split = frame["Stock Splits"].to_numpy(dtype=np.float64, na_value=0.0)
    split = np.where(split == 0.0, 1.0, split)
    later = np.cumprod(split[::-1])[::-1] / split
    daily = interval_ns(ask.interval) >= interval_ns("1d")
    time = days.trading_dates(index) if daily else np.asarray(index.as_unit("ns").asi8, dtype=np.int64)
    columns = {name: values / later if name == "volume" else values * later for name, values in named.items()}
    dividend = frame["Dividends"].to_numpy(dtype=np.float64, na_value=0.0) * later
    return table(ask, time, {**columns, "split": split, "dividend": dividend}, label)


def _history(symbol: str, interval: str, label: str) -> pd.DataFrame:
    try:
        import yfinance  # type: ignore[import-untyped]  # no types are published
        from yfinance import exceptions
    except ImportError:
        raise SourceRefused(
            f"{label}: the package yfinance is not installed here. Install it on the fetch workers with "
            "pip install 'backtest-runner[yfinance]'."
        ) from None
    yfinance.config.debug.hide_exceptions = False  # else it logs them and returns an empty frame
    try:
        frame: Any = yfinance.Ticker(symbol).history(
            period="max", interval=interval, auto_adjust=False, actions=True, timeout=TIMEOUT_S
        )
    except exceptions.YFRateLimitError:
        raise SourceUnavailable(
            f"{label}: Yahoo says that too much was asked. Ask again in an hour, or less."
        ) from None
    except exceptions.YFTzMissingError:
        raise _unknown(label) from None
    except exceptions.YFPricesMissingError as error:
        raise NoData(f"{label}: {error}") from None
    except Exception as error:  # it passes on whatever its HTTP library or a changed answer raises
        raise _failed(error, label) from error
    return frame  # type: ignore[no-any-return]  # yfinance has no types


def _failed(error: Exception, label: str) -> FetchError:
    if getattr(getattr(error, "response", None), "status_code", None) == 404:  # of its second look-up of the ticker
        return _unknown(label)
    return SourceUnavailable(f"{label}: yfinance failed with {type(error).__name__}: {error}. Ask again later.")


def _unknown(label: str) -> SymbolUnknown:
    return SymbolUnknown(f"{label}: Yahoo knows no such ticker, or no longer. Look it up on finance.yahoo.com.")
