"""One cell, or one SFT start, in a process of its own: ``python -m cahl_core.experiments.worker SPEC``.

A process per cell returns all memory and keeps a crash to itself. What is finished is written at once
and is not done again: the rows when training has ended, the outcomes when the evaluation has, last of
all the state with the sums of both. Within training the trainer's own checkpoints count.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from cahl_core.config import Settings, validate
from cahl_core.experiments.grid import CrossPlay, Evaluate
from cahl_core.experiments.measures import MEASURES, observations
from cahl_core.experiments.state import (
    CellFolder,
    Shared,
    State,
    cell_folder,
    held,
    start_folder,
    training_folder,
)
from cahl_core.experiments.statistics import ratio
from cahl_core.files import read_json, read_jsonl, write_jsonl
from cahl_core.stage import StageRun

if TYPE_CHECKING:
    from cahl_core.training.places import Places

SNAPSHOTS = "snapshots"
LIBRARIES = ("torch", "transformers", "peft")
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


@dataclass(frozen=True)
class Spec:
    """What a process is told; JSON on disk, so that a grid edited meanwhile changes nothing."""

    kind: str
    root: str
    experiment: str
    cell: str
    tags: dict[str, str]
    trains: bool
    key: str
    start_key: str
    train_key: str
    settings: dict[str, Any]
    start: dict[str, Any]
    facts: dict[str, Any]
    inputs: dict[str, str]
    evaluate: dict[str, Any]
    cross_play: dict[str, Any] | None

    @property
    def folder(self) -> CellFolder:
        return cell_folder(Path(self.root), self.experiment, self.cell, self.key)

    @property
    def sft(self) -> Shared:
        return start_folder(Path(self.root), self.start_key)

    @property
    def training(self) -> Shared:
        return training_folder(Path(self.root), self.train_key)


def main(arguments: list[str]) -> int:
    """Runs the spec in the file; the exit code says how it ended, the state file says more."""
    signal.signal(signal.SIGTERM, _terminate)
    _end_with_parent()
    spec = Spec(**read_json(Path(arguments[0])))
    try:
        (run_start if spec.kind == "start" else run_cell)(spec)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        print(f"[{spec.cell}] error: {error}", file=sys.stderr, flush=True)
        return FAILED
    return 0


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _no_more_signals() -> None:
    """A second Ctrl-C or SIGTERM must not cut short what the first one has to record."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: it holds the other end of stdin."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


# --- the start -----------------------------------------------------------------------------------


def run_start(spec: Spec) -> None:
    """SFT in a project directory of its own that borrows this project's data.

    Raises:
        CahlError: as `training.sft.run`; the traceback is in the start's ``error.log``.
    """
    made = spec.sft
    with held(made.path), _noted(made.traceback):
        if made.done():
            return
        from cahl_core.training import sft

        _borrow_data(Path(spec.root), made.path)
        stage = StageRun("sft", made.path, validate(spec.start))
        clock = time.perf_counter()
        sft.run(stage)
        seconds = round(time.perf_counter() - clock, 1)
        metrics = read_json(made.path / "metrics/sft.json")
        made.finish(metrics=metrics, seconds=seconds, **_about(stage.settings))


def _borrow_data(root: Path, project: Path) -> None:
    (project / "data").mkdir(exist_ok=True)
    for name in ("backbone", "prepared"):
        link = project / "data" / name
        link.unlink(missing_ok=True)
        link.symlink_to((root / "data" / name).absolute())


# --- a cell --------------------------------------------------------------------------------------


def run_cell(spec: Spec) -> None:
    """Trains, evaluates and crosses one cell, from wherever it was left.

    Raises:
        Exception: whatever went wrong, after it was recorded in the state file.
    """
    folder = spec.folder
    with folder.lock():
        before = folder.read() or State(spec.cell)
        state = folder.write(
            replace(
                before,
                status="running",
                facts=spec.facts,
                inputs=spec.inputs,
                attempts=before.attempts + 1,
                error="",
                products={},
            )
        )
        try:
            with _noted(folder.traceback), _tracked(spec) as stage:
                folder.write(replace(state, mlflow_run_id=stage.mlflow_run_id or ""))
                _work(spec, stage)
                about = {**_about(stage.settings), "seconds": dict(stage.phases)}
        except BaseException as error:
            stopped = not isinstance(error, Exception)
            status = "interrupted" if stopped else "failed"
            reason = str(error) or type(error).__name__
            if stopped:
                ctrl_c = isinstance(error, KeyboardInterrupt)
                reason = f"stopped by {'Ctrl-C' if ctrl_c else 'SIGTERM'}"
            folder.write(replace(folder.read() or state, status=status, error=reason))
            raise
        done = folder.read() or state
        folder.write(replace(done, status="finished", products=folder.products(), about=about))


def _work(spec: Spec, stage: StageRun) -> None:
    folder = spec.folder
    if spec.trains:
        with stage.phase("train"), held(spec.training.path):
            _train(spec, stage)
    if not folder.outcomes.exists():
        with stage.phase("evaluate"):
            _evaluate(spec, stage)
    _log_outcomes(stage, folder)
    if spec.cross_play and not folder.crossplay.exists():
        with stage.phase("cross_play"):
            _cross(spec, stage)


