"""One cell, or one SFT start, in a process of its own: ``python -m cahl_core.experiments.worker SPEC``.

A process per cell returns all memory and keeps a crash to itself. What is finished is written at once
and is not done again: the rows when training has ended, the outcomes when the evaluation has, last of
all the state with the sums of both. Within training the trainer's own checkpoints count.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from cahl_core.config import Settings, validate
from cahl_core.experiments.grid import CrossPlay, Evaluate
from cahl_core.experiments.measures import MEASURES, observations
from cahl_core.experiments.state import CellFolder, State, cell_folder, start_folder
from cahl_core.experiments.statistics import ratio
from cahl_core.files import read_json, read_jsonl, write_json, write_jsonl
from cahl_core.stage import StageRun

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
    def start_path(self) -> Path:
        return start_folder(Path(self.root), self.start_key)


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


def start_done(path: Path) -> bool:
    """Whether the SFT start in ``path`` is finished."""
    return (path / "start.json").exists() and (path / "models/sft").is_dir()


def run_start(spec: Spec) -> None:
    """SFT in a project directory of its own that borrows this project's data.

    Raises:
        CahlError: as `training.sft.run`; the traceback is in the start's ``error.log``.
    """
    folder = CellFolder(spec.start_path)
    with folder.lock():
        if start_done(folder.path):
            return
        from cahl_core.training import sft

        for name in ("backbone", "prepared"):
            link = folder.path / "data" / name
            link.parent.mkdir(exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to((Path(spec.root) / "data" / name).absolute())
        stage = StageRun("sft", folder.path, validate(spec.start))
        clock = time.perf_counter()
        with _noted(folder):
            sft.run(stage)
        about = {"seconds": round(time.perf_counter() - clock, 1), **_about(stage.settings)}
        metrics = read_json(folder.path / "metrics/sft.json")
        write_json(folder.path / "start.json", {"metrics": metrics, "about": about})


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
            with _noted(folder), _tracked(spec) as stage:
                folder.write(replace(state, mlflow_run_id=stage.mlflow_run_id or ""))
                _work(spec, stage)
                about = {**_about(stage.settings), "seconds": dict(stage.phases)}
        except BaseException as error:
            stopped = not isinstance(error, Exception)
            status = "interrupted" if stopped else "failed"
            reason = type(error).__name__ if stopped else str(error) or type(error).__name__
            folder.write(replace(folder.read() or state, status=status, error=reason))
            raise
        done = folder.read() or state
        folder.write(replace(done, status="finished", products=folder.products(), about=about))


def _work(spec: Spec, stage: StageRun) -> None:
    folder = spec.folder
    if spec.trains and not (folder.rows.exists() and folder.adapters.is_dir()):
        with stage.phase("train"):
            _train(spec, stage)
    models = folder.adapters if spec.trains else spec.start_path / "models/sft"
    if not folder.outcomes.exists():
        with stage.phase("evaluate"):
            _evaluate(spec, stage, models)
    _log_outcomes(stage, folder)
    if spec.cross_play and not folder.crossplay.exists():
        with stage.phase("cross_play"):
            _cross(spec, stage)


def _train(spec: Spec, stage: StageRun) -> None:
    from cahl_core.training import joint
    from cahl_core.training.places import Places

    root, folder = Path(spec.root), spec.folder
    places = Places(
        prepared=root / "data/prepared",
        backbone=root / "data/backbone",
        start=spec.start_path / "models/sft",
        out=folder.adapters,
        metrics=folder.path / "train.json",
        plot=folder.path / "train.csv",
        cache=folder.path / "checkpoints",
        traces=folder.path / "traces",
        report=folder.path / "reward_hacks.json",
        snapshots=folder.snapshots if spec.cross_play else None,
    )
    rows = joint.train(stage, places)
    # JSON has no NaN: what was not finite is null
    write_jsonl(
        folder.rows,
        ({k: v if math.isfinite(v) else None for k, v in row.items()} for row in rows),
    )


def _evaluate(spec: Spec, stage: StageRun, models: Path) -> None:
    from cahl_core.experiments.outcomes import evaluate
    from cahl_core.policy.team import load_team

    options = Evaluate.model_validate(spec.evaluate)
    root = Path(spec.root)
    team = load_team(root / "data/backbone", models, stage.settings.model)
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
    root, folder = Path(spec.root), spec.folder
    tasks = _first_tasks(root, "dev", options.tasks)
    steps = pick(steps_of(folder.snapshots), options.snapshots)
    stage.log(f"cross-play of the snapshots {steps} on {len(tasks)} tasks")

    def load(step: int) -> Any:
        place = folder.snapshots / f"step-{step:06d}"
        return load_team(root / "data/backbone", place, stage.settings.model)

    crossed = play(steps, load, lambda source: list(evaluate(source, stage.settings, tasks, 0)))
    write_jsonl(folder.crossplay, ({"cell": spec.cell, **spec.tags, **o} for o in crossed))


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
def _noted(folder: CellFolder) -> Iterator[None]:
    """Keeps the traceback of a failure beside the results; removes an older one."""
    folder.traceback.unlink(missing_ok=True)
    try:
        yield
    except Exception:
        folder.traceback.write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _about(settings: Settings) -> Mapping[str, Any]:
    from cahl_core.evaluation.runner import arithmetic, versions
    from cahl_core.stage import _git_tags

    code = _git_tags(Path(__file__).parent)  # of this code, wherever the project is
    return {"versions": versions(), "numbers": arithmetic(settings), "code": code}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
