"""Several processes train what one trains: same samples, same rewards, weights equal but for rounding."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import run_world, same_rows, same_weights

TRAIN: dict[str, Any] = {
    "tasks_per_step": 3,
    "curriculum": {"kind": "capability"},
    "inner_epochs": 2,
    "planner": {"max_tokens": 24, "dynamic_sampling": True, "advantage": "batch_std"},
    "executor": {"max_tokens": 16, "kl_weight": 0.1, "entropy_weight": 0.01},
}


@pytest.mark.parametrize(
    ("values", "processes"),
    [
        pytest.param({"train": TRAIN}, 2, id="unequal shares"),
        pytest.param({"train": {**TRAIN, "tasks_per_step": 1}}, 3, id="a process without a task"),
    ],
)
def test_several_processes_train_what_one_trains(
    tmp_path: Path, tiny_backbone: Path, values: dict[str, Any], processes: int
) -> None:
    one, many = (jobs.prepare(tmp_path / name, tiny_backbone, values) for name in ("one", "many"))
    [(world, rows)] = run_world(jobs.train, 1, one)
    seen = run_world(jobs.train, processes, many)
    assert (world, [count for count, _ in seen]) == (1, [processes] * processes)
    for _, theirs in seen:
        same_rows(rows, theirs)
    same_weights(one / "models/cahl", many / "models/cahl")
