"""Source: which prices to fetch, said in plain values, so that it travels to the workers as a message."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self
from urllib.parse import unquote_plus

from runner.adjust import ADJUSTMENTS
from runner.errors import SettingsError

if TYPE_CHECKING:
    import datetime as dt

    import pandas as pd

    Moment = str | dt.date | pd.Timestamp

Option = str | int | float | bool
Adjust = Literal["all", "splits", "none"]
PROVIDER = re.compile(r"[a-z][a-z0-9_]{0,39}")
INTERVAL = re.compile(r"[1-9]\d{0,2}[smhdwM]")
# Longer than any ticker or article title; an address of a file may have this many.
MAX_SYMBOL_CHARS = 2_000
# A batch's message names every symbol; 100,000 of them are about 1 MB.
MAX_SYMBOLS = 100_000
# Of an address: what stands before its host, its host, its path, and the rest, which may be a query.
ADDRESS = re.compile(r"\s*(?:([^/?#]*):)?//(?:([^/?#]*)@)?([^/?#@]*)([^?#]*)(.*)", re.DOTALL)
SECRET_WORDS = ("key", "token", "secret", "password", "passwd", "credential")


@dataclass(frozen=True, init=False)
class Source:
    """Symbols of one provider over one range of time.

    Attributes:
        provider: "binance", "coinbase", "kraken", "fred", "tiingo", ...: docs/data.md lists them.
        symbols: as the provider spells them.
        interval: "1m", "1h", "1d", ...
        start_ns: nanoseconds since 1970 UTC; None is the provider's whole history, where it comes in one piece.
        end_ns: the same, exclusive; None is now, at submission.
        adjust: "all" corrects earlier prices for splits and dividends, "splits" for splits alone, "none" for nothing.
            Without effect where the provider has no such factors.
        options: further options of the provider, such as feed, and base_url for another address than the usual.
    """

    provider: str
    symbols: tuple[str, ...]
    interval: str
    start_ns: int | None
    end_ns: int | None
    adjust: Adjust
    options: Mapping[str, Option] = field(hash=False)

    def __init__(
        self,
        provider: str,
        symbols: str | Iterable[str],
        *,
        interval: str = "1d",
        start: Moment | None = None,
        end: Moment | None = None,
        adjust: Adjust = "all",
        **options: Option,
    ) -> None:
        """Check everything that can be known without the provider.

        Args:
            provider: its name.
            symbols: one or many.
            interval: length of a bar.
            start: first moment, as a date or time, UTC when it says nothing else.
            end: moment at which it ends, itself not part of the range.
            adjust: see above.
            options: see above. A key of yours is none: workers have it in their environment, it never travels.

        Raises:
            SettingsError: which value was wrong, and what was expected.
        """
        if not isinstance(provider, str) or not PROVIDER.fullmatch(provider):
            raise SettingsError(f"source={provider!r}: expected a provider's name, such as 'binance' (docs/data.md).")
        if not isinstance(interval, str) or not INTERVAL.fullmatch(interval):
            raise SettingsError(f"interval={interval!r}: expected a number and a unit, such as '1m', '4h' or '1d'.")
        if adjust not in ADJUSTMENTS:
            raise SettingsError(f"adjust={adjust!r}: expected {', '.join(map(repr, ADJUSTMENTS))}.")
        start_ns, end_ns = _moment("start", start), _moment("end", end)
        if start_ns is not None and start_ns >= (time.time_ns() if end_ns is None else end_ns):
            raise SettingsError(f"start={start!r} is not before end={'now' if end is None else end!r}.")
        self._set(provider, _symbols(symbols), interval, start_ns, end_ns, adjust, _options(options))

    def _set(self, *values: Any) -> None:
        for name, value in zip(self.__dataclass_fields__, values, strict=True):
            object.__setattr__(self, name, value)

    def ending(self, now_ns: int) -> Self:
        """The same with an end: of an open range it is ``now_ns``, to the second."""
        return self._changed(end_ns=now_ns // 10**9 * 10**9) if self.end_ns is None else self

    def _changed(self, **changes: Any) -> Self:
        made = object.__new__(type(self))
        made._set(*(changes.get(name, getattr(self, name)) for name in self.__dataclass_fields__))
        return made

    def __len__(self) -> int:
        return len(self.symbols)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self).from_wire, (self.to_wire(),)

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "symbols": list(self.symbols), "options": dict(self.options)}

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`; SettingsError on fields of another version."""
        if set(wire) != set(cls.__dataclass_fields__):
            raise SettingsError(f"source has fields {sorted(wire)}: client and worker run different versions.")
        frozen = {"symbols": tuple(wire["symbols"]), "options": MappingProxyType(dict(wire["options"]))}
        made = object.__new__(cls)
        made._set(*({**wire, **frozen}[name] for name in cls.__dataclass_fields__))
        return made


def _symbols(given: str | Iterable[str]) -> tuple[str, ...]:
    symbols = (given,) if isinstance(given, str) else tuple(given)
    if not 1 <= len(symbols) <= MAX_SYMBOLS:
        raise SettingsError(f"{len(symbols):,} symbols: expected 1 to {MAX_SYMBOLS:,}.")
    for symbol in symbols:
        if isinstance(symbol, str):
            _check_address("symbol", symbol)
        if not isinstance(symbol, str) or not 0 < len(symbol) <= MAX_SYMBOL_CHARS or not symbol.isprintable():
            raise SettingsError(f"symbol {symbol!r}: expected text, such as 'BTCUSDT'.")
    if len(set(symbols)) < len(symbols):
        twice = next(symbol for symbol in symbols if symbols.count(symbol) > 1)
        raise SettingsError(f"symbol {twice!r} is given twice: name each once.")
    return symbols


def _options(options: Mapping[str, Any]) -> Mapping[str, Option]:
    for name, value in options.items():
        if any(word in name.lower() for word in SECRET_WORDS):
            raise SettingsError(
                f"option {name!r} looks like a key: keys never travel in messages. Set the provider's variable, such "
                "as RUNNER_TIINGO_KEY, in the environment of the fetch workers (docs/data.md)."
            )
        if isinstance(value, str):
            _check_address(f"option {name}", value if "//" in value or name != "base_url" else f"//{value}")
        if not isinstance(value, str | int | float | bool):
            raise SettingsError(f"option {name}={value!r}: expected text, a number or a bool.")
    return MappingProxyType(dict(sorted(options.items())))


def _check_address(what: str, text: str) -> None:
    """SettingsError when the text is an address with a password or a key in it, which would be stored with the job."""
    match = ADDRESS.match(text)
    if not match:
        return
    scheme, user, host, path, rest = match.groups()
    names = [unquote_plus(part.partition("=")[0]) for part in re.split("[?#&;]", rest)[1:]]
    secret = [word for word in SECRET_WORDS if any(word in name.lower() for name in names)]
    found = "its user and password" if user is not None else f"its parameter named like {secret}" if secret else ""
    if found:
        raise SettingsError(
            f"{what}: {scheme or 'http'}://{host}{path}: {found} would travel in messages and stay on the server. Put "
            "the file behind a plain address, or fetch it yourself and pass the frame (docs/data.md)."
        )


def _moment(name: str, given: Moment | None) -> int | None:
    if given is None:
        return None
    import pandas as pd

    try:
        moment = pd.Timestamp(given)
        moment = moment.tz_localize("UTC") if moment.tzinfo is None else moment.tz_convert("UTC")
        return int(moment.as_unit("ns").value)
    except (ValueError, TypeError, OverflowError) as error:
        raise SettingsError(f"{name}={given!r}: expected a date or time, such as '2018-01-01' ({error}).") from None
