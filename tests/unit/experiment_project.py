"""A project with a grid that trains a tiny random backbone in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from small_project import SMALL, make_project

GRID: dict[str, Any] = {
    "name": "tiny",
    "description": "A grid | for tests.",
    "base": "tiny",
    "arms": ["joint", "freeze_low"],
    "seeds": [0, 1],
    "budget": {"sampled_tokens": 300, "max_steps": 4},
    "evaluate": {"tasks": 2, "samples": 2},
    "cross_play": {"arms": ["joint"], "every": 1, "snapshots": 2, "tasks": 2},
}


def make_experiment(root: Path, backbone: Path, **grid: Any) -> Path:
    """The project of `make_project` with settings and ``configs/experiments/tiny.yaml``.

    Its MLflow experiment is called like the directory, so that tests can share one store.
    """
    make_project(root, backbone)
    write_yaml(root / "params.yaml", {"profile": "tiny"})
    train = {k: v for k, v in SMALL["train"].items() if k != "steps"}
    tracking = {"experiment": root.name}
    write_yaml(root / "configs/tiny.yaml", {**SMALL, "train": train, "tracking": tracking})
    return write_grid(root, **grid)


def write_grid(root: Path, **grid: Any) -> Path:
    """`GRID` with other values; ``None`` leaves a key out. Returns ``root``."""
    values = {k: v for k, v in {**GRID, **grid}.items() if v is not None}
    write_yaml(root / "configs/experiments/tiny.yaml", values)
    return root


def write_yaml(path: Path, values: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values))
