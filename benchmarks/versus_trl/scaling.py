"""How a step grows with prompt length, samples per prompt and tasks per step.

    .venv/bin/python benchmarks/versus_trl/scaling.py [--series prompt samples tasks] [--steps 3]
    .venv/bin/python benchmarks/versus_trl/scaling.py --theirs 256 1024     # TRL too, at these prompts

Ours at every point; TRL's arms at the values named by ``--theirs`` of each series (its steps are the
long ones). Writes benchmarks/results/scaling.json after every step; points that are there with all their
arms are kept, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from arms import ARMS, OURS, ROOT, THEIRS, make_adapter
from driver import RESULT, measure
from workload import Point

from cahl_core.files import read_json

BASE = Point(prompt=1000, samples=8, tokens=64)
SERIES: dict[str, tuple[int, ...]] = {
    "prompt": (256, 512, 1024, 2048, 4096),
    "samples": (2, 4, 8, 16, 32),
    "tasks": (1, 2, 4),
}
THEIRS_AT = {"prompt": (256, 1024), "samples": (2, 8), "tasks": (1,)}


def main() -> None:
    """Measures what is missing."""
    options = _options()
    if options.theirs and not THEIRS.exists():
        sys.exit(f"{THEIRS.relative_to(ROOT)} is missing: run benchmarks/trl_env.sh")
    result = read_json(options.out) if options.out.exists() else {}
    if options.tuning.exists():  # the settings of TRL that the main run used
        result["tuning"] = read_json(options.tuning).get("tuning", {})
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "backbone": str(options.backbone),
            "adapter": f"{folder}/adapter",
            "dtype": options.dtype,
            "loss": options.loss,
            "learning_rate": 1e-5,
        }
        make_adapter(options.backbone, Path(common["adapter"]))
        for series in options.series:
            for value in SERIES[series]:
                theirs = value in (options.theirs or THEIRS_AT[series])
                options.arms = [a for a in options.among if a == "ours" or theirs]
                name = f"{series}={value}"
                if not _complete(result.get("points", {}).get(name), options):
                    measure(name, replace(BASE, **{series: value}), common, options, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", nargs="+", default=list(SERIES), choices=SERIES)
    parser.add_argument(
        "--theirs", nargs="*", type=int, help=f"values with TRL's arms too; default {THEIRS_AT}"
    )
    parser.add_argument("--among", nargs="+", default=ARMS, choices=ARMS, help="arms at all")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--warmup", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--theirs-every", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--loss", default="grpo")
    parser.add_argument("--backbone", type=Path, default=ROOT / "data/backbone")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/scaling.json")
    parser.add_argument("--tuning", type=Path, default=RESULT)
    parser.add_argument("--limits", action=argparse.BooleanOptionalAction, default=False)
    options = parser.parse_args()
    if not OURS.exists():
        sys.exit(f"{OURS.relative_to(ROOT)} is missing: run make env")
    print(json.dumps({"series": options.series, "out": str(options.out)}))
    return options


def _complete(entry: dict[str, Any] | None, options: argparse.Namespace) -> bool:
    """Whether this point was measured to its end, with every arm that is asked for."""
    if entry is None or "ended" not in entry:
        return False
    steps = [len(r) for r in entry["arms"].get("ours", {}).get("repeats", [])]
    enough = len(steps) >= options.repeats and min(steps, default=0) >= options.steps
    return enough and all(arm in entry["arms"] for arm in options.arms)


if __name__ == "__main__":
    main()
