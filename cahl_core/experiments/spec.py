"""What a worker process is told, and the directories it works in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.experiments.state import (
    CellFolder,
    Shared,
    cell_folder,
    start_folder,
    training_folder,
)


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
