"""MLflow: what a run leaves there, and what happens when it cannot."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from stub_project import dvc

from cahl_core.config import Settings, TrackingSettings
from cahl_core.errors import RegistryError
from cahl_core.lineage import locked_sums
from cahl_core.tracking import Tracker, tracking_uri


def runs(root: Path) -> dict[str, Run]:
    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    found = client.search_runs([e.experiment_id for e in client.search_experiments()])
    return {run.data.tags.get("cahl.stage", "pipeline"): run for run in found}


@pytest.fixture
def tracked(project: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STUB_TRACKS", "1")
    return project


def test_a_dvc_run_is_one_parent_with_a_child_per_stage(tracked: Path) -> None:
    dvc("repro", "-q", "train", cwd=tracked)
    found = runs(tracked)
    assert set(found) == {"pipeline", "prepare", "train"}
    parent, train = found["pipeline"], found["train"]
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert parent.data.tags["cahl.pipeline"].startswith("dvc:")
    assert train.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert found["prepare"].data.tags["mlflow.parentRunId"] == parent.info.run_id
    locked = locked_sums(tracked)
    assert train.data.tags["dvc.out.models/m"] == locked["models/m"]
    assert train.data.metrics["loss"] == 0.5
    assert "bad" not in train.data.metrics
    assert train.data.params["train.steps"] == str(Settings().train.steps)
    assert [i.dataset.name for i in train.inputs.dataset_inputs] == ["prepared"]


def test_a_failed_stage_is_a_failed_run(tracked: Path) -> None:
    (tracked / "configs/quick.yaml").write_text("prepare: {rows: 2}\ntrain: {steps: 13}\n")
    dvc("repro", "-q", "prepare", cwd=tracked, STUB_TRACKS="")
    assert dvc("repro", "-q", "train", cwd=tracked, check=False).returncode != 0
    found = runs(tracked)
    assert found["train"].info.status == "FAILED"
    assert found["pipeline"].info.status == "FAILED"


def test_a_relative_sqlite_path_is_below_the_root_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(tmp_path, Settings()) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert tracking_uri(tmp_path, Settings()) == "http://tracking:5000"


def test_a_store_that_cannot_be_opened_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "mlflow.db").write_text("not a database" * 100)
    settings = Settings(tracking=TrackingSettings(uri="sqlite:///mlflow.db"))
    with pytest.raises(RegistryError, match=r"MLflow at sqlite:.*mlflow\.db"):
        Tracker(tmp_path, settings).start("sft", None, {}, {})
