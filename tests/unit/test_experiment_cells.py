"""Real cells on a tiny random backbone: interrupted, resumed, tracked, and through the command line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from experiment_project import make_experiment, write_grid
from small_project import file_sums

from cahl_core.experiments import phases, runner, worker
from cahl_core.experiments.grid import load_grid
from cahl_core.experiments.runner import Experiment
from cahl_core.experiments.spec import Spec
from cahl_core.files import read_json, read_jsonl


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """A cell that ends by a signal ignores further ones; here it is not alone in its process."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module", autouse=True)
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One MLflow store for all tests here: making one takes seconds."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        yield uri


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path) -> Path:
    return make_experiment(tmp_path, tiny_backbone, seeds=[0], arms=["joint"])


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: Path, store: str
) -> Experiment:
    """`joint` of one seed, run without interruption in this process."""
    root = tmp_path_factory.mktemp("experiment")
    make_experiment(root, tiny_backbone, seeds=[0], arms=["joint"])
    experiment = _experiment(root)
    assert runner.run(experiment, experiment.cells, _here, print) == {}
    return experiment


def _experiment(root: Path) -> Experiment:
    return Experiment.of(load_grid(root, "tiny"), root)


def _here(path: Path) -> int:
    """Runs a worker's spec in this process."""
    spec = Spec(**read_json(path))
    try:
        (worker.run_start if spec.kind == "start" else worker.run_cell)(spec)
    except Exception:
        return 1
    finally:
        import mlflow

        while mlflow.active_run():
            mlflow.end_run()
    return 0


def _runs(root: Path) -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name(root.name)
    return list(client.search_runs([experiment.experiment_id]))


def test_a_cell_leaves_rows_outcomes_and_cross_play(finished: Experiment) -> None:
    start, joint = finished.cells
    folder = finished.folder(joint)
    rows = list(read_jsonl(folder.rows))
    assert (
        sum(r["sampled_tokens"] for r in rows[:-1]) < 300 <= sum(r["sampled_tokens"] for r in rows)
    )
    outcomes = list(read_jsonl(folder.outcomes))
    assert len(outcomes) == 2 * (1 + 2)
    assert {o["cell"] for o in outcomes} == {"joint-s0"}
    crossed = list(read_jsonl(folder.crossplay))
    assert {(o["planner"], o["executor"]) for o in crossed} == {
        (i, j) for i in (0, len(rows)) for j in (0, len(rows))
    }
    assert [finished.status(c) for c in (start, joint)] == ["finished", "finished"]
    assert not finished.folder(start).rows.exists()


def test_a_cell_is_one_mlflow_run_below_that_of_the_experiment(finished: Experiment) -> None:
    runs = {r.info.run_name: r for r in _runs(finished.root)}
    assert set(runs) == {"experiment tiny", "start-s0", "joint-s0"}
    joint = runs["joint-s0"]
    assert joint.data.tags["mlflow.parentRunId"] == runs["experiment tiny"].info.run_id
    wanted = {"cahl.grid": "tiny", "cahl.arm": "joint", "cahl.seed": "0", "cahl.cell": "joint-s0"}
    assert wanted.items() <= joint.data.tags.items()
    assert joint.data.params["train.max_sampled_tokens"] == "300"
    assert "train/sampled_tokens" in joint.data.metrics
    assert "final/dev/reward" in joint.data.metrics
    assert joint.info.status == "FINISHED"


@pytest.mark.parametrize("point", ["train", "evaluate", "cross_play"])
def test_an_interrupted_cell_goes_on_to_the_same_results_in_the_same_run(
    root: Path, finished: Experiment, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """Stopped after a training step, before the evaluation, and before the cross-play."""
    from cahl_core.training.trainer import Trainer

    experiment = _experiment(root)
    joint = experiment.cells[1]
    with monkeypatch.context() as patch:
        if point == "train":
            real = Trainer._between_steps

            def dies(self: Trainer, dev: Any, last: bool = False) -> None:
                real(self, dev, last)
                if len(self.rows) == 2:
                    raise KeyboardInterrupt

            patch.setattr(Trainer, "_between_steps", dies)
        else:
            name = {"evaluate": "evaluate_cell", "cross_play": "cross_cell"}[point]
            patch.setattr(phases, name, _interrupt)
        patch.setattr(worker, "_no_more_signals", lambda: None)
        with pytest.raises(KeyboardInterrupt):
            runner.run(experiment, [joint], _here, print)
    assert experiment.status(joint) == "half-done"
    trained = experiment.training(joint)
    assert trained.done() == (point != "train")
    said: list[str] = []
    assert runner.run(experiment, [joint], _here, said.append) == {}
    assert said == ["1/1 joint-s0: goes on where it was left"]
    whole = finished.cells[1]
    for name in ("outcomes.jsonl", "crossplay.jsonl"):
        mine, other = (e.folder(c).path / name for e, c in ((experiment, joint), (finished, whole)))
        assert mine.read_text() == other.read_text()
    assert file_sums(trained.weights) == file_sums(finished.training(whole).weights)
    [run] = [r for r in _runs(root) if r.info.run_name == "joint-s0"]
    assert run.info.status == "FINISHED"
    _no_value_twice(run)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _no_value_twice(run: Any) -> None:
    import mlflow

    client = mlflow.MlflowClient()
    assert "train/sampled_tokens" in run.data.metrics
    for name in run.data.metrics:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, name)]
        assert len(steps) == len(set(steps)), name


