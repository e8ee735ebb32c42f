"""Back-adjustment: raw prices with their splits and dividends become a series in which these moved nothing."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from runner.columns import PRICES, Flags, Floats, Times, shown_time
from runner.errors import BarsError, InputError

FACTORS = ("split", "dividend")
ADJUSTMENTS = ("none", "splits", "all")


def adjusted(time: Times, columns: Mapping[str, Floats], how: str) -> dict[str, Floats]:
    """The columns with earlier prices put on the last bar's footing, without `split` and `dividend`.

    With split s[i] (shares a holder has from bar i on for each one before, 1 when none), cash dividend d[i] a share
    with ex-date i (0 when none) and raw prices, an event on bar i multiplies the bars before it alone::

        prices by 1 / s[i], with how="all" also by 1 - d[i] s[i] / close[i - 1]
        volume by s[i]

    so that the adjusted close grows on bar i by s close[i] / (close[i - 1] - d s): what a holder earned who put the
    dividend back into the share. The last bar keeps its prices. It is the back-adjustment of the Center for Research in
    Security Prices (CRSP), as Yahoo and Tiingo publish it; d counts per share after a split of the same day, hence d s.

    Args:
        time: int64[n], nanoseconds since 1970 UTC, for error messages.
        columns: float64[n] by name. A missing factor column is one without events; whatever is neither a price, volume
            nor a factor is handed through.
        how: "none", "splits" or "all".

    Raises:
        InputError: another `how`.
        BarsError: a split that is not above 0, or a dividend below 0 or as large as the price that it was paid from.
    """
    if how not in ADJUSTMENTS:
        raise InputError(f"adjust={how!r}: expected {', '.join(map(repr, ADJUSTMENTS))}.")
    kept = {name: column for name, column in columns.items() if name not in FACTORS}
    split, dividend = (columns.get(name) for name in FACTORS)
    if how == "none" or (split is None and dividend is None):
        return kept
    splits = np.ones(len(time)) if split is None else split
    _refuse(~(np.isfinite(splits) & (splits > 0)), time, splits, "split", "a factor above 0, 1 when there is none")
    price = 1 / splits
    if how == "all" and dividend is not None:
        price *= _kept_after_dividend(time, splits, dividend, columns["close"])
    before, shares = _of_later_bars(price), _of_later_bars(splits)
    scale = {**dict.fromkeys(PRICES, before), "volume": shares}
    return {name: column * scale[name] if name in scale else column for name, column in kept.items()}


def _kept_after_dividend(time: Times, splits: Floats, dividend: Floats, close: Floats) -> Floats:
    _refuse(~(np.isfinite(dividend) & (dividend >= 0)), time, dividend, "dividend", "0 or more, 0 when there is none")
    kept = np.ones(len(time))
    kept[1:] -= dividend[1:] * splits[1:] / close[:-1]
    _refuse(kept <= 0, time, dividend, "dividend", "less than the close before it")
    return kept


def _of_later_bars(factor: Floats) -> Floats:
    """At each bar the product over all bars after it."""
    product = np.ones(len(factor))
    product[:-1] = np.cumprod(factor[:0:-1])[::-1]
    return product


def _refuse(bad: Flags, time: Times, column: Floats, name: str, expected: str) -> None:
    if bad.any():
        at = int(bad.argmax())
        raise BarsError(f"{name} is {float(column[at])!r} at {shown_time(time[at])}: expected {expected}.")
