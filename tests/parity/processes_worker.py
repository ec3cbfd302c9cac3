"""Trains the small project in this process's world and writes what it saw. Started by launchers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs

from cahl_core.files import write_json
from cahl_core.training.distributed import Workers


def asked(*command: str) -> list[str]:
    """The words that a command prints."""
    return subprocess.run(command, capture_output=True, text=True).stdout.split()


torch.set_num_threads(1)
root = Path(sys.argv[1])
world, rows = process_jobs.train(root)
seen = {
    "world": world,
    "sharded": Workers().sharded,
    "rows": rows,
    "addresses": asked("hostname", "-I"),
    "namespace": "".join(asked("ip", "netns", "identify")),
}
write_json(root / f"seen-{Workers().rank}.json", seen)
