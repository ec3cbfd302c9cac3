"""What it costs when threads that wait for each other spin or sleep: alone, and beside another program.

    .venv/bin/python benchmarks/waiting_threads.py [--repeats 3]

OpenMP's threads spin for a while before they sleep. On cores that somebody else also uses, a thread then
spins for one that is not running. Times decoding and update of one step with the settings of `POLICIES`, a
process each, in turn, first alone and then beside a program that keeps one core busy. Writes
benchmarks/results/waiting_threads.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks/results/waiting_threads.json"
POLICIES: dict[str, dict[str, str]] = {
    "libgomp's own": {},
    "GOMP_SPINCOUNT=100000": {"GOMP_SPINCOUNT": "100000"},
    "GOMP_SPINCOUNT=10000": {"GOMP_SPINCOUNT": "10000"},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
POINT = {"prompt": 500, "samples": 8, "tokens": 32}
BUSY = "while True: pass"


def main() -> None:
    """Measures every setting alone and beside a busy program, prints and writes the medians."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="processes per setting")
    parser.add_argument("--backbone", type=Path, default=ROOT / "data/backbone")
    parser.add_argument("--places", default="alone,beside")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(_measure(options.backbone)))
        return
    sys.path.insert(0, str(ROOT / "benchmarks/versus_trl"))
    from record import provenance

    result = {**provenance(os.cpu_count() or 1), "point": POINT, "median": {}, "times": {}}
    for place in options.places.split(","):
        busy = subprocess.Popen([sys.executable, "-c", BUSY]) if place == "beside" else None
        try:
            _all(result, place, options)
        finally:
            if busy is not None:
                busy.kill()
                busy.wait()


def _all(result: dict[str, Any], place: str, options: argparse.Namespace) -> None:
    """All settings in turn, so that a busy moment meets all of them; the file is written each time."""
    from cahl_core.files import write_json

    times: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    for _ in range(options.repeats):
        for name, policy in POLICIES.items():
            times[name].append(_worker(options.backbone, policy))
            print(f"{place}, {name}: {times[name][-1]}", flush=True)
            result["times"][place] = times
            result["median"][place] = {
                n: {k: round(statistics.median(r[k] for r in runs), 3) for k in runs[0]}
                for n, runs in times.items()
                if runs
            }
            write_json(options.out, result)


def _worker(backbone: Path, policy: dict[str, str]) -> dict[str, float]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))}
    ran = subprocess.run(
        [sys.executable, __file__, "--worker", "--backbone", str(backbone)],
        env=clean | policy,
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode:
        raise SystemExit(ran.stderr)
    found: dict[str, float] = json.loads(ran.stdout.splitlines()[-1])
    return found


def _measure(backbone: Path) -> dict[str, Any]:
    """Seconds of decoding (all tokens less one) and of the update, the better of two."""
    import profile_step  # which finds its neighbours and loads torch
    from arms import make_adapter
    from ours import Ours

    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder) / "adapter"
        make_adapter(backbone, adapter)
        spec = {"backbone": str(backbone), "adapter": str(adapter), "dtype": "auto", "loss": "grpo",
                "learning_rate": 1e-5, "point": POINT}  # fmt: skip
        arm = Ours(spec)
        found: dict[str, list[float]] = {"decoding": [], "update": []}
        for _ in range(3):  # the first compiles kernels
            one = profile_step.timed(lambda: profile_step.generate(arm, 1))
            every = profile_step.timed(lambda: profile_step.generate(arm, POINT["tokens"]))
            found["decoding"].append(every - one)
            found["update"].append(profile_step.timed(lambda: profile_step.update_once(arm)))
    return {name: min(values[1:]) for name, values in found.items()}


if __name__ == "__main__":
    main()
