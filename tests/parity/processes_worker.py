"""Trains the small project in this process's world; rank 0 writes what it saw. Started by launchers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs

from cahl_core.files import write_json
from cahl_core.training.distributed import Workers

torch.set_num_threads(1)
root = Path(sys.argv[1])
world, rows = process_jobs.train(root)
if Workers().is_main:
    write_json(root / "seen.json", {"world": world, "rows": rows})
