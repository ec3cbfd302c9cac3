"""Layers partitioned by DeepSpeed train, sample and are saved as whole ones are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import run_world, same_rows, same_weights

from cahl_core.config import ModelSettings
from cahl_core.errors import ConfigError
from cahl_core.files import write_json
from cahl_core.policy.backbone import Policy
from cahl_core.training.zero3 import Stage3, partition

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None,
    reason="deepspeed is not installed: pip install 'cahl[deepspeed]'",
)

TRAIN: dict[str, Any] = {
    "steps": 2,
    "tasks_per_step": 3,
    "evaluate_tasks": 1,
    "inner_epochs": 2,
    "planner": {"max_tokens": 24, "kl_weight": 0.1},
    "executor": {"max_tokens": 16},
}
CASES = [
    pytest.param({"train": TRAIN}, id="two adapters"),
    pytest.param({"train": {**TRAIN, "tasks_per_step": 1}}, id="a process without a task"),
    pytest.param(
        {"train": TRAIN, "model": {"gradient_checkpointing": True}}, id="gradient checkpointing"
    ),
]


def deepspeed(folder: Path) -> dict[str, str]:
    """A launch that partitions even the smallest vector, and gathers about a layer ahead."""
    file = folder / "zero3.json"
    stage = {"stage": 3, "stage3_param_persistence_threshold": 0}
    write_json(file, {"zero_optimization": stage | {"stage3_prefetch_bucket_size": 10_000}})
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }


@needs_deepspeed
@pytest.mark.parametrize("values", CASES)
def test_two_processes_with_parts_train_what_one_trains_with_the_whole(
    tmp_path: Path, tiny_backbone: Path, values: dict[str, Any]
) -> None:
    one, two = (jobs.prepare(tmp_path / name, tiny_backbone, values) for name in ("one", "two"))
    [(world, rows)] = run_world(jobs.train, 1, one)
    seen = run_world(jobs.train, 2, two, environment=deepspeed(tmp_path))
    assert (world, [count for count, _ in seen]) == (1, [2, 2])
    for _, theirs in seen:
        same_rows(rows, theirs)
    same_weights(one / "models/cahl", two / "models/cahl")


@needs_deepspeed
def test_sft_learns_the_same_too(tmp_path: Path, tiny_backbone: Path) -> None:
    values = {"sft": {"row_tokens": 900, "tokens_per_step": 300, "steps": 4}}  # rows for one only
    one, two = (jobs.prepare(tmp_path / name, tiny_backbone, values) for name in ("one", "two"))
    assert run_world(jobs.sft, 1, one) == [1]
    assert run_world(jobs.sft, 2, two, environment=deepspeed(tmp_path)) == [2, 2]
    same_weights(one / "models/sft", two / "models/sft")


@needs_deepspeed
def test_each_process_holds_half_of_every_layer(tmp_path: Path, tiny_backbone: Path) -> None:
    root = jobs.prepare(tmp_path, tiny_backbone, {})
    [(whole, adapters)] = run_world(jobs.held, 1, root)
    parts = run_world(jobs.held, 2, root, environment=deepspeed(tmp_path))
    assert [2 * layers for layers, _ in parts] == [whole, whole]
    assert [count for _, count in parts] == [adapters, adapters]


@needs_deepspeed
def test_layers_that_train_are_refused(tmp_path: Path, tiny_backbone: Path) -> None:
    root = jobs.prepare(tmp_path, tiny_backbone, {"model": {"weights": "two_models"}})
    said = run_world(jobs.train, 2, root, environment=deepspeed(tmp_path))
    assert all("launch with configs/accelerate/fsdp2.yaml" in str(error) for error in said)


def test_where_deepspeed_is_missing_the_message_says_how_to_get_it(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    policy = Policy.load(tiny_backbone, None, ModelSettings(max_context=512))
    with pytest.raises(ConfigError, match=r"pip install 'cahl\[deepspeed\]'"):
        partition(policy, frozenset(), Stage3(stage=3))
