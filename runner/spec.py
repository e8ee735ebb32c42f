"""The messages: what is run, frozen, validated and JSON on the wire."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

from runner.bars import DataRef
from runner.errors import SettingsError
from runner.source import Source
from runner.space import Space
from runner.strategy import StrategyRef

# Long enough for a walk through decades of minutes in plain Python, short enough that a hung run is soon a row.
RUN_TIMEOUT_S = 60.0
# A run longer than a day is a hung run; a chunk's message would outlive every lease.
MAX_RUN_TIMEOUT_S = 86_400.0

Fill = Literal["open", "close"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Execution:
    """How targets become trades: costs, fills, stops.

    Attributes:
        cash: account currency at the start.
        fees: fraction of each order's traded value (0.001 is ten basis points), paid in cash.
        slippage: fraction by which every fill is worse than the quoted price.
        fill: ``"open"`` fills at the next bar's open, ``"close"`` at the close of the bar that decided.
        stop_loss: fraction below (short: above) the average entry price at which a position is closed.
        take_profit: fraction above (short: below) the average entry price at which a position is closed.
        trailing_stop: fraction below the highest high (short: above the lowest low) since entry, earlier bars only.
        risk_free: annual rate taken off returns in Sharpe and Sortino; deannualised geometrically.
        periods_per_year: bars in a year; None takes the data's own calendar.
    """

    cash: float = 100_000.0
    fees: float = 0.0
    slippage: float = 0.0
    fill: Fill = "open"
    stop_loss: float | None = None
    take_profit: float | None = None
    trailing_stop: float | None = None
    risk_free: float = 0.0
    periods_per_year: float | None = None

    def __post_init__(self) -> None:
        if self.fill not in ("open", "close"):
            raise SettingsError(f"fill={self.fill!r}: expected 'open' (next bar's open) or 'close' (same bar's close).")
        below_one = ("fees", "slippage", "stop_loss", "trailing_stop")
        for name in ("cash", *below_one, "take_profit", "periods_per_year"):
            self._check_number(name, below=1.0 if name in below_one else math.inf)
        if not (isinstance(self.risk_free, int | float) and -1 < self.risk_free < math.inf):
            raise SettingsError(f"risk_free={self.risk_free!r}: expected an annual rate as a fraction, such as 0.02.")

    def _check_number(self, name: str, *, below: float) -> None:
        value = getattr(self, name)
        zero_allowed = name in ("fees", "slippage")
        if value is None and name in ("stop_loss", "take_profit", "trailing_stop", "periods_per_year"):
            return
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number or value < 0 or (value == 0 and not zero_allowed) or value >= below:
            upper = f" and below {below:g}" if below < math.inf else ""
            hint = " (0.001 is ten basis points)" if name == "fees" else ""
            raise SettingsError(
                f"{name}={value!r}: expected a number {'of at least' if zero_allowed else 'above'} 0{upper}{hint}."
            )

    def to_wire(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)

    @classmethod
    def from_wire(cls, wire: Mapping[str, Any]) -> Self:
        """The inverse of `to_wire`; raises SettingsError on fields of another version."""
        unknown = set(wire) - {field.name for field in fields(cls)}
        if unknown:
            raise SettingsError(
                f"execution has unknown fields {sorted(unknown)}: client and worker run different versions."
            )
        return cls(**wire)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Everything a worker needs to know to run any part of a sweep.

    Run k is point ``k % len(space)`` on symbol ``k // len(space)``.

    Attributes:
        strategy: the function, by name and digest.
        data: the prices, one a symbol, by name and digest; without a digest for those that ``source`` brings.
        space: the parameter points.
        execution: costs, fills, stops.
        run_timeout_s: the longest that one run may take, seconds; then it is an error row.
        source: where workers fetch the prices; None when the client handed them over.
    """

    strategy: StrategyRef
    data: tuple[DataRef, ...]
    space: Space
    execution: Execution
    run_timeout_s: float
    source: Source | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.run_timeout_s, int | float) and 0 < self.run_timeout_s <= MAX_RUN_TIMEOUT_S):
            raise SettingsError(
                f"run_timeout_s={self.run_timeout_s!r}: expected seconds above 0 and at most {MAX_RUN_TIMEOUT_S:g}."
            )

    def __len__(self) -> int:
        return len(self.data) * len(self.space)

    def parts(self, start: int, stop: int) -> list[tuple[DataRef, int, int]]:
        """Runs start..stop-1 as (prices, first point, last point + 1), one a symbol."""
        points = len(self.space)
        first, last = start // points, (stop - 1) // points
        return [
            (self.data[i], max(start - i * points, 0), min(stop - i * points, points)) for i in range(first, last + 1)
        ]

    def to_json(self) -> str:
        """The message that the ledger keeps."""
        wire = {
            "strategy": self.strategy.to_wire(),
            "data": [ref.to_wire() for ref in self.data],
            "space": self.space.to_wire(),
            "execution": self.execution.to_wire(),
            "run_timeout_s": self.run_timeout_s,
            "source": self.source and self.source.to_wire(),
        }
        return json.dumps(wire, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`."""
        wire = json.loads(text)
        return cls(
            strategy=StrategyRef.from_wire(wire["strategy"]),
            data=tuple(DataRef.from_wire(ref) for ref in wire["data"]),
            space=Space.from_wire(wire["space"]),
            execution=Execution.from_wire(wire["execution"]),
            run_timeout_s=wire["run_timeout_s"],
            source=Source.from_wire(wire["source"]) if wire["source"] else None,
        )