def test_evaluating_otherwise_uses_the_training_that_is_there(
    root: Path, finished: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cahl_core.training import joint as trainer

    shutil.copytree(finished.root / ".cahl", root / ".cahl")
    write_grid(root, seeds=[0], arms=["joint"], evaluate={"tasks": 1, "samples": 0})
    monkeypatch.setattr(trainer, "train", _interrupt)
    experiment = _experiment(root)
    assert runner.run(experiment, experiment.cells[1:], _here, print) == {}
    assert len(list(read_jsonl(experiment.folder(experiment.cells[1]).outcomes))) == 1
    [run] = [r for r in _runs(root) if r.info.run_name == "joint-s0"]
    assert "train/sampled_tokens" in run.data.metrics


def test_a_cell_that_fails_leaves_its_traceback_and_says_why(
    root: Path, finished: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished.root / ".cahl/experiments/.starts", root / ".cahl/experiments/.starts")

    def fails(*_: Any) -> None:
        raise ValueError("no luck")

    monkeypatch.setattr(phases, "train_cell", fails)
    experiment = _experiment(root)
    errors = runner.run(experiment, experiment.cells, _here, print)
    assert errors == {"joint-s0": "no luck"}
    folder = experiment.folder(experiment.cells[1])
    assert "ValueError: no luck" in folder.traceback.read_text()
    [run] = [r for r in _runs(root) if r.info.run_name == "joint-s0"]
    assert run.info.status == "FAILED"


# --- the command ---------------------------------------------------------------------------------


def _cahl(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cahl_core.cli", "experiment", *arguments, "--root", str(root)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_the_command_checks_before_it_runs(root: Path) -> None:
    dry = _cahl(root, "run", "tiny", "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert "joint-s0  pending" in dry.stdout
    assert not (root / ".cahl").exists()
    write_grid(root, arms=["join"])
    wrong = _cahl(root, "run", "tiny")
    assert wrong.returncode == 2
    assert "there is no arm 'join'; nearest: joint" in wrong.stderr
    assert not (root / ".cahl").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_any_time_and_run_again_gives_the_same(root: Path, finished: Experiment) -> None:
    command = [
        sys.executable,
        "-m",
        "cahl_core.cli",
        "experiment",
        "run",
        "tiny",
        "--root",
        str(root),
    ]
    experiment = _experiment(root)
    joint = experiment.cells[1]
    for seconds in (4.0, 9.0):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        time.sleep(seconds)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    done = _cahl(root, "run", "tiny")
    assert done.returncode == 0, done.stderr
    assert experiment.status(joint) == "finished"
    own, other = experiment.folder(joint), finished.folder(finished.cells[1])
    assert own.outcomes.read_text() == other.outcomes.read_text()
    assert own.crossplay.read_text() == other.crossplay.read_text()
    results = json.loads((root / "reports/experiments/tiny/results.json").read_text())
    assert [c["status"] for c in results["cells"]] == ["finished", "finished"]
    kept = _cahl(root, "run", "tiny")
    assert kept.stderr.count("finished before, kept") == 2
    names = [r.info.run_name for r in _runs(root)]
    assert sorted(names) == ["experiment tiny", "joint-s0", "start-s0"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_arm_and_shared_weights_go_through_one_grid(root: Path) -> None:
    from cahl_core.experiments.grid import ARMS
    from cahl_core.experiments.results import collect

    shared = {"set": {"model": {"weights": "shared_adapter"}}, "arms": ["joint"]}
    write_grid(
        root,
        arms=list(ARMS),
        seeds=[0],
        variants={"apart": {}, "shared": shared},
        sft={"evaluate": False},
        evaluate={"tasks": 2, "samples": 1},
        cross_play={"arms": ["joint"], "every": 1, "snapshots": 2, "tasks": 1},
    )
    experiment = _experiment(root)
    assert runner.run(experiment, experiment.cells, _here, print) == {}
    results = collect(experiment)
    rows = {r["row"]: r for r in results["tables"]["dev"]["greedy"]}
    assert set(rows) == {*(f"{arm} / apart" for arm in ARMS), "joint / shared"}
    assert results["reference"] == "joint / apart"
    assert set(results["cross_play"]) == {"joint / apart", "joint / shared"}
    assert len(results["starts"]) == 4  # hierarchical, low_only, single_level, shared
    for arm in ("low_only", "single_level"):
        measures = rows[f"{arm} / apart"]["measures"]
        assert measures["plan_validity"]["value"] is None
        assert measures["success"]["value"] is not None
    frozen = experiment.training(next(c for c in experiment.cells if c.arm == "freeze_low"))
    start = experiment.start(next(c for c in experiment.cells if c.arm == "freeze_low"))
    assert file_sums(frozen.weights / "executor") == file_sums(start.weights / "executor")
