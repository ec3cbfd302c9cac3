"""Where one training run reads and writes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """Files of one run; ``None`` leaves out what is optional.

    Attributes:
        prepared: directory with the splits ``train`` and ``dev``.
        backbone: directory of the backbone.
        start: the SFT adapters, one directory per role; they are also the references.
        out: the trained adapters (or models), one directory per role.
        metrics: JSON summary.
        plot: CSV of rewards, one row per step; alignment metrics go to ``alignment.csv`` beside it.
        cache: parent of the checkpoints, which are keyed by settings and inputs.
        traces: one JSON Lines file of rollout trees per traced step.
        report: JSON of what looks like reward hacking.
        snapshots: adapters every ``train.snapshot_every`` steps.
    """

    prepared: Path
    backbone: Path
    start: Path
    out: Path
    metrics: Path
    plot: Path
    cache: Path
    traces: Path | None = None
    report: Path | None = None
    snapshots: Path | None = None

    @classmethod
    def of_project(cls, root: Path) -> Places:
        """The places of the project's ``train`` stage, as dvc.yaml declares them."""
        return cls(
            prepared=root / "data/prepared",
            backbone=root / "data/backbone",
            start=root / "models/sft",
            out=root / "models/cahl",
            metrics=root / "metrics/train.json",
            plot=root / "plots/train.csv",
            cache=root / ".cahl/train",
            traces=root / ".cahl/traces/train",
            report=root / ".cahl/reports/reward_hacks.json",
            snapshots=root / ".cahl/snapshots/train",
        )

    @property
    def alignment(self) -> Path:
        """CSV of the alignment metrics on the dev tasks."""
        return self.plot.with_name("alignment.csv")
