"""Rollouts ahead of the update: how old their weights are, and that a killed run repeats them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rollout_servers import ROOT, ServerProcess
from served_runs import adapters, paid, root, same_bytes, served, server, train

from cahl_core.traces.record import read_traces
from cahl_core.training.trainer import Trainer

__all__ = ["paid", "root", "server"]
AHEAD = {"steps": 5, "tasks_per_step": 1, "checkpoint_every": 2, "evaluate_tasks": 0}


def test_no_staleness_is_the_synchronous_run(root: Path, server: ServerProcess, paid: None) -> None:
    train(root, rollouts=served(server))
    before = adapters(root)
    rows = train(root, rollouts=served(server, asynchronous=True, max_staleness=0))
    assert same_bytes(adapters(root), before)
    assert [row["rollouts/staleness_max"] for row in rows] == [0.0] * 3


@pytest.mark.parametrize(("most", "ages"), [(1, [0, 1, 1, 1, 1]), (2, [0, 1, 2, 2, 2])])
def test_rollouts_are_at_most_so_many_updates_old_and_their_weights_are_known(
    root: Path, server: ServerProcess, paid: None, most: int, ages: list[int]
) -> None:
    rows = train(root, **AHEAD, rollouts=served(server, asynchronous=True, max_staleness=most))
    assert [row["rollouts/staleness_mean"] for row in rows] == ages
    assert [row["rollouts/staleness_max"] for row in rows] == ages
    assert versions(root) == [step - age for step, age in enumerate(ages)]
    # the sampler's numbers are those of the older weights: the gap is what importance weights are for
    gaps = [row["planner/logprob_gap_max"] for row in rows]
    assert gaps[0] < 1e-4 < min(gaps[1:])


def test_an_asynchronous_run_killed_in_an_update_ends_in_the_same_bytes(
    root: Path, server: ServerProcess, paid: None
) -> None:
    rollouts = served(server, asynchronous=True)
    straight = train(root, **AHEAD, rollouts=rollouts)
    before, tasks = adapters(root), traced(root)
    shutil.rmtree(root / "models/cahl")
    shutil.rmtree(root / ".cahl/traces")
    worker = Path(__file__).with_name("served_training_worker.py")
    arguments = [str(root), json.dumps({**AHEAD, "rollouts": rollouts}), "3"]
    killed = subprocess.run(
        [sys.executable, str(worker), *arguments],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()[-2000:]
    assert not (root / "models/cahl").exists()
    rows = train(root, **AHEAD, rollouts=rollouts)
    assert [r["rollouts/staleness_max"] for r in rows] == [0, 1, 1, 1, 1]
    assert [r["sampled_tokens"] for r in rows] == [r["sampled_tokens"] for r in straight]
    assert traced(root) == tasks
    assert same_bytes(adapters(root), before)


def test_what_was_in_flight_is_sampled_anew_where_its_weights_are_gone(
    root: Path, server: ServerProcess, paid: None, capsys: pytest.CaptureFixture[str]
) -> None:
    rollouts = served(server, asynchronous=True)
    train(root, **AHEAD, rollouts=rollouts)
    tasks = traced(root)
    shutil.rmtree(root / ".cahl/traces")
    real = Trainer._collect

    def interrupted(self: Trainer, number: int) -> Any:
        if number == 3:
            raise KeyboardInterrupt  # whatever signals this process was started with
        return real(self, number)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "_collect", interrupted)
        train(root, **AHEAD, rollouts=rollouts)
    for folder in (root / ".cahl/train").rglob("adapters/v*"):
        shutil.rmtree(folder)
    rows = train(root, **AHEAD, rollouts=rollouts)
    assert [r["rollouts/staleness_max"] for r in rows] == [0, 1, 1, 0, 1]
    assert "is sampled with the current ones" in capsys.readouterr().err
    assert traced(root) == tasks


def versions(root: Path) -> list[int]:
    """What the traces say that each step's first plan was sampled with (one task a step)."""
    found = read_traces(root)
    return [r["plans"][0]["sample"]["version"] for r in found]


def traced(root: Path) -> list[str]:
    """The tasks that were learnt from, in order."""
    return [record["task"]["id"] for record in read_traces(root)]