def _train(spec: Spec, stage: StageRun) -> None:
    """Trains, unless these very settings were trained before, and copies the rows to the cell."""
    made, copy = spec.training, spec.folder.rows
    rows = made.path / "rows.jsonl"
    if made.done():
        stage.log(f"training {made.path.name} was finished before")
        for row in read_jsonl(rows):
            known = {f"train/{k}": v for k, v in row.items() if k != "step" and v is not None}
            stage.log_metrics(known, int(row["step"]))
    else:
        from cahl_core.training import joint

        done = joint.train(stage, _places(spec))
        # JSON has no NaN: what was not finite is null
        finite = ({k: v if math.isfinite(v) else None for k, v in row.items()} for row in done)
        write_jsonl(rows, finite)
        made.finish(seconds=round(sum(row["seconds/step"] for row in done), 1))
    write_jsonl(copy, read_jsonl(rows))


def _places(spec: Spec) -> Places:
    from cahl_core.training.places import Places

    root, made = Path(spec.root), spec.training
    return Places(
        prepared=root / "data/prepared",
        backbone=root / "data/backbone",
        start=spec.sft.weights,
        out=made.weights,
        metrics=made.path / "train.json",
        plot=made.path / "train.csv",
        cache=made.path / "checkpoints",
        traces=made.path / "traces",
        report=made.path / "reward_hacks.json",
        snapshots=made.path / SNAPSHOTS if spec.cross_play else None,
    )


def _evaluate(spec: Spec, stage: StageRun) -> None:
    from cahl_core.experiments.outcomes import evaluate
    from cahl_core.policy.team import load_team

    options = Evaluate.model_validate(spec.evaluate)
    root = Path(spec.root)
    weights = (spec.training if spec.trains else spec.sft).weights
    team = load_team(root / "data/backbone", weights, stage.settings.model)
    found = []
    for split in options.splits:
        tasks = _first_tasks(root, split, options.tasks)
        stage.log(f"evaluates {len(tasks)} tasks of {split}, 1 greedy + {options.samples} sampled")
        for outcome in evaluate(team, stage.settings, tasks, options.samples):
            found.append({"cell": spec.cell, **spec.tags, "split": split, **outcome})
    write_jsonl(spec.folder.outcomes, found)


def _cross(spec: Spec, stage: StageRun) -> None:
    from cahl_core.experiments.crossplay import pick, play, steps_of
    from cahl_core.experiments.outcomes import evaluate
    from cahl_core.policy.team import load_team

    options = CrossPlay.model_validate(spec.cross_play)
    root, snapshots = Path(spec.root), spec.training.path / SNAPSHOTS
    tasks = _first_tasks(root, "dev", options.tasks)
    steps = pick(steps_of(snapshots), options.snapshots)
    stage.log(f"cross-play of the snapshots {steps} on {len(tasks)} tasks")

    def load(step: int) -> Any:
        place = snapshots / f"step-{step:06d}"
        return load_team(root / "data/backbone", place, stage.settings.model)

    crossed = play(steps, load, lambda source: list(evaluate(source, stage.settings, tasks, 0)))
    write_jsonl(spec.folder.crossplay, ({"cell": spec.cell, **spec.tags, **o} for o in crossed))


def _first_tasks(root: Path, split: str, count: int) -> list[Any]:
    from cahl_core.training.data import load_split

    return list(load_split(root / "data/prepared", split)[:count])


def _log_outcomes(stage: StageRun, folder: CellFolder) -> None:
    """The measures of the greedy runs as metrics of the MLflow run."""
    greedy = [o for o in read_jsonl(folder.outcomes) if o["mode"] == "greedy"]
    for split in dict.fromkeys(o["split"] for o in greedy):
        own = [o for o in greedy if o["split"] == split]
        tasks = list(dict.fromkeys(o["task"] for o in own))
        values = {
            f"final/{split}/{name}": ratio(observations({0: own}, tasks, name)) for name in MEASURES
        }
        stage.log_metrics({k: v for k, v in values.items() if v is not None})
    stage.log_artifact(folder.outcomes, "evaluation")


# --- what surrounds both -------------------------------------------------------------------------


@contextmanager
def _tracked(spec: Spec) -> Iterator[StageRun]:
    """The cell's MLflow run around the body, ended the way the body ends."""
    from cahl_core.experiments.runs import CellRun, CellTracker
    from cahl_core.stage import stage_params

    settings, root = validate(spec.settings), Path(spec.root)
    tracker = CellTracker(root, settings, spec.experiment)
    stage = CellRun(spec.cell, root, settings, tracker)
    params = {**stage_params("train", settings), "variant": spec.tags["variant"]}
    tags = {f"cahl.{k}": v for k, v in spec.tags.items()}
    tags |= {f"cahl.input.{k}": v for k, v in spec.inputs.items()}
    tracker.open(spec.cell, spec.key, tags, params)
    try:
        yield stage
    except Exception:
        tracker.end("FAILED")
        raise
    except BaseException:
        _no_more_signals()
        tracker.end("KILLED")
        raise
    tracker.end("FINISHED")


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Keeps the traceback of a failure beside the results; removes an older one."""
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception:
        path.write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _about(settings: Settings) -> dict[str, Any]:
    """Code, library versions, device and number type: what else the results depend on."""
    from cahl_core.policy.backbone import pick_device, pick_dtype
    from cahl_core.stage import _git_tags

    device = pick_device()
    dtype = str(pick_dtype(settings.model.dtype, device)).removeprefix("torch.")
    return {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "numbers": [device.type, dtype],
        "code": _git_tags(Path(__file__).parent),  # of this code, wherever the project is
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
