"""Several processes train what one trains: same samples, same rewards, weights equal but for rounding."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cahl_core.files import read_json, write_json

UNIT = Path(__file__).resolve().parents[1] / "unit"
sys.path.insert(0, str(UNIT))

from small_project import make_project, random_start, small_settings  # noqa: E402

TRAIN: dict[str, Any] = {
    "tasks_per_step": 4,
    "curriculum": {"kind": "capability"},
    "inner_epochs": 2,
    "planner": {"max_tokens": 24, "dynamic_sampling": True, "advantage": "batch_std"},
    "executor": {"max_tokens": 16, "kl_weight": 0.1, "entropy_weight": 0.01},
}


def _run(root: Path, backbone: Path, processes: int) -> dict[str, Any]:
    make_project(root, backbone)
    settings = small_settings(**TRAIN)
    random_start(root, settings)
    write_json(root / "settings.json", settings.model_dump(mode="json", by_alias=True))
    worker = str(Path(__file__).with_name("processes_worker.py"))
    command = [sys.executable, worker, str(root)]
    if processes > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        command = [*torchrun, "--standalone", f"--nproc_per_node={processes}", *command[1:]]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(UNIT), "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen: dict[str, Any] = read_json(root / "seen.json")
    return seen


def test_two_processes_train_what_one_trains(tmp_path: Path, tiny_backbone: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = _run(tmp_path / "one", tiny_backbone, 1)
    two = _run(tmp_path / "two", tiny_backbone, 2)
    assert (one["world"], two["world"]) == (1, 2)
    for mine, theirs in zip(one["rows"], two["rows"], strict=True):
        timed = {k for k in mine if "second" in k} | {
            # each process packs its own share and keeps its own largest gap
            k for k in mine if k.endswith(("packed_tokens", "_max", "encoded_prompt_tokens"))
        }  # fmt: skip
        assert {k: v for k, v in theirs.items() if k not in timed} == pytest.approx(
            {k: v for k, v in mine.items() if k not in timed}, rel=1e-3, abs=1e-4
        )
    for role in ("planner", "executor"):
        first, second = (
            load_file(tmp_path / name / "models/cahl" / role / "adapter_model.safetensors")
            for name in ("one", "two")
        )
        for key, value in first.items():
            torch.testing.assert_close(second[key], value, rtol=1e-3, atol=1e-5)
