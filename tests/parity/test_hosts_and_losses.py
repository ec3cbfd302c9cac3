"""Processes of several hosts need no shared files; one that is lost does not leave the others hanging."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import run_world, same_rows, same_weights

TRAIN: dict[str, Any] = {
    "train": {
        "tasks_per_step": 3,
        "evaluate_tasks": 0,
        "planner": {"max_tokens": 16},
        "executor": {"max_tokens": 8},
    }
}


def test_hosts_without_a_shared_file_system_go_on_from_rank_0s_checkpoint(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    one, here, there = (
        jobs.prepare(tmp_path / name, tiny_backbone, TRAIN) for name in ("one", "here", "there")
    )
    [(_, rows)] = run_world(jobs.train, 1, one)
    assert run_world(jobs.train_on_hosts, 2, [here, there], 2) == ["stopped", "stopped"]
    assert list((here / ".cahl").rglob("step-000002"))
    assert not list(there.rglob("step-*"))
    seen = run_world(jobs.train_on_hosts, 2, [here, there])
    for world, theirs in seen:
        assert world == 2
        same_rows(rows, theirs)
    same_weights(one / "models/cahl", here / "models/cahl")
    assert not (there / "models/cahl").exists()  # rank 0's host has the results


def test_hosts_with_different_inputs_are_told_so(tmp_path: Path, tiny_backbone: Path) -> None:
    here, there = (jobs.prepare(tmp_path / n, tiny_backbone, TRAIN) for n in ("here", "there"))
    with (there / "data/prepared/train.jsonl").open("a") as stream:
        stream.write("\n")
    for error in run_world(jobs.train_on_hosts, 2, [here, there]):
        assert "StageInputError: the processes differ in settings and inputs" in str(error)


def test_where_a_process_died_the_others_end_with_an_error(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    root = jobs.prepare(tmp_path, tiny_backbone, TRAIN)
    left, lost = run_world(jobs.lose_one, 2, root, "dies")
    assert lost == 9
    assert "TrainingError: this process could not" in str(left)
    assert "goes on from its last checkpoint" in str(left)
    assert list((root / ".cahl").rglob("step-000001"))


def test_a_process_that_hangs_is_waited_for_so_long_and_no_longer(
    tmp_path: Path, tiny_backbone: Path
) -> None:
    seconds = "8"
    root = jobs.prepare(tmp_path, tiny_backbone, TRAIN)
    left, _ = run_world(
        jobs.lose_one, 2, root, "hangs", environment={"CAHL_PROCESS_TIMEOUT": seconds}
    )
    assert f"took longer than {seconds} s (CAHL_PROCESS_TIMEOUT)" in str(left)
