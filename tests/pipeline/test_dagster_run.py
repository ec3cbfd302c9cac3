"""The derived assets over real DVC: run, skip, fail, block."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dagster as dg
import psutil
import pytest
from stub_project import dvc, run

from cahl_core.lineage import locked_sums
from pipelines.checks import SUITES
from pipelines.definitions import build_definitions

ROOT = Path(__file__).parents[2]
Executions = Callable[[], list[str]]


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as made:
        yield made


def materialize(root: Path, instance: dg.DagsterInstance) -> dg.ExecuteInProcessResult:
    job = build_definitions(root).resolve_job_def("pipeline")
    return job.execute_in_process(instance=instance, raise_on_error=False)


def materialization(
    result: dg.ExecuteInProcessResult, stage: str
) -> tuple[str, dict[str, dg.MetadataValue]]:
    [event] = result.asset_materializations_for_node(stage)
    assert event.tags is not None
    return event.tags["dagster/data_version"], dict(event.metadata)


def test_a_run_materializes_every_stage_with_dvcs_sums(
    in_project: Path, instance: dg.DagsterInstance, executions: Executions
) -> None:
    result = materialize(in_project, instance)
    assert result.success
    assert executions() == ["prepare", "train", "report"]
    locked = locked_sums(in_project)
    _, prepared = materialization(result, "prepare")
    assert prepared["dvc_md5"].value["data/prepared"] == locked["data/prepared"]
    assert materialization(result, "report")[0] == locked["report.txt"]
    _, shown = materialization(result, "train")
    assert shown["tasks"].value == 7
    assert shown["steps"].value == 2
    assert shown["last.loss"].value == 0.5
    assert shown["dvc_md5"].value["models/m"] == locked["models/m"]
    assert str(shown["Reward"].value).startswith("![Reward](data:image/png;base64,")


def test_dvc_and_dagster_leave_each_other_nothing_to_do(
    in_project: Path, instance: dg.DagsterInstance, executions: Executions
) -> None:
    first = materialize(in_project, instance)
    assert "up to date" in dvc("repro", cwd=in_project).stdout
    second = materialize(in_project, instance)
    assert second.success
    assert executions() == ["prepare", "train", "report"]
    before, after = materialization(first, "train"), materialization(second, "train")
    assert before[0] == after[0]
    assert after[1]["tasks"].value == 7
    assert before[1]["ran"].value is True
    assert after[1]["ran"].value is False


def test_a_failing_stage_fails_its_asset_with_its_own_sentence(
    in_project: Path, instance: dg.DagsterInstance, executions: Executions
) -> None:
    (in_project / "configs/quick.yaml").write_text("prepare: {rows: 2}\ntrain: {steps: 13}\n")
    result = materialize(in_project, instance)
    assert not result.success
    [failure] = [e for e in result.all_events if e.is_step_failure]
    data = failure.step_failure_data
    assert data.user_failure_data is not None
    assert "loss is not finite at step 13" in (data.user_failure_data.description or "")
    assert "lower the learning rate" in (data.user_failure_data.description or "")
    assert executions() == ["prepare"]


@pytest.mark.parametrize(("severity", "goes_on"), [("critical", False), ("warning", True)])
def test_only_a_critical_expectation_stops_what_follows(
    severity: str,
    goes_on: bool,
    in_project: Path,
    instance: dg.DagsterInstance,
    executions: Executions,
) -> None:
    (in_project / "source.txt").write_text(severity)
    failed = {"expectation": "unique", "column": "id", "success": False, "severity": severity}
    suites = {name: {"results": [failed] if name == "sft" else []} for name in SUITES}
    (in_project / "expectations.json").write_text(json.dumps({"suites": suites}))
    result = materialize(in_project, instance)
    evaluations = {e.check_name: e for e in result.get_asset_check_evaluations()}
    assert len(evaluations) == len(SUITES) + 2
    [name] = [name for name, evaluation in evaluations.items() if not evaluation.passed]
    assert name == "expectations_sft"
    assert "unique on id" in (evaluations[name].description or "")
    assert result.success is goes_on
    assert ("train" in executions()) is goes_on


def test_an_interrupted_run_stops_the_stage_and_goes_on_next_time(
    in_project: Path, executions: Executions
) -> None:
    (in_project / "wait").touch()
    command = [sys.executable, "-m", "pipelines.run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    runner = subprocess.Popen(
        command, cwd=in_project, env=environment, stderr=subprocess.PIPE, text=True
    )
    until(lambda: (in_project / "waiting").exists())
    runner.terminate()  # the runner alone, as `docker stop` does
    _, stderr = runner.communicate(timeout=60)
    assert runner.returncode == 130
    assert "run again to go on" in stderr
    assert "stopped by SIGTERM" in stderr
    assert "Traceback" not in stderr
    record = json.loads((in_project / ".cahl/stages/train.json").read_text())
    assert record["status"] == "interrupted"
    assert not psutil.pid_exists(record["pid"])

    (in_project / "wait").unlink()
    done = run(*command, cwd=in_project, PYTHONPATH=str(ROOT))
    assert executions() == ["prepare", "train", "report"]
    assert "unchanged, from an earlier run" in done.stdout
    assert "[prepare] nothing changed" in done.stderr
    assert (in_project / ".dagster/dagster.yaml").exists()


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
