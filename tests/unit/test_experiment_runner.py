"""What is run, kept, run again and recorded; processes are stood in for by functions."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from experiment_project import write_grid, write_yaml
from small_project import SMALL, small_task

from cahl_core.errors import StageInputError
from cahl_core.experiments import runner
from cahl_core.experiments.grid import load_grid
from cahl_core.experiments.runner import Experiment
from cahl_core.experiments.spec import Spec
from cahl_core.experiments.state import CellFolder, State, held
from cahl_core.files import dump_json, write_json, write_jsonl


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_yaml(tmp_path / "params.yaml", {"profile": "tiny"})
    train = {k: v for k, v in SMALL["train"].items() if k != "steps"}
    write_yaml(tmp_path / "configs/tiny.yaml", {**SMALL, "train": train})
    for name in ("data/prepared", "data/backbone"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data/backbone/config.json").write_text("{}")
    for name in ("train", "dev"):
        (tmp_path / f"data/prepared/{name}.jsonl").write_text(
            dump_json(small_task(1).to_json()) + "\n"
        )
    return write_grid(tmp_path, seeds=[0])


class Processes:
    """Stands in for worker processes: writes what a worker leaves, or what ``fate`` says."""

    def __init__(self) -> None:
        self.started: list[tuple[str, str]] = []
        self.fate: dict[tuple[str, str], Callable[[Spec], int]] = {}

    def __call__(self, path: Path) -> int:
        spec = Spec(**json.loads(path.read_text()))
        self.started.append((spec.kind, spec.cell))
        if fate := self.fate.get((spec.kind, spec.cell)):
            return fate(spec)
        if spec.kind == "start":
            spec.sft.weights.mkdir(parents=True)
            spec.sft.finish()
            return 0
        folder = spec.folder
        write_jsonl(folder.outcomes, [{"task": "t1"}])
        state = State(spec.cell, "finished", spec.facts, spec.inputs)
        folder.write(replace(state, products=folder.products()))
        return 0

    @property
    def cells(self) -> list[str]:
        return [cell for kind, cell in self.started if kind == "cell"]


def _run(root: Path, launch: Processes) -> tuple[dict[str, str], list[str]]:
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    said: list[str] = []
    return runner.run(experiment, experiment.cells, launch, said.append), said


def test_every_cell_runs_once_after_the_one_start_they_share(root: Path) -> None:
    launch = Processes()
    errors, _ = _run(root, launch)
    assert errors == {}
    assert launch.started == [
        ("start", "start-s0"), ("cell", "start-s0"), ("cell", "joint-s0"), ("cell", "freeze_low-s0"),
    ]  # fmt: skip


def test_finished_cells_are_kept(root: Path) -> None:
    _run(root, Processes())
    again = Processes()
    _, said = _run(root, again)
    assert again.started == []
    assert said == [
        "1/3 start-s0: finished before, kept",
        "2/3 joint-s0: finished before, kept",
        "3/3 freeze_low-s0: finished before, kept",
    ]


def test_changed_settings_are_said_and_the_cells_run_again(root: Path) -> None:
    _run(root, Processes())
    write_grid(root, seeds=[0], set={"train.lambda_executor": 2.5})
    launch = Processes()
    _, said = _run(root, launch)
    assert launch.cells == ["start-s0", "joint-s0", "freeze_low-s0"]
    assert any("train.lambda_executor 1.0 → 2.5" in s for s in said)
    write_grid(root, seeds=[0])  # the old results are still there
    assert _run(root, launch)[1][0] == "1/3 start-s0: finished before, kept"


def test_changed_data_are_said_and_the_cells_run_again(root: Path) -> None:
    _run(root, Processes())
    (root / "data/prepared/train.jsonl").write_text(dump_json(small_task(2).to_json()) + "\n")
    launch = Processes()
    _, said = _run(root, launch)
    assert ("start", "start-s0") in launch.started
    assert "data/prepared/train has changed" in said[0]


def test_results_that_are_not_those_that_were_finished_are_made_again(root: Path) -> None:
    _run(root, Processes())
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    joint = experiment.cells[1]
    experiment.folder(joint).outcomes.write_text('{"task": "other"}\n')
    launch = Processes()
    _, said = _run(root, launch)
    assert launch.cells == ["joint-s0"]
    assert "not those it finished with" in said[1]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"cell": "x", "unknown": 1}'])
def test_a_state_file_that_cannot_be_read_counts_for_nothing(root: Path, text: str) -> None:
    _run(root, Processes())
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    experiment.folder(experiment.cells[2]).state_file.write_text(text)
    launch = Processes()
    _run(root, launch)
    assert launch.cells == ["freeze_low-s0"]


def test_a_failing_cell_is_recorded_and_the_others_go_on(root: Path) -> None:
    def fails(spec: Spec) -> int:
        spec.folder.write(State(spec.cell, "failed", spec.facts, spec.inputs, error="no luck"))
        return 1

    launch = Processes()
    launch.fate["cell", "joint-s0"] = fails
    errors, _ = _run(root, launch)
    assert errors == {"joint-s0": "no luck"}
    assert launch.cells == ["start-s0", "joint-s0", "freeze_low-s0"]
    launch = Processes()
    errors, said = _run(root, launch)
    assert launch.cells == ["joint-s0"]
    assert "it had failed: no luck" in said[1]


def test_a_process_that_died_without_a_word_is_recorded(root: Path) -> None:
    launch = Processes()
    launch.fate["cell", "joint-s0"] = lambda _: -9
    errors, _ = _run(root, launch)
    assert errors == {"joint-s0": "its process was ended by signal 9: out of memory?"}
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    assert experiment.status(experiment.cells[1]) == "failed"


def test_a_start_that_fails_is_tried_once_and_fails_all_that_need_it(root: Path) -> None:
    def fails(spec: Spec) -> int:
        spec.sft.traceback.parent.mkdir(parents=True, exist_ok=True)
        spec.sft.traceback.write_text("Traceback …\nValueError: no SFT today\n")
        return 1

    launch = Processes()
    launch.fate["start", "start-s0"] = fails
    errors, _ = _run(root, launch)
    assert launch.started == [("start", "start-s0")]
    assert set(errors) == {"start-s0", "joint-s0", "freeze_low-s0"}
    assert errors["joint-s0"] == "its SFT start failed: ValueError: no SFT today"


def test_a_half_done_cell_is_gone_on_with(root: Path) -> None:
    def interrupted(spec: Spec) -> int:
        spec.folder.write(State(spec.cell, "interrupted", spec.facts, spec.inputs, error="SIGTERM"))
        return 143

    launch = Processes()
    launch.fate["cell", "freeze_low-s0"] = interrupted
    errors, _ = _run(root, launch)
    assert errors == {"freeze_low-s0": "SIGTERM"}
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    assert experiment.status(experiment.cells[2]) == "half-done"
    _, said = _run(root, Processes())
    assert said[2].endswith("goes on where it was left")


def test_a_running_cell_is_not_taken_for_half_done(root: Path) -> None:
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    folder = experiment.folder(experiment.cells[1])
    with folder.lock():
        folder.write(State("joint-s0", "running"))
        assert experiment.status(experiment.cells[1]) == "running"
        with pytest.raises(StageInputError, match="another process"), held(folder.path, 0.1):
            pass
    assert experiment.status(experiment.cells[1]) == "half-done"


def test_the_state_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    folder = CellFolder(tmp_path / "c")
    folder.write(State("c", "running", facts={"a": 1}))
    folder.write(State("c", "finished"))
    assert [p.name for p in (tmp_path / "c").iterdir()] == ["state.json"]
    state = folder.read()
    assert state is not None
    assert (state.status, state.facts) == ("finished", {})


# --- processes ----------------------------------------------------------------------------------

WORKER = """
import sys, time, signal
sys.path[:0] = {path!r}
from cahl_core.experiments import worker
worker.run_cell = lambda spec: time.sleep(60)
print("up", flush=True)
sys.exit(worker.main([{spec!r}]))
"""
# whoever started the tests may ignore signals, and that is inherited
PARENT = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
sys.path[:0] = {path!r}
from cahl_core.experiments import runner
real = subprocess.Popen
def popen(command, **options):
    child = real([sys.executable, "-c", {worker!r}], **options)
    print(child.pid, flush=True)
    return child
subprocess.Popen = popen
runner.INTERRUPT_SECONDS = 0.5
runner.spawn(Path("unused"))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_worker_ends_with_the_process_that_started_it(root: Path, number: int) -> None:
    experiment = Experiment.of(load_grid(root, "tiny"), root)
    spec = root / "spec.json"
    write_json(spec, _as_json(experiment.spec(experiment.cells[1], "cell")))
    path = [p for p in sys.path if p]
    worker = WORKER.format(path=path, spec=str(spec))
    code = PARENT.format(path=path, worker=worker)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    assert parent.stdout.readline() == "up\n"
    time.sleep(0.2)
    os.kill(parent.pid, number)
    assert _gone(child)
    parent.wait(20)


def _as_json(spec: Spec) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(spec)


def _gone(pid: int, seconds: float = 30.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False
