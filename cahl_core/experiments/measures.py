"""What the tables show: every measure is a ratio of sums over runs (`outcomes`), per seed and task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cahl_core.experiments.statistics import Observations


@dataclass(frozen=True)
class Measure:
    """``top`` and ``bottom`` are keys of an outcome; ``better`` is 1 if more is better, else -1."""

    heading: str
    top: str
    bottom: str
    better: int
    binary: bool = False


MEASURES = {
    "reward": Measure("reward", "reward", "runs", 1),
    "success": Measure("success", "success", "runs", 1, binary=True),
    "plan_validity": Measure("plan validity", "plan_valid", "plans", 1, binary=True),
    "adherence": Measure("plan adherence", "adherent", "executed", 1),
    "sub_task_solve_rate": Measure("sub-task solve rate", "sub_solved", "sub_judged", 1),
    "calls_per_solved_task": Measure("calls per solved task", "solved_calls", "success", -1),
    "invalid_call_rate": Measure("invalid calls", "invalid", "attempted", -1),
    "redundant_call_rate": Measure("redundant calls", "redundant", "calls", -1),
    "planner_reward": Measure("planner reward", "planner_reward", "plans", 1),
    "executor_reward": Measure("executor reward", "executor_reward", "executor_rewards", 1),
}


def observations(
    by_seed: Mapping[int, Sequence[Mapping[str, Any]]], tasks: Sequence[str], name: str
) -> Observations:
    """Sums per seed and task of one measure; void runs are no observations."""
    measure = MEASURES[name]
    seeds = sorted(by_seed)
    numerator = np.zeros((len(seeds), len(tasks)))
    denominator = np.zeros_like(numerator)
    column = {task: i for i, task in enumerate(tasks)}
    for row, seed in enumerate(seeds):
        for outcome in by_seed[seed]:
            if not outcome["void"]:
                numerator[row, column[outcome["task"]]] += outcome[measure.top]
                denominator[row, column[outcome["task"]]] += outcome[measure.bottom]
    return Observations(numerator, denominator, tuple(seeds), tuple(tasks), measure.binary)
