"""Bars: the prices of one symbol as immutable numpy columns that their content names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from html import escape
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NoReturn, Self, overload

from runner import codec, columns, frames, indicators, joining
from runner.columns import Floats, Times
from runner.errors import BarsError
from runner.periods import periods_per_year

if TYPE_CHECKING:
    import pandas as pd

SAMPLES = ("AAPL", "GOOG", "IBM", "SP500")


@dataclass(frozen=True, slots=True)
class DataRef:
    """Bars on the wire: a name, not the numbers.

    Attributes:
        symbol: what people call the series; it takes no part in the digest.
        digest: SHA-256 of the content, in hex; "" while the bars are still to be fetched.
        n_bars: how many bars there are.
    """

    symbol: str
    digest: str
    n_bars: int

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`; raises BarsError on fields of another version."""
        if set(wire) != {"symbol", "digest", "n_bars"}:
            raise BarsError(f"data reference has fields {sorted(wire)}: client and worker run different versions.")
        return cls(**wire)


class Bars:
    """Prices of one symbol, oldest first. Immutable: every array is read-only, a change makes new Bars.

    Attributes:
        symbol: what people call it, "" when unknown.
        time: int64[n], nanoseconds since 1970 UTC of each bar's open, strictly increasing.
        open: float64[n], like `high`, `low` and `close` positive and finite, in the account's currency.
        high: float64[n].
        low: float64[n].
        close: float64[n].
        volume: float64[n], not negative, or None.
        extra: alternative data by column name, float64[n] each, NaN where there is none. Names are lower case.
        periods_per_year: bars in a year by the data's own calendar, see `runner.periods.periods_per_year`.

    Raises:
        BarsError: prices that cannot be backtested; it names the column, the first bad bar and the cure.
    """

    __slots__ = (
        "_columns",
        "_digest",
        "_memo",
        "close",
        "extra",
        "high",
        "low",
        "open",
        "periods_per_year",
        "symbol",
        "time",
        "volume",
    )

    symbol: str
    time: Times
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats | None
    extra: Mapping[str, Floats]
    periods_per_year: float
    _columns: dict[str, Floats]
    _digest: str | None
    _memo: indicators.Memo

    def __init__(
        self,
        *,
        time: Any,
        open: Any,  # noqa: A002 - the field's name for it
        high: Any,
        low: Any,
        close: Any,
        volume: Any = None,
        extra: Mapping[str, Any] | None = None,
        symbol: str = "",
    ) -> None:
        prices = {"open": open, "high": high, "low": low, "close": close}
        checked = columns.checked(time, prices, volume, extra or {})
        everything = {**checked.prices, **checked.extra}
        if checked.volume is not None:
            everything["volume"] = checked.volume
        fields = {
            "symbol": _symbol(symbol),
            "time": checked.time,
            **checked.prices,
            "volume": checked.volume,
            "extra": MappingProxyType(checked.extra),
            "periods_per_year": periods_per_year(checked.time),
            "_columns": everything,
            "_digest": None,
            "_memo": indicators.Memo(),
        }
        for name, value in fields.items():
            object.__setattr__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"Bars are immutable, {name!r} cannot be set: make new ones with Bars.from_frame.")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"Bars are immutable, {name!r} cannot be deleted.")

    # Frames and bytes

    @classmethod
    def from_frame(cls, df: pd.DataFrame, symbol: str | None = None) -> Self:
        """Bars of one symbol from any OHLCV DataFrame.

        Args:
            df: columns open, high, low, close and optionally volume, in title or lower case, or as `yf.download`
                gives them. Times are a DatetimeIndex or a column date, datetime, time or timestamp; naive ones are
                taken as UTC. A `symbol` or `ticker` column names the symbol. Every other column is kept in `extra`
                and has to be numeric.
            symbol: a name that wins over the one in the frame.

        Raises:
            BarsError: several symbols, columns missing, or prices that cannot be backtested.
        """
        parts = frames.split(df)
        if len(parts) > 1:
            shown = ", ".join(map(repr, list(parts)[:3])) + (", ..." if len(parts) > 3 else "")
            raise BarsError(
                f"the frame holds {len(parts)} symbols ({shown}), Bars hold one: use Bars.split_frame(df) and pass the "
                "{symbol: bars} that it returns."
            )
        [(found, part)] = parts.items()
        return cls(**frames.arrays(part), symbol=found if symbol is None else symbol)

    @staticmethod
    def split_frame(df: pd.DataFrame) -> dict[str, Bars]:
        """Bars by symbol, from a frame with a `symbol` column or with the MultiIndex columns of `yf.download`.

        A symbol's rows without any price are dropped: they are only there because another symbol traded then.

        Raises:
            BarsError: as from_frame; it names the symbol.
        """
        bars = {}
        for symbol, part in frames.split(df).items():
            try:
                bars[symbol] = Bars(**frames.arrays(part), symbol=symbol)
            except BarsError as error:
                raise BarsError(f"symbol {symbol!r}: {error}") from error
        return bars

    def to_frame(self) -> pd.DataFrame:
        """A DataFrame of lower-case columns, indexed by "time", which is in UTC."""
        return frames.build(self.time, self._ordered())

    def to_bytes(self) -> bytes:
        """The content and the symbol, lossless and compact, see `runner.codec`."""
        return codec.pack(self.time, self._ordered(), {"symbol": self.symbol, "digest": self.digest})

    @classmethod
    def from_bytes(cls, payload: bytes) -> Self:
        """The inverse of `to_bytes`; raises BarsError when the content is not what its digest says."""
        time, named, metadata = codec.unpack(payload)
        prices = {name: named.pop(name, None) for name in columns.OHLCV}
        words = "these bytes are damaged: the prices in them do not have the digest that stands beside them."
        try:
            bars = cls(time=time, **prices, extra=named, symbol=metadata.get("symbol", ""))
        except BarsError as error:
            raise BarsError(words) from error
        if bars.digest != metadata.get("digest"):
            raise BarsError(words)
        return bars

    def __reduce__(self) -> tuple[Callable[[bytes], Bars], tuple[bytes]]:
        return type(self).from_bytes, (self.to_bytes(),)

    def with_symbol(self, symbol: str) -> Bars:
        """The same bars under another name."""
        return Bars(time=self.time, **self._named(), extra=self.extra, symbol=symbol)

    def join(
        self,
        series: pd.Series[Any] | pd.DataFrame,
        *,
        lag: joining.Span,
        name: str | None = None,
        max_age: joining.Span | None = None,
    ) -> Bars:
        """New bars with the series as further columns: at each bar the latest value known before its close, else NaN.

        A value dated t is known from t + lag on; one that comes at the very moment of a close is too late for it, so
        with lag="1d" a daily bar has the value of the day before. When a bar closes is read off the stamps alone (see
        `runner.joining.closes`): daily bars end at midnight UTC. If you fill at an earlier close, add the difference.

        Args:
            series: numbers by time, naive times in UTC, sorted. A NaN is no value: the one before it stands.
            lag: "1d", "36h" or a timedelta; "0s" only if each value was known at the time that it carries.
            name: of the new column, instead of the series' own.
            max_age: a value known for longer than this at a close is NaN, so that a dead feed is not traded on.

        Raises:
            InputError: no length of time; BarsError: a series that cannot be joined, or a name that is taken.
        """
        named = joining.joined(self.time, series, lag=lag, name=name, max_age=max_age, taken=self.extra)
        return Bars(time=self.time, **self._named(), extra={**self.extra, **named}, symbol=self.symbol)

    # Reading

    @property
    def digest(self) -> str:
        """SHA-256 in hex of times, columns and their names; the symbol is not part of it."""
        if self._digest is None:
            sha = hashlib.sha256(b"bars 1\n")
            for name, column in [("time", self.time), *self._ordered().items()]:
                little_endian = column.astype(column.dtype.newbyteorder("<"), copy=False)
                sha.update(f"{len(name.encode())} {name} {len(column)}\n".encode())
                sha.update(little_endian.data)
            object.__setattr__(self, "_digest", sha.hexdigest())
        return str(self._digest)

    @property
    def ref(self) -> DataRef:
        """How these bars are named on the wire."""
        return DataRef(self.symbol, self.digest, len(self))

    def __len__(self) -> int:
        return len(self.time)

    @overload
    def __getitem__(self, key: str) -> Floats: ...
    @overload
    def __getitem__(self, key: slice) -> Bars: ...
    def __getitem__(self, key: str | slice) -> Floats | Bars:
        """A column by name, or the bars of a slice of positions (at least one, step 1)."""
        if isinstance(key, slice):
            return self._part(key)
        column = self._columns.get(key)
        return self._column(key) if column is None else column

    def __eq__(self, other: object) -> bool:
        return self.digest == other.digest if isinstance(other, Bars) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        first, last = (columns.shown_time(self.time[i]) for i in (0, -1))
        extra = f", extra: {', '.join(self.extra)}" if self.extra else ""
        return f"Bars({self.symbol + ': ' if self.symbol else ''}{len(self)} bars from {first} to {last}{extra})"

    def _repr_html_(self) -> str:
        rows = range(len(self)) if len(self) <= 6 else [0, 1, 2, *range(len(self) - 3, len(self))]
        named = self._ordered()
        head = "".join(f"<th>{escape(name)}</th>" for name in ("time", *named))
        body = ""
        for row in rows:
            cells = "".join(f"<td>{column[row]:,.6g}</td>" for column in named.values())
            body += f"<tr><td>{columns.shown_time(self.time[row])}</td>{cells}</tr>"
        return f"<p>{escape(repr(self))}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def _named(self) -> dict[str, Floats | None]:
        return {"open": self.open, "high": self.high, "low": self.low, "close": self.close, "volume": self.volume}

    def _ordered(self) -> dict[str, Floats]:
        named = {name: column for name, column in self._named().items() if column is not None}
        return {**named, **self.extra}

    def _part(self, key: slice) -> Bars:
        try:
            start, stop, step = key.indices(len(self))
        except TypeError:
            raise BarsError(
                f"bars[{key.start!r}:{key.stop!r}]: expected positions. "
                "By date: Bars.from_frame(bars.to_frame().loc['2010':'2015'])."
            ) from None
        if step != 1:
            raise BarsError(
                f"bars[::{step}]: a step leaves bars out. Resample the DataFrame before Bars.from_frame instead."
            )
        named = {name: None if column is None else column[start:stop] for name, column in self._named().items()}
        extra = {name: column[start:stop] for name, column in self.extra.items()}
        return Bars(time=self.time[start:stop], **named, extra=extra, symbol=self.symbol)

    def _column(self, name: object) -> Floats:
        found = self._columns.get(columns.normal_name(name)) if isinstance(name, str) else None
        if found is not None:
            return found
        raise BarsError(
            f"bars have no column {name!r}{_did_you_mean(name, self._columns)}. They have {', '.join(self._ordered())}."
        )

    # Indicators: one value per bar, of bars 0..i only, NaN until there are enough bars, computed once for each window

    def sma(self, n: int) -> Floats:
        """Simple moving average of the last n closes. float64[bars], NaN for the first n - 1."""
        return self._memo.windowed(self, "sma", n)

    def ema(self, n: int) -> Floats:
        """Exponential moving average of the close, weight 2 / (n + 1), started by the average of the first n closes."""
        return self._memo.windowed(self, "ema", n)

    def wma(self, n: int) -> Floats:
        """Moving average of the last n closes with weights 1 (oldest) to n (newest)."""
        return self._memo.windowed(self, "wma", n)

    def rsi(self, n: int = 14) -> Floats:
        """Wilder's relative strength index of the close, 0 to 100; 0 while the price has not moved; n of at least 2."""
        return self._memo.windowed(self, "rsi", n)

    def atr(self, n: int = 14) -> Floats:
        """Wilder's average true range, in price units."""
        return self._memo.windowed(self, "atr", n)

    def roc(self, n: int) -> Floats:
        """Rate of change of the close over n bars, in percent, as TA-Lib's ROC."""
        return self._memo.windowed(self, "roc", n)

    def stdev(self, n: int) -> Floats:
        """Standard deviation of the last n closes (divisor n), in price units."""
        return self._memo.windowed(self, "stdev", n)

    def highest(self, n: int) -> Floats:
        """Highest high of the last n bars, this one included."""
        return self._memo.windowed(self, "highest", n)

    def lowest(self, n: int) -> Floats:
        """Lowest low of the last n bars, this one included."""
        return self._memo.windowed(self, "lowest", n)

    def macd(self, fast: int = 12, slow: int = 26, signal: int = 9) -> tuple[Floats, Floats, Floats]:
        """Appel's MACD: ema(fast) - ema(slow) of the close, the ema(signal) of that, and their difference; fast < slow.

        All three are NaN until the signal line exists. Both averages start at bar slow - 1, as in TA-Lib.
        """
        three: tuple[Floats, Floats, Floats] = self._memo.get(self, indicators.macd, (fast, slow, signal))
        return three

    def bollinger(self, n: int = 20, k: float = 2.0) -> tuple[Floats, Floats, Floats]:
        """Bollinger's lower, middle and upper band: sma(n) and k stdev(n) on either side."""
        bands: tuple[Floats, Floats, Floats] = self._memo.get(self, indicators.bollinger, (n, k))
        return bands

    def indicator(self, function: Callable[..., Any], *args: Any) -> Any:
        """What ``function(bars, *args)`` returns, computed once for each function and arguments.

        Args:
            function: returns one value per bar, or a tuple of several such arrays. Define it outside the strategy: a
                lambda made anew in every run is a new function every time.
            args: hashable.

        Returns:
            The array, or a tuple of arrays; read-only.
        """
        return self._memo.get(self, function, args)


def sample_data(name: str) -> Bars:
    """Real daily prices that come with the package: "AAPL", "GOOG", "IBM" or "SP500" (see runner/data/README.md)."""
    known = name.upper() if isinstance(name, str) else ""
    if known not in SAMPLES:
        raise BarsError(f"no sample data {name!r}{_did_you_mean(known, SAMPLES)}. There is {', '.join(SAMPLES)}.")
    payload = resources.files("runner.data").joinpath(f"{known}.parquet").read_bytes()
    return Bars.from_frame(frames.read_parquet(payload), symbol=known)


def _symbol(symbol: object) -> str:
    if not isinstance(symbol, str):
        raise BarsError(f"symbol={symbol!r}: expected a string, such as 'AAPL'.")
    return symbol


def _did_you_mean(given: object, options: Any) -> str:
    close = get_close_matches(str(given), list(options), n=1)
    return f": did you mean {close[0]!r}?" if close else ""
