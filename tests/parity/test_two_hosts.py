"""Training over two hosts: network namespaces that share no address, each with its own project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import process_jobs as jobs
from worlds import UNIT, run_world, same_rows, same_weights

from cahl_core.files import read_json

ROOT = Path(__file__).resolve().parents[2]
PARITY = Path(__file__).parent
TRAIN = {"train": {"tasks_per_step": 3, "planner": {"max_tokens": 16}}}


def namespaces_refused() -> str:
    """Why this machine makes no network namespaces; empty where it does."""
    if shutil.which("ip") is None:
        return "the ip command is missing"
    name = f"cahl-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode != 0:
        return f"ip netns add: {made.stderr.strip()}"
    cable = ["ip", "-n", name, "link", "add", "cahltry", "type", "veth", "peer", "name", "cahltry2"]
    linked = subprocess.run(cable, capture_output=True, text=True)
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return "" if linked.returncode == 0 else f"no virtual cable: {linked.stderr.strip()}"


def test_two_hosts_train_what_one_process_trains(tmp_path: Path, tiny_backbone: Path) -> None:
    if reason := namespaces_refused():
        pytest.skip(f"no network namespaces here: {reason}")
    one, here, there = (
        jobs.prepare(tmp_path / name, tiny_backbone, TRAIN) for name in ("one", "here", "there")
    )
    [(_, rows)] = run_world(jobs.train, 1, one)
    script = [str(ROOT / "scripts/two_hosts.sh"), str(here), str(there)]
    environment = {
        "PYTHON": sys.executable,
        "PYTHONPATH": f"{UNIT}:{ROOT}",
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*script, str(PARITY / "processes_worker.py"), "."],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = [read_json(root / f"seen-{rank}.json") for rank, root in enumerate((here, there))]
    assert [s["world"] for s in seen] == [2, 2]
    addresses = [set(s["addresses"]) - {"127.0.0.1"} for s in seen]
    assert addresses[0] and addresses[1] and not addresses[0] & addresses[1]
    for each in seen:
        same_rows(rows, each["rows"])
    same_weights(one / "models/cahl", here / "models/cahl")
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout
    assert not any(s["namespace"] in left.split() for s in seen)
