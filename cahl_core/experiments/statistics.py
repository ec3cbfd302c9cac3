"""95 % intervals by bootstrap over seeds and tasks, and paired differences between arms.

Every arm is evaluated on the same tasks with the same seeds, so the two factors are crossed: a
resample draws seeds with replacement and, independently, tasks with replacement, and takes every drawn
seed on every drawn task (the "pigeonhole" bootstrap of Owen, 2007; Efron & Tibshirani, 1993, for the
percentile interval). Two arms are compared on the same draws, which is the paired bootstrap.

All measures are ratios of sums (a mean has a denominator of 1 per task), so one code serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from cahl_core.evaluation.metrics import (
    LEVEL,
    ROUNDS,
    SEED,
    Array,
    Interval,
    percentiles,
    wilson,
)

__all__ = [
    "LEVEL", "ROUNDS", "Interval", "Observations", "difference", "estimate", "multiplicities", "ratio"
]  # fmt: skip


@dataclass(frozen=True)
class Observations:
    """What one arm did: sums per seed and task.

    Attributes:
        numerator, denominator: ``[seeds, tasks]``; a denominator of 0 is no observation.
        seeds, tasks: labels of rows and columns.
        binary: the numerator is 0 or the denominator (solved or not).
    """

    numerator: Array
    denominator: Array
    seeds: tuple[int, ...]
    tasks: tuple[str, ...]
    binary: bool = False

    def only(self, seeds: Sequence[int], tasks: Sequence[str]) -> Observations:
        """The part with these labels, in this order."""
        picked = np.ix_(
            [self.seeds.index(s) for s in seeds], [self.tasks.index(t) for t in tasks]
        )  # fmt: skip
        return Observations(
            self.numerator[picked],
            self.denominator[picked],
            tuple(seeds),
            tuple(tasks),
            self.binary,
        )


def estimate(seen: Observations, rounds: int = ROUNDS) -> Interval:
    """The ratio of sums with its percentile interval.

    >>> ones = np.ones((2, 4))
    >>> seen = Observations(np.array([[1.0, 0, 1, 0]] * 2), ones, (0, 1), ("a", "b", "c", "d"))
    >>> interval = estimate(seen)
    >>> interval.value, interval.low, interval.high
    (0.5, 0.0, 1.0)
    """
    value = ratio(seen)
    over = _factors(seen)
    if value is None:
        return Interval(None, None, None, over, "none", "nothing was observed")
    if seen.binary and value in (0.0, 1.0):
        observed = int((seen.denominator.sum(axis=0) > 0).sum())
        low, high = wilson(round(value * observed), observed)
        note = "all outcomes are equal: Wilson's interval over the tasks"
        return Interval(value, low, high, ("tasks",), "wilson", note)
    return _percentiles(value, _resampled(seen, rounds), over)


def difference(one: Observations, other: Observations, rounds: int = ROUNDS) -> Interval:
    """``one`` less ``other`` on the seeds and tasks that both have, on the same resamples."""
    seeds = [s for s in one.seeds if s in other.seeds]
    tasks = [t for t in one.tasks if t in other.tasks]
    one, other = one.only(seeds, tasks), other.only(seeds, tasks)
    first, second = ratio(one), ratio(other)
    over = _factors(one)
    if first is None or second is None:
        return Interval(None, None, None, over, "none", "nothing in common was observed")
    draws = _resampled(one, rounds) - _resampled(other, rounds)
    return _percentiles(first - second, draws, over)


@lru_cache(maxsize=32)
def multiplicities(seeds: int, tasks: int, rounds: int) -> tuple[Array, Array]:
    """How often each seed ``[rounds, seeds]`` and each task ``[rounds, tasks]`` is drawn.

    A single seed is always drawn once: then only tasks are resampled.
    """
    generator = np.random.default_rng([SEED, seeds, tasks])
    drawn_seeds = generator.multinomial(seeds, np.full(seeds, 1 / seeds), size=rounds)
    drawn_tasks = generator.multinomial(tasks, np.full(tasks, 1 / tasks), size=rounds)
    return drawn_seeds.astype(float), drawn_tasks.astype(float)


def _resampled(seen: Observations, rounds: int) -> Array:
    """The ratio in every resample, NaN where its denominator is 0."""
    by_seed, by_task = multiplicities(*seen.numerator.shape, rounds)
    top = ((by_seed @ seen.numerator) * by_task).sum(axis=1)
    bottom = ((by_seed @ seen.denominator) * by_task).sum(axis=1)
    out = np.full(rounds, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out


def _percentiles(value: float, draws: Array, over: tuple[str, ...]) -> Interval:
    found = percentiles(value, draws, over)
    alone = found.method == "bootstrap" and "seeds" not in over
    return replace(found, note="one seed: over tasks only") if alone else found


def ratio(seen: Observations) -> float | None:
    """The ratio of sums; ``None`` without an observation."""
    bottom = float(seen.denominator.sum())
    return float(seen.numerator.sum()) / bottom if bottom > 0 else None


def _factors(seen: Observations) -> tuple[str, ...]:
    seeds, tasks = seen.numerator.shape
    return (*(["seeds"] * (seeds > 1)), *(["tasks"] * (tasks > 1)))
