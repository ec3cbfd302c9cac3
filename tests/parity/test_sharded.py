"""Weights sharded by FSDP2 train, sample and are saved as whole ones are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import FSDP2, run_world, same_rows, same_weights

TRAIN: dict[str, Any] = {
    "steps": 2,
    "tasks_per_step": 3,
    "evaluate_tasks": 1,
    "inner_epochs": 2,
    "planner": {"max_tokens": 24, "kl_weight": 0.1},
    "executor": {"max_tokens": 16},
}
CASES = [
    pytest.param({"train": TRAIN}, id="two adapters"),
    pytest.param({"train": {**TRAIN, "tasks_per_step": 1}}, id="a process without a task"),
    pytest.param({"train": TRAIN, "model": {"weights": "two_models"}}, id="two models"),
    pytest.param(
        {"train": TRAIN, "model": {"gradient_checkpointing": True}}, id="gradient checkpointing"
    ),
]


@pytest.mark.parametrize("values", CASES)
def test_two_processes_with_shards_train_what_one_trains_with_the_whole(
    tmp_path: Path, tiny_backbone: Path, values: dict[str, Any]
) -> None:
    one, two = (jobs.prepare(tmp_path / name, tiny_backbone, values) for name in ("one", "two"))
    [(world, rows)] = run_world(jobs.train, 1, one)
    seen = run_world(jobs.train, 2, two, environment=FSDP2)
    assert (world, [count for count, _ in seen]) == (1, [2, 2])
    for _, theirs in seen:
        same_rows(rows, theirs)
    same_weights(one / "models/cahl", two / "models/cahl")


def test_each_process_holds_half_of_every_layer(tmp_path: Path, tiny_backbone: Path) -> None:
    root = jobs.prepare(tmp_path, tiny_backbone, {})
    [(whole, adapters)] = run_world(jobs.held, 1, root)
    parts = run_world(jobs.held, 2, root, environment=FSDP2)
    assert [2 * layers for layers, _ in parts] == [whole, whole]
    assert [count for _, count in parts] == [adapters, adapters]
