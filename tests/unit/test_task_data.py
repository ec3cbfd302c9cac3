"""How training reads prepared tasks: weights, passes, Parquet shards."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.datasets.assemble import Splits
from cahl_core.datasets.output import write_splits
from cahl_core.datasets.store import LineStore
from cahl_core.errors import DataError, StageInputError
from cahl_core.files import dump_json
from cahl_core.records import Message, ToolTask
from cahl_core.training.data import epoch_order, load_split, load_tasks, split_files, weights_of


def _task(number: int) -> ToolTask:
    messages = (Message("user", f"request {number}"),)
    return ToolTask(f"t{number}", "toy", messages, (), (), meta={"weight": 0.5 + number})


@given(st.lists(st.integers(0, 400), min_size=1, max_size=20).filter(any), st.integers(0, 99))
def test_a_pass_holds_each_task_as_often_as_its_weight_says(
    hundredths: list[int], key: int
) -> None:
    weights = [w / 100 for w in hundredths]
    order = epoch_order(weights, str(key))
    assert len(order) == max(round(math.fsum(weights)), 1)
    share = len(order) / math.fsum(weights)
    for index, weight in enumerate(weights):
        assert abs(order.count(index) - weight * share) < 1 + 1e-6
    assert order == epoch_order(weights, str(key))


def test_parquet_shards_are_the_same_tasks_as_json_lines(tmp_path: Path) -> None:
    tasks = [_task(n) for n in range(5)]
    lines, facts = LineStore(tmp_path / "a"), LineStore(tmp_path / "b")
    for task in tasks:
        lines.append((dump_json(task.to_json()) + "\n").encode())
        row = {
            "id": task.id,
            "source": "s",
            "kind": "original",
            "n_steps": 1,
            "depth": 1,
            "n_tools": 1,
        }
        facts.append((dump_json({**row, "weight": task.meta["weight"]}) + "\n").encode())
    splits = Splits(lines, facts, {"train": [3, 1, 0, 4, 2], "dev": [0], "dev_unseen_tools": []})
    for name, shard_rows in (("jsonl", 50), ("parquet", 2)):
        (tmp_path / name).mkdir()
        write_splits(tmp_path / name, splits, shard_rows)
    assert len(split_files(tmp_path / "parquet", "train")) == 3
    whole, shards = (load_split(tmp_path / name, "train") for name in ("jsonl", "parquet"))
    assert list(shards) == list(whole) == [tasks[n] for n in (3, 1, 0, 4, 2)]
    assert weights_of(shards) == weights_of(whole) == [3.5, 1.5, 0.5, 4.5, 2.5]


def test_missing_empty_and_malformed_task_files_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    with pytest.raises(StageInputError, match="cahl prepare"):
        load_tasks(path)
    path.write_text("")
    with pytest.raises(StageInputError, match=r"quarantine\.jsonl"):
        load_tasks(path)
    path.write_text('{"id": "a"}\n')
    with pytest.raises(DataError, match=r"train\.jsonl:1 \(id 'a'\).*'answers' is missing"):
        load_tasks(path)
