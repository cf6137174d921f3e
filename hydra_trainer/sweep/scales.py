"""How numbers are laid out on an axis: evenly or by powers of ten, and where it ends."""

import math
from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any, NamedTuple

DECADE = 8  # largest by smallest value, from which on powers of ten may fit better
FENCE = 4.0  # times the distance between the quartiles: what lies further out is off the axis
ENOUGH = 8  # values from which on some can be told to be far out


class Scale(NamedTuple):
    log: bool
    low: float
    high: float


def is_number(given: Any) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)


def is_spread(values: Sequence[float]) -> bool:
    return len(set(values)) > 1


def log_fits(values: Sequence[float]) -> bool:
    """Tell whether powers of ten show values better: their middle is nearer to the axis' then."""
    low, high = min(values), max(values)
    if low <= 0 or high < DECADE * low:
        return False
    middle = median(set(values))  # 16, 32, 64, 128 are even steps, however often each one is there
    even = (middle - low) / (high - low)
    by_powers = math.log(middle / low) / math.log(high / low)
    return abs(by_powers - 0.5) < abs(even - 0.5)


def scale(values: Sequence[float], worst: str = "") -> Scale:
    """Return the axis for values, at least one.

    `worst` is the end, "high" or "low", at which a few values that lie far out may be off the axis:
    one job that diverged must not press all others into a line.
    """
    log = log_fits(values)
    kept = sorted(_kept(values, worst, log))
    return Scale(log, *_apart(kept[0], kept[-1]))


def _kept(values: Sequence[float], worst: str, log: bool) -> Sequence[float]:
    if not worst or len(values) < ENOUGH:
        return values
    moved = [math.log(value) if log else value for value in values]
    quarter, _, three = quantiles(moved)
    reach = FENCE * (three - quarter)
    if worst == "high":
        return [value for value, at in zip(values, moved, strict=True) if at <= three + reach]
    return [value for value, at in zip(values, moved, strict=True) if at >= quarter - reach]


def _apart(low: float, high: float) -> tuple[float, float]:
    """Return ends that differ, for an axis of one value."""
    if low < high:
        return low, high
    return (low * 0.9, low * 1.1) if low > 0 else (low - 1.0, low + 1.0)
