"""Prepared tasks as training reads them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

from cahl_core.errors import StageInputError
from cahl_core.files import read_jsonl
from cahl_core.records import ToolTask


def split_files(folder: Path, split: str) -> list[Path]:
    """The files of a split of ``data/prepared``: one JSON Lines file, or Parquet shards in order.

    Raises:
        StageInputError: there is neither.
    """
    single = folder / f"{split}.jsonl"
    if single.exists():
        return [single]
    if shards := sorted(folder.glob(f"{split}-*-of-*.parquet")):
        return shards
    raise StageInputError(f"{single} does not exist", "run `cahl prepare` first")


def load_split(folder: Path, split: str) -> Sequence[ToolTask]:
    """All tasks of a split; those of Parquet shards are mapped, not read into memory.

    Raises:
        StageInputError: the split is missing or holds no task. DataError: a line is not a task.
    """
    files = split_files(folder, split)
    if files[0].suffix == ".parquet":
        return ParquetTasks(files)
    return load_tasks(files[0])


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


class ParquetTasks(Sequence[ToolTask]):
    """Tasks of Parquet shards through ``datasets``: memory-mapped, each parsed when it is asked for."""

    def __init__(self, shards: Sequence[Path]) -> None:
        import datasets

        self.rows: Any = datasets.Dataset.from_parquet(
            [str(s) for s in shards],
            columns=["record", "weight"],
            cache_dir=str(shards[0].parent / ".arrow"),
        )

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, index: int) -> ToolTask: ...
    @overload
    def __getitem__(self, index: slice) -> list[ToolTask]: ...
    def __getitem__(self, index: int | slice) -> ToolTask | list[ToolTask]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return ToolTask.from_json(json.loads(self.rows[index]["record"]), f"row {index}")


def epoch_order(weights: Sequence[float], key: str) -> list[int]:
    """The tasks of one pass in random order, task i ``weights[i]`` times on average.

    Guarantees: a pass has ``round(sum(weights))`` entries (at least one), each task is in it
    ``floor(w)`` or ``ceil(w)`` times (systematic sampling), so with weights of 1 exactly once.

    >>> sorted(epoch_order([1, 1, 2, 0], "0"))
    [0, 1, 2, 2]
    """
    generator = random.Random(key)
    total = math.fsum(weights)
    count = max(round(total), 1)
    offset = generator.random() if any(w != 1 for w in weights) else 0.5
    chosen: list[int] = []
    reached = 0.0
    for index, weight in enumerate(weights):
        # the last sum is exact, so that rounding loses no entry
        reached = total if index == len(weights) - 1 else reached + weight
        while len(chosen) < count and (len(chosen) + offset) * total < reached * count:
            chosen.append(index)
    generator.shuffle(chosen)
    return chosen


def weights_of(tasks: Sequence[ToolTask]) -> list[float]:
    """Each task's share of a pass (``prepare.weights``, 1 where nothing is set).

    Raises:
        StageInputError: all weights are 0.
    """
    if isinstance(tasks, ParquetTasks):
        weights = [float(w) for w in tasks.rows["weight"]]
    else:
        weights = [float(task.meta.get("weight", 1.0)) for task in tasks]
    if not any(weights):
        raise StageInputError(
            "every training task has weight 0", "correct prepare.weights and run `cahl prepare`"
        )
    return weights
