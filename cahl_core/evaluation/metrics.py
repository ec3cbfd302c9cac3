"""The interval of a proportion. What a call or a plan counts as: `cahl_core.call_metrics`."""

from __future__ import annotations

import math

Z95 = 1.959963984540054


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
