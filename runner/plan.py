"""What both doors, the broker's and the local one, do first: check all that can be known before anything runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runner.bars import Bars
from runner.errors import BarsError, SettingsError, SpaceError, StrategyError
from runner.source import Source
from runner.space import Space
from runner.spec import Execution
from runner.strategy import Strategy, check_parameters, load

if TYPE_CHECKING:
    import pandas as pd

    from runner.single import Backtest

    Data = Bars | pd.DataFrame | Mapping[str, Bars | pd.DataFrame]


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep that can be run: every part checked.

    Attributes:
        strategy: the function.
        bars: symbol → prices, in the order of the runs.
        space: the points, run on each symbol.
        execution: costs, fills and stops.
        source: where the workers fetch the prices; ``bars`` is empty then.
    """

    strategy: Strategy
    bars: dict[str, Bars]
    space: Space
    execution: Execution
    source: Source | None = None

    @property
    def symbols(self) -> tuple[str, ...]:
        """In the order of the runs."""
        return tuple(self.bars) if self.source is None else self.source.symbols

    def __len__(self) -> int:
        return len(self.symbols) * len(self.space)

    def backtest(self, symbol: str, params: dict[str, Any]) -> Backtest:
        """One run of the plan, here."""
        from runner.single import backtest

        return backtest(self.strategy, self.bars[symbol], params, execution=self.execution)


def make_plan(
    strategy: Strategy | str,
    data: Data | Source,
    space: Space,
    execution: Execution | None = None,
) -> Plan:
    """Check what the user passed in.

    Raises:
        StrategyError, BarsError, SpaceError, SettingsError: which part cannot be run, and the cure.
    """
    if isinstance(strategy, str):
        strategy = load(strategy)
    if not callable(strategy):
        raise StrategyError(f"strategy={strategy!r}: expected a function (bars, **parameters) or 'module:function'.")
    if not isinstance(space, Space):
        raise SpaceError(f"space={space!r}: expected runner.grid(fast=range(5, 60), ...) or runner.sample(...).")
    if execution is not None and not isinstance(execution, Execution):
        raise SettingsError(f"execution={execution!r}: expected runner.Execution(fees=0.001, ...).")
    check_parameters(strategy, space.names)
    if isinstance(data, Source):
        return Plan(strategy, {}, space, execution or Execution(), data)
    return Plan(strategy, as_bars(data), space, execution or Execution())


def as_bars(data: Data) -> dict[str, Bars]:
    """Prices as {symbol: Bars}: one Bars, a frame of one or many symbols, or a mapping to either.

    Raises:
        BarsError: empty, of another type, or not backtestable.
    """
    if isinstance(data, Bars):
        return {data.symbol: data}
    if isinstance(data, Mapping):
        if not data:
            raise BarsError("data is an empty mapping: expected {symbol: prices} with at least one symbol.")
        bars = {str(symbol): _one(prices, str(symbol)) for symbol, prices in data.items()}
        if len(bars) < len(data):
            raise BarsError(
                f"data has two keys of the same text ({', '.join(map(repr, data))}): name each symbol once."
            )
        return bars
    if _is_frame(data):
        return Bars.split_frame(data)
    raise BarsError(
        f"data is a {type(data).__name__}: expected runner.Bars, a DataFrame of OHLCV, {{symbol: either}}, or for "
        "client.sweep a runner.Source."
    )


def _one(prices: Any, symbol: str) -> Bars:
    if isinstance(prices, Bars):
        return prices.with_symbol(symbol)
    if _is_frame(prices):
        return Bars.from_frame(prices, symbol=symbol)
    raise BarsError(f"data[{symbol!r}] is a {type(prices).__name__}: expected runner.Bars or a DataFrame of OHLCV.")


def _is_frame(data: Any) -> bool:
    """Whether it is a DataFrame, asked without importing pandas: a caller that has one has imported it."""
    return type(data).__name__ == "DataFrame" and hasattr(data, "columns")
