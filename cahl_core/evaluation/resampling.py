"""The bootstrap over items: how often each is drawn, and sums of drawn items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from cahl_core.evaluation.metrics import ROUNDS, SEED, Array

CHUNK = 2_000_000  # drawn items held at one time


class Table(NamedTuple):
    """Sums per item and measure: ``top`` and ``bottom`` are ``[items, measures]``."""

    names: list[str]
    top: Array
    bottom: Array


def draws(items: int, rounds: int = ROUNDS) -> Iterator[Array]:
    """How often each item is drawn, ``[part of rounds, items]`` at a time; the same for the same sizes."""
    generator = np.random.default_rng([SEED, items])
    step = max(1, CHUNK // max(items, 1))
    for start in range(0, rounds, step):
        part = min(step, rounds - start)
        drawn = generator.integers(0, items, (part, items), dtype=np.int64)
        drawn += np.arange(part)[:, None] * items
        counts = np.bincount(drawn.ravel(), minlength=part * items)
        yield counts.reshape(part, items).astype(float)


def resampled(table: Table, rounds: int = ROUNDS) -> Array:
    """Every measure in every resample, ``[rounds, measures]``; NaN where its denominator is 0."""
    sums = np.concatenate([table.top, table.bottom], axis=1)
    drawn = np.concatenate([part @ sums for part in draws(len(sums), rounds)])
    return ratio(*np.split(drawn, 2, axis=1))


def ratio(top: Array, bottom: Array) -> Array:
    """The quotient, NaN where nothing was observed."""
    out = np.full(top.shape, np.nan)
    np.divide(top, bottom, out=out, where=bottom > 0)
    return out
