"""Cross-play: the planner of one snapshot with the executor of another (method, section 7).

If planner and executor adapt to one another, a pair of the same step does better than a planner with an
executor of another step; if they only get better each for itself, rows and columns explain everything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# The planner's texts by snapshot step, by prompt.
Plans = dict[tuple[int, ...], Any]


class Crossed:
    """Plans of one snapshot, executions of another.

    Greedy plans depend on the prompt alone: they are sampled once per snapshot, with the executor of
    the same one, and taken from ``plans`` with every other.
    """

    def __init__(self, source: Any, plans: Plans) -> None:
        self.policy = source.policy
        self._source = source
        self._plans = plans

    def generate(self, prompts: Sequence[Sequence[int]], role: str, **options: Any) -> Any:
        if role != "planner":
            return self._source.generate(prompts, role, **options)
        missing = [p for p in prompts if tuple(p) not in self._plans]
        if missing:
            options["seeds"] = [str(i) for i in range(len(missing))]  # greedy: nothing is drawn
            done = self._source.generate(missing, role, **options)
            self._plans |= {tuple(p): made for p, made in zip(missing, done, strict=True)}
        return [self._plans[tuple(p)] for p in prompts]


def steps_of(folder: Path) -> list[int]:
    """The steps of the snapshots below ``folder``."""
    names = [p.name for p in folder.glob("step-*")]
    return sorted(int(name.removeprefix("step-")) for name in names)


def pick(steps: Sequence[int], count: int) -> list[int]:
    """At most ``count`` of the steps, evenly spaced, the first and the last among them.

    >>> pick([0, 5, 10, 15, 20, 23], 3)
    [0, 10, 23]
    """
    if len(steps) <= count:
        return list(steps)
    places = np.linspace(steps[0], steps[-1], count)
    return sorted({min(steps, key=lambda s: (abs(s - p), s)) for p in places})


def play(
    steps: Sequence[int],
    load: Callable[[int], Any],
    run: Callable[[Any], list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """The outcomes of every pair, with ``planner`` and ``executor`` as steps.

    Args:
        load: the models of one step; one is held at a time, each is loaded twice.
        run: greedy outcomes of the fixed tasks.
    """
    plans: dict[int, Plans] = {step: {} for step in steps}
    for step in steps:
        for outcome in run(Crossed(load(step), plans[step])):
            yield {"planner": step, "executor": step, **outcome}
    for executor in steps:
        source = load(executor)
        for planner in (s for s in steps if s != executor):
            for outcome in run(Crossed(source, plans[planner])):
                yield {"planner": planner, "executor": executor, **outcome}


@dataclass(frozen=True)
class Matrix:
    """Mean of a measure per pair of snapshots, over tasks, then over seeds.

    Attributes:
        positions: labels of the snapshots: the number among the snapshots taken, from 0.
        steps: per seed the steps they were taken at; runs that a budget ends differ in them.
        values: ``[planner, executor]``.
        by_seed: ``[seeds, planner, executor]``.
    """

    seeds: tuple[int, ...]
    positions: tuple[int, ...]
    steps: dict[int, list[int]]
    values: NDArray[np.float64]
    by_seed: NDArray[np.float64]


def matrix(by_seed: Mapping[int, Sequence[Mapping[str, Any]]], name: str) -> Matrix | None:
    """The matrix of one outcome key; ``None`` where no two snapshots were crossed.

    Seeds with fewer snapshots than the others are left out, so that positions mean the same.
    """
    steps = {s: sorted({o["planner"] for o in found}) for s, found in by_seed.items()}
    size = max((len(s) for s in steps.values()), default=0)
    seeds = tuple(sorted(s for s in steps if len(steps[s]) == size))
    if size < 2:
        return None
    tables = np.stack([_table(by_seed[s], steps[s], name) for s in seeds])
    kept = {s: steps[s] for s in seeds}
    return Matrix(seeds, tuple(range(size)), kept, tables.mean(axis=0), tables)


def _table(
    outcomes: Sequence[Mapping[str, Any]], steps: Sequence[int], name: str
) -> NDArray[np.float64]:
    total, count = np.zeros((len(steps), len(steps))), np.zeros((len(steps), len(steps)))
    for outcome in outcomes:
        if not outcome["void"]:
            place = steps.index(outcome["planner"]), steps.index(outcome["executor"])
            total[place] += outcome[name]
            count[place] += 1
    out = np.full_like(total, np.nan)
    return np.divide(total, count, out=out, where=count > 0)


def diagonal_gain(table: NDArray[np.float64]) -> dict[str, float]:
    """Means on and off the diagonal, and the interaction.

    ``interaction`` is the mean on the diagonal after taking out row and column means (double centring):
    a planner that is better with every executor, or the reverse, does not count as alignment.

    >>> diagonal_gain(np.array([[1.0, 0.0], [0.0, 1.0]]))["interaction"]
    0.5
    >>> diagonal_gain(np.array([[0.0, 1.0], [1.0, 2.0]]))["interaction"]  # only better each for itself
    0.0
    """
    on = np.eye(len(table), dtype=bool)
    centred = table - table.mean(axis=1, keepdims=True) - table.mean(axis=0) + table.mean()
    return {
        "diagonal": float(table[on].mean()),
        "off_diagonal": float(table[~on].mean()),
        "gap": float(table[on].mean() - table[~on].mean()),
        "interaction": float(centred[on].mean()),
    }
