"""A run that is killed at any point and started again leaves the bytes of one that was not.

``CAHL_KILLS`` sets how many SIGKILLs (docs/toy-world.md has 200, this fewer).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HARNESS = Path(__file__).with_name("kill_harness.py")
KILLS = int(os.environ.get("CAHL_KILLS", "24"))

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    work = tmp_path_factory.mktemp("kill")
    options = ["--kills", str(KILLS), "--work", str(work), "--report", str(work / "report.json")]
    command = [sys.executable, str(HARNESS), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (work / "report.json").exists(), done.stderr[-4000:]
    return dict(json.loads((work / "report.json").read_text()))


def test_killed_runs_leave_the_bytes_and_the_tasks_of_a_straight_one(
    report: dict[str, Any],
) -> None:
    assert report["problems"] == []
    assert report["kills"] >= KILLS
    assert sum(report["campaigns"].values()) >= 1


def test_kills_hit_half_written_files_and_damaged_checkpoints_are_passed_over(
    report: dict[str, Any],
) -> None:
    assert set(report["stops"]) == {"clock", "file event", "term"}
    assert set(report["where"]) - {"elsewhere"}
    assert report["passed_over"] >= 1
