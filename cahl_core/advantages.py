"""Group-relative advantages: a reward compared with the other samples of the same prompt."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

EPSILON = 1e-6
KINDS = ("group_std", "group_mean", "leave_one_out", "batch_std")


def group_advantages(
    rewards: ArrayLike, kind: str = "group_std", deviation: float | None = None
) -> NDArray[np.float64]:
    """Advantages of one group of ``[G]`` rewards; equal rewards give exact zeros.

    - ``group_std``: (r - mean) / (the group's population standard deviation + 1e-6), as in GRPO
      (arXiv 2402.03300);
    - ``group_mean``: r - mean, as in Dr. GRPO (arXiv 2503.20783);
    - ``leave_one_out``: r_i - mean of the others = G / (G - 1) (r_i - mean), unbiased, as in RLOO
      (arXiv 2402.14740);
    - ``batch_std``: (r - mean) / (``deviation`` + 1e-6), the batch's deviation, which does not blow up
      groups that hardly differ, as in REINFORCE++ (arXiv 2501.03262).

    Args:
        deviation: for ``batch_std``: `batch_deviation` of all rewards of the role's batch.

    >>> group_advantages([1.0, 3.0], "group_mean").tolist()
    [-1.0, 1.0]
    >>> group_advantages([0.0, 0.0, 3.0], "leave_one_out").tolist()
    [-1.5, -1.5, 3.0]
    """
    if kind not in KINDS:
        raise ValueError(f"advantage kind {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "batch_std" and deviation is None:
        raise ValueError("advantage kind 'batch_std' needs the batch's deviation")
    values = np.asarray(rewards, dtype=np.float64)
    if zero_variance(values):
        return np.zeros_like(values)
    centred: NDArray[np.float64] = values - values.mean()
    if kind == "group_mean":
        return centred
    if kind == "leave_one_out":
        return centred * (values.size / (values.size - 1))
    scale = deviation if kind == "batch_std" else float(values.std())
    return centred / ((scale or 0.0) + EPSILON)


def batch_deviation(total: float, total_of_squares: float, count: float) -> float:
    """Population standard deviation of ``count`` rewards from their sums, which add over processes.

    >>> batch_deviation(4.0, 10.0, 2)  # of 1 and 3
    1.0
    """
    if count <= 0:
        return 0.0
    mean = total / count
    return math.sqrt(max(0.0, total_of_squares / count - mean * mean))


def zero_variance(rewards: ArrayLike) -> bool:
    """Whether a group carries no signal: all its rewards are equal (to 1e-9)."""
    values = np.asarray(rewards, dtype=np.float64)
    return bool(values.size < 2 or np.ptp(values) < 1e-9)
