"""All stages on a few real records: Dagster, DVC, MLflow and the official checker, nothing replaced.

The backbone is a tiny random model, so that the run takes a minute; data, benchmark and every program
are the real ones. Needs the package index, CAHL_MIRROR, or wheels fetched before.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT, make_model, make_tokenizer

PROFILE = {
    "model": {"backbone": "tiny", "max_context": 6000, "dtype": "float32"},
    "fetch": {"sources": ["complexfuncbench", "nestful", "bfcl-v3"]},
    "prepare": {
        "sources": ["complexfuncbench", "nestful"],
        "max_prompt_tokens": 5000,
        "max_steps": 3,
        "max_records": 40,
        "dev_tasks": 4,
        "unseen_tool_tasks": 4,
        "rename_share": 0.3,
        "distractors": 2,
    },
    "sft": {"steps": 4, "tokens_per_step": 4000, "row_tokens": 4000},
    "train": {
        "steps": 2,
        "tasks_per_step": 2,
        "plans_per_task": 2,
        "executions_per_plan": 2,
        "planner": {"max_tokens": 16},
        "executor": {"max_tokens": 16},
    },
    "evaluate": {
        "plan_tokens": 16,
        "call_tokens": 16,
        "dev_tasks": 2,
        "sample": {"bfcl_v3/simple": 2, "bfcl_v3/irrelevance": 1},
    },
}
pytestmark = pytest.mark.timeout(1800)  # the first test waits for the whole run
PREDICT = """
import json, mlflow
mlflow.set_tracking_uri("sqlite:///mlflow.db")
model = mlflow.pyfunc.load_model("models:/cahl-agent@champion")
tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer"}}}}}
asked = {"messages": [{"role": "user", "content": "Add 1."}], "tools": [tool]}
print(json.dumps(model.predict(asked), default=str))
"""


def _run(project: Path, *command: str) -> subprocess.CompletedProcess[str]:
    dropped = {"DAGSTER_HOME", "MLFLOW_TRACKING_URI", "CAHL_ROOT"}
    if "PYTEST_XDIST_WORKER" not in os.environ:  # several workers share the cores
        dropped.add("OMP_NUM_THREADS")
    environment = {k: v for k, v in os.environ.items() if k not in dropped}
    environment |= {"CAHL_PYTHON": sys.executable, "PYTHONPATH": str(project), "DVC_TEST": "1"}
    return subprocess.run(
        command,
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )


def _dvc(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return _run(project, sys.executable, "-m", "dvc", *arguments)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the whole job has run in Dagster."""
    project = tmp_path_factory.mktemp("e2e") / "project"
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    for name in tracked:
        if (
            (ROOT / name).is_file()
            and not name.startswith(("tests/", "docs/"))
            and name != "dvc.lock"
        ):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    if (
        ROOT / ".cahl/downloads"
    ).is_dir():  # wheels are checked against their sums wherever they lie
        shutil.copytree(ROOT / ".cahl/downloads", project / ".cahl/downloads")
    (project / "tiny").mkdir()
    make_tokenizer(project / "tiny")
    make_model(project / "tiny", positions=8192)
    (project / "configs/e2e.yaml").write_text(yaml.safe_dump(PROFILE))
    params = (project / "params.yaml").read_text().replace("profile: quickstart", "profile: e2e")
    (project / "params.yaml").write_text(params)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "start"]):
        identity = ["-c", "user.name=test", "-c", "user.email=test@localhost.invalid"]
        subprocess.run(["git", *identity, *command], cwd=project, check=True)
    done = _run(project, sys.executable, "-m", "pipelines.run")
    if done.returncode and "CAHL_MIRROR" in done.stderr:
        pytest.skip("the quickstart's wheels are neither cached, mirrored nor on a reachable index")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    (project / "closing.txt").write_text(done.stdout + done.stderr)
    return project


def test_the_run_ends_with_the_table_of_the_three_models(finished: Path) -> None:
    closing = (finished / "closing.txt").read_text()
    for text in ("base", "after SFT", "after CAHL", "make ui", "report"):
        assert text in closing


def test_after_dagster_dvc_finds_nothing_to_do(finished: Path) -> None:
    assert "up to date" in _dvc(finished, "status").stdout
    again = _dvc(finished, "repro")
    assert again.returncode == 0
    assert "Running stage" not in again.stdout


def test_running_everything_again_gives_the_same_sums(finished: Path) -> None:
    before = yaml.safe_load((finished / "dvc.lock").read_text())
    forced = _dvc(finished, "repro", "--force", "prepare", "sft", "train", "evaluate")
    assert forced.returncode == 0, forced.stderr[-3000:]
    assert yaml.safe_load((finished / "dvc.lock").read_text()) == before


def test_counts_of_records_reconcile(finished: Path) -> None:
    sources = json.loads((finished / "metrics/prepare.json").read_text())["sources"]
    for counts in sources.values():
        gone = counts["held_out"] + sum(counts["quarantined"].values())
        assert counts["tasks"] == counts["kept"] + gone


def test_one_mlflow_run_per_pipeline_run_with_a_child_per_stage(finished: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("cahl")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    first = [r for r in runs if r.data.tags.get("dagster.run_id")]
    parents = [r for r in first if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    children = [r for r in first if r.data.tags.get("mlflow.parentRunId") == parents[0].info.run_id]
    assert len(children) == 6
    assert all(r.info.status == "FINISHED" for r in children)
    train: dict[str, Any] = next(
        r.data.metrics for r in children if "train/planner_reward" in r.data.metrics
    )
    for name in ("planner/kl", "executor/entropy", "planner/clip_fraction", "seconds/rollout",
                 "executor/zero_variance_groups", "planner/logprob_gap_mean", "reward_syntax"):  # fmt: skip
        assert f"train/{name}" in train


def test_the_registered_model_answers_in_a_new_process(finished: Path) -> None:
    answered = _run(finished, sys.executable, "-c", PREDICT)
    assert answered.returncode == 0, answered.stderr[-3000:]
    reply = json.loads(answered.stdout.strip().splitlines()[-1])
    reply = reply[0] if isinstance(reply, list) else reply
    assert {"plan", "tool_calls"} <= set(reply)
