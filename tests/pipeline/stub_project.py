"""A small project with real DVC, Dagster and MLflow; only the work is trivial."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

QUIET = {
    "DVC_NO_ANALYTICS": "1",
    "DO_NOT_TRACK": "true",
    "DAGSTER_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_AUTHOR_NAME": "t",
    "GIT_AUTHOR_EMAIL": "t@example.org",
    "GIT_COMMITTER_NAME": "t",
    "GIT_COMMITTER_EMAIL": "t@example.org",
}

DVC_YAML = """
stages:
  prepare:
    desc: rows
    cmd: PYTHON stub.py prepare
    deps: [stub.py, source.txt]
    params: [prepare, "configs/${profile}.yaml": [prepare]]
    outs: [data/prepared, reports/data]
    meta: {group: x, kinds: [python]}
  train:
    desc: weights
    cmd: PYTHON stub.py train
    deps: [stub.py, data/prepared/train.txt]
    params: ["configs/${profile}.yaml": [train]]
    outs: [models/m, plots/train.csv: {cache: false}]
    metrics: [metrics/train.json: {cache: false}]
    meta: {group: x, pool: training}
  report:
    cmd: PYTHON stub.py report
    deps: [stub.py, metrics/train.json]
    outs: [report.txt]
    meta: {group: y}
plots:
  - Reward:
      template: linear
      x: step
      y: {plots/train.csv: [planner_reward]}
"""

STUB = """
import json, os, signal, sys, time
from pathlib import Path
import typer, yaml
from cahl_core import stage as stages
from cahl_core.cli import _failures, _terminate
from cahl_core.config import Settings
from cahl_core.errors import TrainingError

def work(name, stage):
    if name == "prepare":
        Path("data/prepared").mkdir(parents=True)
        Path("data/prepared/train.txt").write_text(Path("source.txt").read_text())
        Path("reports/data").mkdir(parents=True)
        for file in ("expectations.json", "contamination.json"):
            Path("reports/data", file).write_text(Path(file).read_text())
        Path(".cahl/prepare").mkdir(parents=True, exist_ok=True)
        Path(".cahl/prepare/drift.json").write_text('{"verdict": "none", "sentences": []}')
    elif name == "train":
        if Path("wait").exists():
            Path("waiting").touch()
            time.sleep(60)
        steps = yaml.safe_load(Path("configs/quick.yaml").read_text())["train"]["steps"]
        if steps == 13:
            raise TrainingError("loss is not finite at step 13", "lower the learning rate")
        for folder in ("models/m", "plots", "metrics"):
            Path(folder).mkdir(parents=True, exist_ok=True)
        Path("models/m/w.txt").write_text(str(steps))
        Path("models/m/a.txt").write_text("a")
        Path("plots/train.csv").write_text("step,planner_reward\\n0,0.1\\n1,0.4\\n")
        Path("metrics/train.json").write_text(json.dumps({"steps": steps, "last": {"loss": 0.5}}))
        stage.metadata(tasks=7, note="one\\ntwo")
        stage.log_metrics({"loss": 0.5, "bad": float("nan")}, step=1)
        stage.log_input(Path("data/prepared"), "prepared", "training")
    else:
        Path("report.txt").write_text("done")
    with Path("executions.log").open("a") as stream:
        stream.write(name + "\\n")

name, root = sys.argv[1], Path.cwd()
signal.signal(signal.SIGTERM, _terminate)
if not os.environ.get("STUB_TRACKS"):
    stages._open_tracker = lambda stage: None
try:
    with _failures(name, root, record=True), stages.open_stage(name, root, Settings()) as stage:
        work(name, stage)
except typer.Exit as end:
    sys.exit(end.exit_code)
"""


def run(
    *command: str, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A command; its output is in the assertion on failure."""
    done = subprocess.run(
        command,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=240,
        env=os.environ | environment,
    )
    assert not check or done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done


def dvc(
    *arguments: str, cwd: Path, check: bool = True, **environment: str
) -> subprocess.CompletedProcess[str]:
    """A dvc command of this interpreter's environment."""
    command = (sys.executable, "-m", "dvc", *arguments)
    return run(*command, cwd=cwd, check=check, **environment)
