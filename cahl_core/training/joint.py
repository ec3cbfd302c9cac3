"""CAHL training as a stage: from SFT adapters to trained ones (arXiv 2606.09371; docs/method.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cahl_core.config import Settings
from cahl_core.cost.forecast import memory_warnings
from cahl_core.errors import ConfigError
from cahl_core.files import atomic_dir, digest, sweep, tree_digest, write_json
from cahl_core.policy.team import Team, load_trainable
from cahl_core.signals import held_signals
from cahl_core.stage import StageRun
from cahl_core.training import checkpoints
from cahl_core.training.data import load_split, split_files
from cahl_core.training.distributed import Workers
from cahl_core.training.places import Places
from cahl_core.training.sharding import shard_team
from cahl_core.training.summary import PLOT, Row, summarise_run, write_csv
from cahl_core.training.trainer import Trainer

# Settings that change neither weights nor reported numbers: changing them does not start over.
NOT_IN_KEY = ("checkpoint_every", "keep_checkpoints", "snapshot_every", "trace")


def run(stage: StageRun, resume: str = "auto") -> None:
    """The ``train`` stage: writes models/cahl, metrics/train.json, plots/{train,alignment}.csv."""
    train(stage, Places.of_project(stage.root), resume)


def train(stage: StageRun, places: Places, resume: str = "auto") -> list[Row]:
    """Trains in the arm of the settings; returns one row of metrics per step.

    Args:
        resume: ``auto`` goes on from the newest whole checkpoint of the same settings and inputs;
            ``never`` removes it and starts over.

    Raises:
        ConfigError, ModelError, StageInputError, TrainingError.
    """
    if resume not in ("auto", "never"):
        raise ConfigError(f"--resume {resume} is not known", "allowed: auto, never")
    settings = stage.settings
    workers = Workers()
    key = run_key(settings, places)
    workers.agree("settings and inputs", key)
    tasks = load_split(places.prepared, "train")
    for file in split_files(places.prepared, "train"):
        stage.log_input(file, file.stem, "rl")
    dev = load_split(places.prepared, "dev")[: settings.train.evaluate_tasks]
    if workers.is_main:
        for warning in memory_warnings(places.backbone, settings, tasks, workers.device):
            stage.log(f"warning: {warning}")
    with stage.phase("load"):
        team = load_trainable(places.backbone, places.start, settings.model, workers.device)
        shard_team(team, workers, decodes=not settings.train.rollouts.servers)
    folder = places.cache / key / "checkpoints"
    if resume == "never" and workers.is_main:
        checkpoints.clear(folder)
    if workers.is_main:
        _sweep(places)
    workers.wait()
    trainer = Trainer(stage, team, workers, places)
    rows = trainer.train(tasks, list(dev), folder)
    if workers.is_main:
        _finish(stage, places, team, trainer)
    else:
        team.save(None)
    workers.wait()
    if workers.is_main:
        checkpoints.clear(folder.parent)
    return rows


def _sweep(places: Places) -> None:
    """Removes what an earlier, killed process of this run left half-written."""
    for path in (places.out, places.metrics, places.plot, places.alignment):
        sweep(path)
    for folder in filter(None, (places.traces, places.snapshots)):
        for name in {p.name.split(".")[1] for p in folder.glob(".step-*")}:
            sweep(folder / name)


def run_key(settings: Settings, places: Places) -> str:
    """Digest of the settings and inputs that determine the result: checkpoints belong to one key."""
    own: dict[str, Any] = settings.train.model_dump(mode="json", exclude=set(NOT_IN_KEY))
    own["rollouts"] = settings.train.rollouts.ahead  # where the servers are changes nothing
    return digest(
        [
            own,
            # checkpointed or not, gradients are the same: who ran out of memory goes on with it
            settings.model.model_dump(mode="json", exclude={"gradient_checkpointing"}),
            settings.seed,
            [tree_digest(file) for file in split_files(places.prepared, "train")],
            [tree_digest(file) for file in split_files(places.prepared, "dev")],
            tree_digest(places.backbone),
            tree_digest(places.start),
        ]
    )


def _finish(stage: StageRun, places: Places, team: Team, trainer: Trainer) -> None:
    rows = trainer.rows
    with held_signals(), atomic_dir(places.out) as folder:
        team.save(folder)
    write_csv(places.plot, rows, PLOT)
    write_csv(places.alignment, trainer.alignment, _columns(trainer.alignment))
    metrics = summarise_run(rows, trainer.alignment)
    write_json(places.metrics, metrics)
    if places.report is not None:
        trainer.hacks.write(places.report)
        stage.log_artifact(places.report, "reports")
    for sentence in trainer.hacks.summary():
        stage.log(sentence)
    stage.log_metrics({f"train_summary/{k}": v for k, v in metrics.items()})
    stage.log_artifact(places.out, "adapters")
    for plot in (places.plot, places.alignment):
        stage.log_artifact(plot, "plots")
    stage.metadata(**metrics, dtype=str(team.policy.dtype), device=str(team.policy.device))
    for name in ("rollout", "update"):
        stage.phases[name] = sum(r[f"seconds/{name}"] for r in rows)


def _columns(rows: Sequence[Row]) -> list[str]:
    return sorted({key for row in rows for key in row} - {"step"})
