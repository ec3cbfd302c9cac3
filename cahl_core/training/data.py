"""Prepared tasks as training reads them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from cahl_core.errors import StageInputError
from cahl_core.files import read_jsonl
from cahl_core.records import ToolTask


def load_tasks(path: Path) -> list[ToolTask]:
    """All tasks of a prepared JSON Lines file.

    Raises:
        StageInputError: the file is missing or holds no task.
        DataError: a line is not a task.
    """
    if not path.exists():
        raise StageInputError(f"{path} does not exist", "run `cahl prepare` first")
    tasks = [ToolTask.from_json(r, f"{path}:{n}") for n, r in enumerate(read_jsonl(path), 1)]
    if not tasks:
        raise StageInputError(
            f"{path} holds no task", "see data/prepared/quarantine.jsonl for the reasons"
        )
    return tasks


def draw(tasks: Sequence[ToolTask], step: int, count: int, seed: int) -> list[ToolTask]:
    """The tasks of one training step: every epoch is a fresh permutation, nothing is stored."""
    out: list[ToolTask] = []
    for position in range(step * count, (step + 1) * count):
        epoch, index = divmod(position, len(tasks))
        order = list(range(len(tasks)))
        random.Random(f"{seed}/tasks/{epoch}").shuffle(order)
        out.append(tasks[order[index]])
    return out
