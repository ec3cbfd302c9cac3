"""A checkpoint belongs to no number of processes: another number goes on from it, sharded or not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import FSDP2, run_world, same_rows, same_weights

TRAIN: dict[str, Any] = {
    "steps": 3,
    "tasks_per_step": 3,
    "evaluate_tasks": 0,
    "planner": {"max_tokens": 24, "kl_weight": 0.1},
    "executor": {"max_tokens": 16},
}


@pytest.mark.parametrize(
    ("weights", "environment"),
    [("two_adapters", {}), ("two_adapters", FSDP2), ("two_models", FSDP2)],
    ids=["two adapters", "two adapters, sharded", "two models, sharded"],
)
@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_processes(
    tmp_path: Path,
    tiny_backbone: Path,
    weights: str,
    environment: dict[str, str],
    first: int,
    then: int,
) -> None:
    """It ends with the weights of the run that one process did from start to end."""
    values = {"model": {"weights": weights}, "train": TRAIN}
    whole, cut = (jobs.prepare(tmp_path / name, tiny_backbone, values) for name in ("whole", "cut"))
    [(_, rows)] = run_world(jobs.train, 1, whole)
    kinds: dict[int, dict[str, str]] = {1: {}, 2: environment}
    assert run_world(jobs.train_then_stop, first, cut, 2, environment=kinds[first]) == (
        ["stopped"] * first
    )
    assert list((cut / ".cahl").rglob("step-000002"))
    seen = run_world(jobs.train, then, cut, environment=kinds[then])
    assert [count for count, _ in seen] == [then] * then
    same_rows(rows, seen[0][1])
    same_weights(whole / "models/cahl", cut / "models/cahl")
