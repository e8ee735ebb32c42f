"""How many bars make a year: what every annualised number rests on."""

from __future__ import annotations

import numpy as np

from runner.columns import DAY_NS, Times


def periods_per_year(time: Times) -> float:
    """Bars in a year, read off the times alone.

    Daily bars are 252 a year, or 365 where weekends are traded; intraday bars are the usual number of bars a day times
    that; longer bars 52, 12, 4 or 1. A single bar counts as daily. The wrong guess for an odd calendar is overridden by
    ``Execution(periods_per_year=...)``.
    """
    if len(time) < 2:
        return 252.0
    days_apart = float(np.median(np.diff(time))) / DAY_NS
    if days_apart > 1.5:
        return _long_bars_per_year(365.25 / days_apart)
    days, bars_on = np.unique(time // DAY_NS, return_counts=True)
    per_day = 1.0 if days_apart > 0.75 else float(np.median(bars_on))
    return per_day * (365.0 if _trades_on_weekends(days) else 252.0)


def _long_bars_per_year(observed: float) -> float:
    for usual in (52.0, 12.0, 4.0, 1.0):
        if abs(observed / usual - 1) < 0.2:
            return usual
    return observed


def _trades_on_weekends(days: Times) -> bool:
    weekday = (days + 3) % 7  # 1970-01-01 was a Thursday; 5 and 6 are Saturday and Sunday
    # In UTC a five-day market east of London opens on Sunday, and some hold a rare Saturday session: so both, few gaps.
    both = bool((weekday == 5).any() and (weekday == 6).any())
    return both and len(days) / float(days[-1] - days[0] + 1) > 0.85
