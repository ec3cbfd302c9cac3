"""Group-relative advantages: a reward compared with the other samples of the same prompt."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-6


def group_advantages(rewards: ArrayLike, kind: str = "group_std") -> NDArray[np.float64]:
    """Advantages of one group of ``[G]`` rewards.

    ``group_std``: (r - mean) / (population standard deviation + 1e-6), as in GRPO.
    ``group_mean``: r - mean, as in Dr. GRPO. Equal rewards give exact zeros.

    >>> group_advantages([1.0, 3.0], "group_mean").tolist()
    [-1.0, 1.0]
    """
    values = np.asarray(rewards, dtype=np.float64)
    if zero_variance(values):
        return np.zeros_like(values)
    centred: NDArray[np.float64] = values - values.mean()
    if kind == "group_mean":
        return centred
    if kind == "group_std":
        scaled: NDArray[np.float64] = centred / (values.std() + EPSILON)
        return scaled
    raise ValueError(f"advantage kind {kind!r} is not one of group_std, group_mean")


def zero_variance(rewards: ArrayLike) -> bool:
    """Whether a group carries no signal: all its rewards are equal (to 1e-9)."""
    values = np.asarray(rewards, dtype=np.float64)
    return bool(values.size < 2 or np.ptp(values) < 1e-9)
