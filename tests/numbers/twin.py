"""The accounting once more, slow and plain, written from its description: what the kernel must equal to the last bit.

Lists and floats, one step at a time, every metric taken afterwards from the whole curve and the whole list of trades.
"""

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trade:
    long: bool
    entry_bar: int
    entry_units: float = 0.0
    entry_value: float = 0.0
    exit_units: float = 0.0
    exit_value: float = 0.0
    fees: float = 0.0
    exit_bar: int = -1
    reason: str = "open"
    earlier: list[float] = field(default_factory=list)  # highs (short: lows) of the earlier bars held

    @property
    def entry(self) -> float:
        return self.entry_value / self.entry_units

    @property
    def pnl(self) -> float:
        gross = self.exit_value - self.entry_value if self.long else self.entry_value - self.exit_value
        return gross - self.fees

    @property
    def gain(self) -> float:
        return self.pnl / self.entry_value


class Twin:
    """One run; afterwards .equity, .closed, .open and metrics()."""

    def __init__(self, prices: dict[str, list[float]], target: list[float], rules: dict[str, Any]) -> None:
        self.rules = rules
        self.cash = rules["cash"]
        self.units = 0.0
        self.fees = 0.0
        self.turnover = 0.0
        self.trade: Trade | None = None
        self.closed: list[Trade] = []
        self.equity: list[float] = []
        self.held: list[bool] = []
        self.prices = prices
        decided = 0.0
        ruined = False
        for i, close in enumerate(prices["close"]):
            if not ruined:
                if rules["fill"] == "open" and i > 0 and target[i - 1] != decided:
                    decided = target[i - 1]
                    self.order(decided, prices["open"][i], i)
                self.inside(i)
                if rules["fill"] == "close" and target[i] != decided:
                    decided = target[i]
                    self.order(decided, close, i)
            ruined = ruined or self.cash + self.units * close <= 0
            if ruined and self.units != 0:
                self.exchange(-self.units, close, i, "ruin")
            self.equity.append(self.cash + self.units * close)
            self.held.append(self.units != 0)

    def order(self, target: float, price: float, bar: int) -> None:
        equity = self.cash + self.units * price
        wanted = target * equity / price if equity > 0 else 0.0
        delta = wanted - self.units
        if delta > 0:
            least_cash = min(0.0, (1 - target) * equity)
            each = price * (1 + self.rules["slippage"]) * (1 + self.rules["fees"])
            most = (self.cash - least_cash) / each
            if self.units < 0:
                most = max(most, -self.units)
            delta = min(delta, max(most, 0.0))
        crosses = (self.units > 0 and self.units + delta < 0) or (self.units < 0 and self.units + delta > 0)
        if crosses:
            rest = delta + self.units
            self.exchange(-self.units, price, bar, "signal", equity)
            self.exchange(rest, price, bar, "signal", equity)
        elif delta != 0:
            self.exchange(delta, price, bar, "signal", equity)

    def exchange(self, delta: float, price: float, bar: int, reason: str, equity: float | None = None) -> None:
        if equity is None:
            equity = self.cash + self.units * price
        worse = 1 + self.rules["slippage"] if delta > 0 else 1 - self.rules["slippage"]
        paid = price * worse
        fee = self.rules["fees"] * abs(delta * paid)
        if self.trade is None:
            self.trade = Trade(long=delta > 0, entry_bar=bar)
        trade = self.trade
        if (delta > 0) == trade.long:
            trade.entry_units += abs(delta)
            trade.entry_value += abs(delta * paid)
        else:
            trade.exit_units += abs(delta)
            trade.exit_value += abs(delta * paid)
        trade.fees += fee
        self.fees += fee
        if equity > 0:
            self.turnover += abs(delta * paid) / equity
        self.cash = self.cash - delta * paid - fee
        self.units = self.units + delta
        if self.units == 0:
            trade.exit_bar = bar
            trade.reason = reason
            self.closed.append(trade)
            self.trade = None

    def inside(self, bar: int) -> None:
        if self.trade is None:
            return
        high, low = self.prices["high"][bar], self.prices["low"][bar]
        found = self.stopped_long(bar) if self.trade.long else self.stopped_short(bar)
        if found is not None:
            price, reason = found
            self.exchange(-self.units, price, bar, reason)
        else:
            self.trade.earlier.append(high if self.trade.long else low)

    def stopped_long(self, bar: int) -> tuple[float, str] | None:
        assert self.trade is not None
        open_, high, low = (self.prices[name][bar] for name in ("open", "high", "low"))
        entry = self.trade.entry
        stops = []
        if self.rules["stop_loss"] is not None:
            stops.append((entry * (1 - self.rules["stop_loss"]), "stop_loss"))
        if self.rules["trailing_stop"] is not None:
            peak = max([entry, *self.trade.earlier])
            stops.append((peak * (1 - self.rules["trailing_stop"]), "trailing_stop"))
        level, reason = max(stops, key=lambda stop: stop[0], default=(-math.inf, ""))
        take = math.inf
        if self.rules["take_profit"] is not None:
            take = entry * (1 + self.rules["take_profit"])
        if open_ <= level:
            return open_, reason
        if open_ >= take:
            return open_, "take_profit"
        if low <= level:
            return level, reason
        if high >= take:
            return take, "take_profit"
        return None

    def stopped_short(self, bar: int) -> tuple[float, str] | None:
        assert self.trade is not None
        open_, high, low = (self.prices[name][bar] for name in ("open", "high", "low"))
        entry = self.trade.entry
        stops = []
        if self.rules["stop_loss"] is not None:
            stops.append((entry * (1 + self.rules["stop_loss"]), "stop_loss"))
        if self.rules["trailing_stop"] is not None:
            trough = min([entry, *self.trade.earlier])
            stops.append((trough * (1 + self.rules["trailing_stop"]), "trailing_stop"))
        level, reason = min(stops, key=lambda stop: stop[0], default=(math.inf, ""))
        take = -math.inf
        if self.rules["take_profit"] is not None:
            take = entry * (1 - self.rules["take_profit"])
        if open_ >= level:
            return open_, reason
        if open_ <= take:
            return open_, "take_profit"
        if high >= level:
            return level, reason
        if low <= take:
            return take, "take_profit"
        return None

    def metrics(self) -> dict[str, float]:
        return self.of_equity() | self.of_trades()

    def of_equity(self) -> dict[str, float]:
        cash, year, n = self.rules["cash"], self.rules["periods_per_year"], len(self.equity)
        rf = (1 + self.rules["risk_free"]) ** (1 / year) - 1
        before = [cash, *self.equity[:-1]]
        returns = [now / then - 1 if then > 0 else 0.0 for then, now in zip(before, self.equity, strict=True)]
        mean, deviation = mean_and_deviation(returns, 1.0)
        shortfalls = [min(r - rf, 0.0) for r in returns]
        squares = in_order([shortfall * shortfall for shortfall in shortfalls])
        peaks = [max([cash, *self.equity[: i + 1]]) for i in range(n)]
        drawdown = min([1.0, *(now / peak for now, peak in zip(self.equity, peaks, strict=True))])
        run, longest = 0, 0
        for now, peak in zip(self.equity, peaks, strict=True):
            run = run + 1 if now < peak else 0
            longest = max(longest, run)
        growth = self.equity[-1] / cash
        cagr = math.pow(growth, year / n) - 1 if growth > 0 else -1.0
        return {
            "total_return": growth - 1,
            "cagr": cagr,
            "volatility": deviation * math.sqrt(year),
            "sharpe": (mean - rf) / deviation * math.sqrt(year) if deviation > 0 else math.nan,
            "sortino": (mean - rf) / math.sqrt(squares / n) * math.sqrt(year) if squares > 0 and n > 1 else math.nan,
            "calmar": cagr / abs(drawdown - 1) if drawdown < 1 else math.nan,
            "max_drawdown": drawdown - 1,
            "max_drawdown_bars": longest,
            "exposure": sum(self.held) / n,
            "turnover": self.turnover * year / n,
            "fees": self.fees,
            "final_equity": self.equity[-1],
        }

    def of_trades(self) -> dict[str, float]:
        pnl = [trade.pnl for trade in self.closed]
        gains = [trade.gain for trade in self.closed]
        count = len(pnl)
        won = in_order([x for x in pnl if x > 0])
        lost = -in_order([x for x in pnl if x <= 0])
        mean, deviation = mean_and_deviation(pnl, self.rules["cash"])
        return {
            "trades": count,
            "win_rate": sum(x > 0 for x in pnl) / count if count else math.nan,
            "profit_factor": won / lost if lost > 0 else math.inf if won > 0 else math.nan,
            "expectancy": in_order(gains) / count if count else math.nan,
            "sqn": math.sqrt(count) * mean / deviation if deviation > 0 else math.nan,
            "best_trade": max(gains, default=math.nan),
            "worst_trade": min(gains, default=math.nan),
        }


def in_order(values: list[float]) -> float:
    """Their sum, added one after the other (the built-in sum compensates rounding since Python 3.12)."""
    total = 0.0
    for value in values:
        total += value
    return total


def mean_and_deviation(values: list[float], scale: float) -> tuple[float, float]:
    """Mean and sample deviation from the differences to the first value; 0 where all are equal but for rounding."""
    n = len(values)
    if n == 0:
        return math.nan, math.nan
    differences = [value - values[0] for value in values]
    total = in_order(differences)
    mean = values[0] + total / n
    if n == 1:
        return mean, math.nan
    if max(values) - min(values) <= 1e-14 * scale:
        return mean, 0.0
    squares = in_order([difference * difference for difference in differences])
    return mean, math.sqrt(max(squares - total * total / n, 0.0) / (n - 1))
