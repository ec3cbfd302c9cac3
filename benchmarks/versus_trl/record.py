"""What a result file says about where it comes from."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from arms import HERE, OURS, ROOT

Shape = tuple[int, int]


def provenance(threads: int) -> dict[str, Any]:
    """Commit, time, command and machine."""
    from datetime import UTC, datetime

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout.strip()

    return {
        "commit": git("rev-parse", "--short", "HEAD"),
        "modified": bool(git("status", "--porcelain", "--untracked-files=no", "cahl_core")),
        "command": " ".join([os.path.relpath(Path(sys.argv[0]).resolve(), ROOT), *sys.argv[1:]]),
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": threads,
            "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            "load": os.getloadavg()[0],
        },
    }


def processor() -> str:
    """The processor's name, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def model_shapes(backbone: Path) -> tuple[list[Shape], Shape]:
    """``(out, in)`` of every matrix of the layers, and of the head, from config.json (Llama's form)."""
    config = json.loads((backbone / "config.json").read_text())
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    small = config.get("num_key_value_heads", heads) * width
    layer = [
        (heads * width, hidden), (small, hidden), (small, hidden), (hidden, heads * width),
        (inner, hidden), (inner, hidden), (hidden, inner),
    ]  # fmt: skip
    return layer * config["num_hidden_layers"], (config["vocab_size"], hidden)


def measure_limits(backbone: Path, threads: int, low: bool) -> dict[str, float]:
    """`machine_limits` for this backbone, in a process of its own."""
    shapes, head = model_shapes(backbone)
    weights = sum(o * i for o, i in [*shapes, head]) * (2 if low else 4)
    spec = {
        "weights_bytes": weights,
        "shapes": [*shapes, head],
        "dtype": "bfloat16" if low else "float32",
    }
    found = subprocess.run(
        [str(OURS), str(HERE / "limits.py"), json.dumps(spec)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    ).stdout
    return {**json.loads(found), "weights_bytes": weights}
