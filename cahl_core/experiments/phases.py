"""The parts of a cell: training, evaluation, cross-play. Each is done once: what it wrote is kept.

Within training the trainer's own checkpoints count, so a cell goes on from wherever it was left.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.experiments.grid import CrossPlay, Evaluate
from cahl_core.experiments.measures import MEASURES, observations
from cahl_core.experiments.spec import Spec
from cahl_core.experiments.state import CellFolder, held
from cahl_core.experiments.statistics import ratio
from cahl_core.files import read_jsonl, write_jsonl
from cahl_core.stage import StageRun

if TYPE_CHECKING:
    from cahl_core.training.places import Places

SNAPSHOTS = "snapshots"


def work(spec: Spec, stage: StageRun) -> None:
    """Everything that the cell still lacks.

    Raises:
        CahlError: whatever the parts raise; what was finished before it is kept.
    """
    folder = spec.folder
    if spec.trains:
        with stage.phase("train"), held(spec.training.path):
            train_cell(spec, stage)
    if not folder.outcomes.exists():
        with stage.phase("evaluate"):
            evaluate_cell(spec, stage)
    _log_outcomes(stage, folder)
    if spec.cross_play and not folder.crossplay.exists():
        with stage.phase("cross_play"):
            cross_cell(spec, stage)


def train_cell(spec: Spec, stage: StageRun) -> None:
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


def evaluate_cell(spec: Spec, stage: StageRun) -> None:
    """Writes the outcomes of the final weights on the fixed tasks."""
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


def cross_cell(spec: Spec, stage: StageRun) -> None:
    """Writes the outcomes of every planner snapshot with every executor snapshot."""
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
