"""SFT on several processes: the batches of one process, shared out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from cahl_core.files import read_json

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import FSDP2, run_world, same_weights

ROWS = {"sft": {"row_tokens": 400, "steps": 4}}  # two or three rows to a batch
LONE = {"sft": {"row_tokens": 900, "tokens_per_step": 300, "steps": 4}}  # rows for one process only
SHARED = {**ROWS, "model": {"weights": "shared_adapter"}}


@pytest.mark.parametrize(
    ("values", "environment"),
    [
        pytest.param(ROWS, {}, id="rows shared out"),
        pytest.param(LONE, {}, id="a process without a row"),
        pytest.param(SHARED, {}, id="one adapter for both roles"),
        pytest.param(ROWS, FSDP2, id="sharded"),
        pytest.param(LONE, FSDP2, id="sharded, a process without a row"),
    ],
)
def test_two_processes_learn_what_one_learns(
    tmp_path: Path, tiny_backbone: Path, values: dict[str, Any], environment: dict[str, str]
) -> None:
    one, two = (jobs.prepare(tmp_path / name, tiny_backbone, values) for name in ("one", "two"))
    assert run_world(jobs.sft, 1, one) == [1]
    assert run_world(jobs.sft, 2, two, environment=environment) == [2, 2]
    same_weights(one / "models/sft", two / "models/sft")
    assert read_json(two / "metrics/sft.json") == pytest.approx(
        read_json(one / "metrics/sft.json"), rel=1e-5
    )


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_another_number_of_processes_goes_on(
    tmp_path: Path, tiny_backbone: Path, first: int, then: int
) -> None:
    whole, cut = (jobs.prepare(tmp_path / name, tiny_backbone, ROWS) for name in ("whole", "cut"))
    assert run_world(jobs.sft, 1, whole) == [1]
    assert run_world(jobs.sft, first, cut, 3) == [first] * first
    assert list((cut / ".cahl").rglob("step-*"))
    assert run_world(jobs.sft, then, cut) == [then] * then
    same_weights(whole / "models/sft", cut / "models/sft")
