"""How long to wait before asking again: exponentially longer, with jitter, or as the server says."""

from __future__ import annotations

import random
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits of ``first · 2ⁿ`` seconds up to ``most``, each shortened by up to half at random.

    The jitter keeps clients that failed together from coming back together. Its draws are this
    object's own: no generator of the program is touched.
    """

    first: float = 0.2
    most: float = 10.0
    draws: random.Random = field(default_factory=random.Random)

    def delay(self, attempt: int, asked: float | None = None) -> float:
        """Seconds before attempt ``attempt + 1``; never less than the server ``asked`` for.

        >>> 0.4 <= Backoff(first=0.2).delay(2) <= 0.8
        True
        >>> Backoff().delay(0, asked=3.0) >= 3.0
        True
        """
        longest = min(self.most, self.first * 2.0 ** min(attempt, 30))
        own = longest * self.draws.uniform(0.5, 1.0)
        return own if asked is None else asked + min(own, 1.0)
