"""Intervals that evaluation and experiments share. What a call counts as: `cahl_core.call_metrics`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Z95 = 1.959963984540054
ROUNDS = 10_000  # resamples of a bootstrap
SEED = 20260609
LEVEL = 0.95
MAX_UNDEFINED = 0.05  # share of resamples without a denominator above which no interval is given
ROUNDING = 1e-12

Array = NDArray[np.float64]
Method = Literal["bootstrap", "wilson", "none"]


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion; ``(0, 1)`` without observations.

    >>> [round(x, 3) for x in wilson(14, 64)]
    [0.135, 0.334]
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (middle - half if successes else 0.0), (middle + half if successes < n else 1.0)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: ``None`` where nothing was observed.
        low, high: ``None`` where no interval can be given; ``note`` says why.
        over: the factors that were resampled.
        method: ``wilson`` where all outcomes are equal, so that a bootstrap has no width.
    """

    value: float | None
    low: float | None
    high: float | None
    over: tuple[str, ...]
    method: Method
    note: str = ""

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def percentiles(value: float, draws: Array, over: tuple[str, ...]) -> Interval:
    """The percentile interval of resampled values ``[rounds]``; NaN is a resample without observation."""
    if not over:
        return Interval(value, None, None, over, "none", "one seed and one task have no spread")
    undefined = float(np.isnan(draws).mean())
    if undefined > MAX_UNDEFINED:
        note = f"{undefined:.0%} of the resamples have no observation"
        return Interval(value, None, None, over, "none", note)
    if np.nanmax(draws) - np.nanmin(draws) <= ROUNDING * max(1.0, abs(value)):
        return Interval(value, None, None, over, "none", "all outcomes are equal: no spread to see")
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(draws, [tail, 1 - tail])
    return Interval(value, float(low), float(high), over, "bootstrap")
