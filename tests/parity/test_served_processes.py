"""Two training processes on one rollout server train what one does, also ahead of the update."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import run_world, same_rows, same_weights


@pytest.fixture(scope="module")
def url(tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from rollout_servers import ServerProcess
    from small_project import SMALL

    work = tmp_path_factory.mktemp("server")
    with ServerProcess(tiny_backbone, work, SMALL["model"], "--batch", "1") as server:
        yield server.url


@pytest.mark.parametrize("staleness", [0, 1])
def test_two_processes_train_what_one_trains(
    tmp_path: Path, tiny_backbone: Path, url: str, staleness: int
) -> None:
    train: dict[str, Any] = {
        "tasks_per_step": 3,
        "max_refills": 2,
        "planner": {"max_tokens": 24, "dynamic_sampling": True},
        "rollouts": {"servers": [url], "asynchronous": True, "max_staleness": staleness},
    }
    one, two = (
        jobs.prepare(tmp_path / name, tiny_backbone, {"train": train}) for name in ("one", "two")
    )
    [(world, rows)] = run_world(jobs.train, 1, one)
    seen = run_world(jobs.train, 2, two)
    assert (world, [count for count, _ in seen]) == (1, [2, 2])
    for _, theirs in seen:
        same_rows(rows, theirs)
    assert [row["rollouts/staleness_mean"] for row in rows] == [0, staleness, staleness]
    same_weights(one / "models/cahl", two / "models/cahl")
