"""The launchers and configurations that the documentation names make one world, on CPUs too."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import UNIT

from cahl_core.files import read_json

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes", "2", "--config_file"]


@pytest.mark.parametrize(
    ("launcher", "sharded"),
    [
        pytest.param(TORCHRUN, False, id="torchrun"),
        pytest.param([*ACCELERATE, "configs/accelerate/ddp.yaml"], False, id="accelerate ddp"),
        pytest.param([*ACCELERATE, "configs/accelerate/fsdp2.yaml"], True, id="accelerate fsdp2"),
        pytest.param(
            [*ACCELERATE, "configs/accelerate/deepspeed_zero3.yaml"],
            True,
            id="accelerate deepspeed",
            marks=pytest.mark.skipif(
                importlib.util.find_spec("deepspeed") is None,
                reason="deepspeed is not installed: pip install 'cahl[deepspeed]'",
            ),
        ),
    ],
)
def test_two_processes_are_one_world(
    tmp_path: Path, tiny_backbone: Path, launcher: list[str], sharded: bool
) -> None:
    root = jobs.prepare(tmp_path, tiny_backbone, {"train": {"steps": 1, "evaluate_tasks": 0}})
    if launcher[0].startswith("accelerate"):
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            launcher = [*launcher, "--main_process_port", str(found.getsockname()[1])]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "tests/parity/processes_worker.py", str(root)],
        # accelerate alone would make two worlds of one where nobody says that there are only CPUs
        env={k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{UNIT}:{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [read_json(root / f"seen-{rank}.json") for rank in (0, 1)]
    assert [(s["world"], s["sharded"]) for s in seen] == [(2, sharded), (2, sharded)]
