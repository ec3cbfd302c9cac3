"""Fixtures around `stub_project`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from stub_project import DVC_YAML, QUIET, STUB, dvc, run

from pipelines.checks import SUITES


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git and DVC repository with three stages and nothing computed yet."""
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)
    for key in ("MLFLOW_TRACKING_URI", "DAGSTER_HOME", "CAHL_ROOT"):
        monkeypatch.delenv(key, raising=False)
    root = tmp_path / "project"
    (root / "configs").mkdir(parents=True)
    (root / "dvc.yaml").write_text(DVC_YAML.replace("PYTHON", sys.executable))
    (root / "stub.py").write_text(STUB)
    (root / "source.txt").write_text("a\nb\n")
    suites = {name: {"results": []} for name in SUITES}
    (root / "expectations.json").write_text(json.dumps({"success": True, "suites": suites}))
    (root / "contamination.json").write_text('{"benchmarks": {}, "not_checked": []}')
    (root / "params.yaml").write_text("profile: quick\nprepare: {seed: 0}\n")
    (root / "configs/quick.yaml").write_text("prepare: {rows: 2}\ntrain: {steps: 2}\n")
    (root / ".gitignore").write_text("/.cahl/\n/executions.log\n/.dagster/\n/mlflow.db\n")
    (root / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    run("git", "init", "-q", ".", cwd=root)
    dvc("init", "-q", cwd=root)
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-qm", "start", cwd=root)
    return root


@pytest.fixture
def executions(project: Path) -> Callable[[], list[str]]:
    """The stages that really ran so far, in order."""
    log = project / "executions.log"
    return lambda: log.read_text().split() if log.exists() else []


@pytest.fixture
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project as working directory, as for a user."""
    monkeypatch.chdir(project)
    return project
