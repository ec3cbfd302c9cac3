"""Our training step and TRL's, side by side in one interleaved run.

    benchmarks/trl_env.sh                                  # TRL's environment, once
    .venv/bin/python benchmarks/versus_trl/driver.py [--points long-8 long-32 …] [--steps 10] [--repeats 3]
    .venv/bin/python benchmarks/versus_trl/driver.py --tune --points long-8    # which settings suit TRL
    .venv/bin/python benchmarks/versus_trl/driver.py --check                   # is it the same gradient

Every arm is a process in its own environment; one works at a time, and they take turns step by step. A
repeat starts all of them anew. Results go to benchmarks/results/versus_trl.json after every step; points,
tunings and checks that are there already stay unless they are measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from arms import ARMS, OURS, ROOT, THEIRS, Arm, TrlSettings, make_adapter
from record import measure_limits, provenance
from worker import has_bf16
from workload import Point, tree_minimum

from cahl_core.files import read_json, write_json

RESULT = ROOT / "benchmarks/results/versus_trl.json"
POINTS = {
    "long-8": Point(prompt=1000, samples=8, tokens=64),
    "long-32": Point(prompt=1000, samples=32, tokens=64),
    "long-8-100": Point(prompt=1000, samples=8, tokens=100),
    "short-8": Point(prompt=256, samples=8, tokens=64),
    "shortest-8": Point(prompt=64, samples=8, tokens=64),
    "joint": Point(prompt=1000, tokens=64, plans=4, sub_tasks=2, samples=2),
    "joint-trial": Point(  # seconds, to see that it runs
        prompt=200, tokens=12, plans=2, sub_tasks=2, samples=2, tools=150, sub_task=20, call=8
    ),
}
DEFAULT = ("long-8", "long-32", "long-8-100", "short-8", "joint")
COMPILED = "bf16 weights, autocast, 4 rows, compiled"  # compiles for many minutes on two cores
UPDATES = {
    "bf16 weights, autocast, 8 rows": TrlSettings(micro_batch=8),
    "bf16 weights, autocast, 4 rows": TrlSettings(micro_batch=4),
    "bf16 weights, autocast, 2 rows": TrlSettings(micro_batch=2),
    "bf16 weights, autocast, 1 row": TrlSettings(micro_batch=1),
    "bf16 weights, no autocast, 4 rows": TrlSettings(micro_batch=4, autocast=False),
    "fp32 weights, autocast, 4 rows": TrlSettings(micro_batch=4, weights="fp32"),
    COMPILED: TrlSettings(micro_batch=4, compile=True),
}
FLOAT32 = {  # where nothing is computed in bfloat16
    "fp32, 8 rows": TrlSettings(weights="fp32", autocast=False, micro_batch=8),
    "fp32, 4 rows": TrlSettings(weights="fp32", autocast=False, micro_batch=4),
    "fp32, 2 rows": TrlSettings(weights="fp32", autocast=False, micro_batch=2),
    "fp32, 1 row": TrlSettings(weights="fp32", autocast=False, micro_batch=1),
}
CACHES: dict[str, dict[str, Any]] = {  # of continuous batching; the update is generate's best
    "pages of 32": {"page_size": 32},
    "pages of 8": {"page_size": 8},
    "pages of 256": {"page_size": 256},
    "transformers' own size": {"max_memory_percent": 0.5},
}


def main() -> None:
    """Checks, tunes or measures, as asked."""
    options = _options()
    missing = [p for p in (OURS, THEIRS) if not p.exists()]
    if missing:
        sys.exit(f"{missing[0].relative_to(ROOT)} is missing: run make env, benchmarks/trl_env.sh")
    result = read_json(options.out) if options.out.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        common = {
            "backbone": str(options.backbone),
            "adapter": f"{folder}/adapter",
            "dtype": options.dtype,
            "loss": options.loss,
            "learning_rate": 1e-5,
        }
        make_adapter(options.backbone, Path(common["adapter"]))
        if options.check:
            from check import check

            result["check"] = check(common, options.threads, Path(folder))
            result["check_made"] = provenance(options.threads)
            print(json.dumps(result["check"], indent=2))
            write_json(options.out, result)
            return
        for name in options.points:
            run = tune if options.tune else measure
            run(name, point_of(name), common, options, result)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--points", nargs="+", default=DEFAULT,
        help=f"{', '.join(POINTS)}, or prompt×samples×tokens[×tasks] such as 512x8x64",
    )  # fmt: skip
    parser.add_argument("--arms", nargs="+", default=ARMS, choices=ARMS)
    parser.add_argument("--steps", type=int, default=10, help="counted steps of an arm and repeat")
    parser.add_argument("--warmup", type=int, default=1, help="steps before them")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--theirs-every", type=int, default=1,
        help="TRL's arms do every n-th step only: where a step of theirs takes minutes",
    )  # fmt: skip
    parser.add_argument(
        "--limits", action=argparse.BooleanOptionalAction, default=True,
        help="what the machine does at best, before and after each point",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"))
    parser.add_argument("--loss", default="grpo", choices=("grpo", "dr_grpo", "dapo"))
    parser.add_argument("--backbone", type=Path, default=ROOT / "data/backbone")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--tune", action="store_true", help="try settings of TRL instead")
    parser.add_argument(
        "--candidates",
        nargs="+",
        choices=[*UPDATES, *FLOAT32],
        help="of --tune; by default all for the dtype but the compiled",
    )
    parser.add_argument("--check", action="store_true", help="compare gradients instead")
    return parser.parse_args()


def point_of(name: str) -> Point:
    """A named point, or one spelt out."""
    if name in POINTS:
        return POINTS[name]
    numbers = [int(n) for n in name.replace("×", "x").split("x")]
    return Point(*numbers[:4])


def computes_low(options: argparse.Namespace) -> bool:
    """Whether the arms compute in bfloat16."""
    return bool(options.dtype == "bfloat16" or (options.dtype == "auto" and has_bf16()))


def measure(
    name: str,
    point: Point,
    common: dict[str, Any],
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """All arms at one point, step by step in turn; writes after every step."""
    low = computes_low(options)
    entry: dict[str, Any] = {
        **provenance(options.threads),
        "point": asdict(point),
        "tree_minimum": tree_minimum(point),
        "loss": options.loss,
        "limits": {},
        "arms": {arm: {"repeats": []} for arm in options.arms},
    }
    if options.limits:
        entry["limits"]["before"] = measure_limits(options.backbone, options.threads, low)
    result.setdefault("points", {})[name] = entry
    for repeat in range(options.repeats):
        arms: dict[str, Arm] = {}
        try:
            for arm in options.arms:
                settings = settings_of(result, name, arm)
                arms[arm] = Arm(arm, point, common, options.threads, settings)
                entry["arms"][arm] |= arms[arm].facts
                entry["arms"][arm]["repeats"].append([])
            for index in range(options.warmup + options.steps):
                counted = index - options.warmup
                for arm in list(arms):
                    if arm != "ours" and counted > 0 and counted % options.theirs_every:
                        continue
                    try:
                        step = arms[arm].step(index)
                    except RuntimeError as error:  # out of memory, most likely: the others go on
                        entry["arms"][arm]["failed"] = str(error)[-800:]
                        arms.pop(arm).end()
                        print(f"{name} r{repeat} s{index} {arm}: {error}", flush=True)
                        continue
                    if counted >= 0:
                        entry["arms"][arm]["repeats"][repeat].append(step)
                        write_json(options.out, result)
                    _say(name, repeat, index, arm, step)
        finally:
            for running in arms.values():
                running.end()
    if options.limits:
        entry["limits"]["after"] = measure_limits(options.backbone, options.threads, low)
    entry["ended"] = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
    write_json(options.out, result)


def settings_of(result: dict[str, Any], name: str, arm: str) -> TrlSettings | None:
    """The best that tuning found for this point, else for the nearest main point, else the default."""
    if arm == "ours":
        return None
    tuned = result.get("tuning", {})
    for candidate in (name, "long-8"):
        best = tuned.get(candidate, {}).get(arm, {}).get("best")
        if best:
            return TrlSettings(**tuned[candidate][arm]["tried"][best]["settings"])
    return TrlSettings(micro_batch=4)


def tune(
    name: str,
    point: Point,
    common: dict[str, Any],
    options: argparse.Namespace,
    result: dict[str, Any],
) -> None:
    """Every candidate setting of every TRL arm for some steps; the fastest median wins."""
    found = result.setdefault("tuning", {}).setdefault(name, {})
    for arm in options.arms:
        if arm == "ours":
            continue
        tried: dict[str, Any] = {}
        entry = found[arm] = {**provenance(options.threads), "tried": tried, "best": None}
        for label, settings in _candidates(arm, name, result, options).items():
            try:
                steps = _trial(arm, point, common, options, settings)
                middle = sorted(steps, key=lambda s: s["total"])[len(steps) // 2]
                tried[label] = {"settings": asdict(settings), **middle}
                _say(f"{name} {label}", 0, 0, arm, middle)
            except RuntimeError as error:
                tried[label] = {"settings": asdict(settings), "failed": str(error)[-400:]}
                print(f"{name} {arm} {label}: failed", flush=True)
            worked = {k: v["total"] for k, v in tried.items() if "total" in v}
            entry["best"] = min(worked, key=lambda k: worked[k]) if worked else None
            write_json(options.out, result)


def _candidates(
    arm: str, name: str, result: dict[str, Any], options: argparse.Namespace
) -> dict[str, TrlSettings]:
    if arm == "trl_generate":
        known = UPDATES | FLOAT32
        low = [name for name in UPDATES if name != COMPILED]
        usual = low if computes_low(options) else list(FLOAT32)
        return {name: known[name] for name in options.candidates or usual}
    best = settings_of(result, name, "trl_generate") or TrlSettings()
    return {label: replace(best, continuous=cache) for label, cache in CACHES.items()}


def _trial(
    arm: str,
    point: Point,
    common: dict[str, Any],
    options: argparse.Namespace,
    settings: TrlSettings,
) -> list[dict[str, Any]]:
    running = Arm(arm, point, common, options.threads, settings)
    try:
        steps = [running.step(index) for index in range(options.warmup + options.steps)]
    finally:
        running.end()
    return steps[options.warmup :]


def _say(name: str, repeat: int, index: int, arm: str, step: dict[str, Any]) -> None:
    phases = ", ".join(f"{k} {v:.2f}" for k, v in step["seconds"].items())
    clock = time.strftime("%H:%M:%S", time.gmtime())
    print(f"{clock} {name} r{repeat} s{index} {arm}: {step['total']:.2f} s ({phases})", flush=True)


if __name__ == "__main__":
    main()
