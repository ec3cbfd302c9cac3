"""Trains the small project in this process's world; rank 0 writes what it saw. Started by torchrun."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from small_project import pay_for_even_tokens

from cahl_core.config import validate
from cahl_core.files import read_json, write_json
from cahl_core.stage import StageRun
from cahl_core.training import joint
from cahl_core.training.distributed import Workers
from cahl_core.training.places import Places

torch.set_num_threads(1)
root = Path(sys.argv[1])
pay_for_even_tokens(pytest.MonkeyPatch())
rows = joint.train(
    StageRun("train", root, validate(read_json(root / "settings.json"))), Places.of_project(root)
)
workers = Workers()
if workers.is_main:
    write_json(root / "seen.json", {"world": workers.count, "rows": rows})
