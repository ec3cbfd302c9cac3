"""All arms in a world whose right plan is known (docs/toy-world.md): one run each, equal sampled tokens.

    .venv/bin/python benchmarks/toy_world.py [--seeds 5] [--arms joint freeze_low ...] [--jobs 2]

Every run is training's own code on the CPU, one thread, float32. ``--resume`` keeps the runs that the
result file already holds for the same settings and versions. Writes benchmarks/results/toy_world.json and
docs/images/toy-world.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from toy import world  # noqa: E402
from toy.runs import ARMS, earned, form_of, settings, train, warm_start  # noqa: E402

RESULT = ROOT / "benchmarks/results/toy_world.json"
FIGURE = ROOT / "docs/images/toy-world.png"
TARGET = 0.95
LAST = 10  # steps that the final figures are means over


def main() -> None:
    """Trains what is missing, writes the JSON after every run, then the figure and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side")
    parser.add_argument("--resume", action="store_true", help="keep the runs that are there")
    parser.add_argument("--one", nargs=3, metavar=("START", "ARM", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        start, arm, seed = options.one
        print(json.dumps(_one(Path(start), arm, int(seed))))
        return
    result = _frame()
    if options.resume and RESULT.exists():
        result |= _kept(json.loads(RESULT.read_text()), result)
    wanted = [(arm, seed) for seed in range(options.seeds) for arm in options.arms]
    missing = [(a, s) for a, s in wanted if str(s) not in result["runs"].get(a, {})]
    with tempfile.TemporaryDirectory() as scratch:
        starts = {
            f: _start(Path(scratch), f) for f in dict.fromkeys(form_of(a) for a, _ in missing)
        }
        with ThreadPoolExecutor(options.jobs) as pool:
            for arm, seed, run in pool.map(
                lambda m: (*m, _apart(starts[form_of(m[0])], *m)), missing
            ):
                result["runs"].setdefault(arm, {})[str(seed)] = run
                _write(result)
                print(f"{arm} {seed}: {_final(run):.3f} in {run['seconds']:.0f} s", flush=True)
    result["summary"] = {arm: summary(result["runs"][arm]) for arm in ARMS if arm in result["runs"]}
    _write(result)
    _draw(result)
    print(json.dumps(result["summary"], indent=2))


def _frame() -> dict[str, Any]:
    """A result without runs: the world, the settings, what they ran on."""
    return {
        "world": {
            "optimum": world.OPTIMUM,
            "chance": world.CHANCE,
            "start": world.START,
            "frozen_executor": world.FROZEN_EXECUTOR,
            "goals": len(world.GOALS),
        },
        "settings": {
            arm: settings(arm, 0).model_dump(mode="json", include={"model", "sft", "train"})
            for arm in ARMS
        },
        "versions": _versions(),
        "commit": _commit(),
        "runs": {},
    }


def _kept(old: dict[str, Any], frame: dict[str, Any]) -> dict[str, Any]:
    """The runs of ``old``, and the commit they are of, if nothing else differs."""
    same = all(
        old.get(k) == json.loads(json.dumps(frame[k])) for k in ("world", "settings", "versions")
    )
    return {key: old[key] for key in ("commit", "runs")} if same else {}


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def _versions() -> dict[str, str]:
    import peft
    import torch
    import transformers

    return {
        "torch": torch.__version__, "transformers": transformers.__version__,
        "peft": peft.__version__, "python": platform.python_version(),
    }  # fmt: skip


def _start(scratch: Path, form: str) -> Path:
    return warm_start(scratch / form, form)


def _apart(start: Path, arm: str, seed: int) -> dict[str, Any]:
    """One run in a process of its own."""
    command = [sys.executable, __file__, "--one", str(start), arm, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _one(start: Path, arm: str, seed: int) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        rows = train(start, Path(out), settings(arm, seed))
    tokens = 0.0
    curve = []
    for row in rows:
        tokens += row["sampled_tokens"]
        curve.append(
            [int(tokens), round(earned(row, form_of(arm)), 5), round(row["task_success"], 5)]
        )
    return {"seconds": round(time.perf_counter() - began, 1), "curve": curve}


def _write(result: dict[str, Any]) -> None:
    """Indented, but a curve's point is one line."""
    text = json.dumps(result, indent=1)
    text = re.sub(r"\[\s+([^\[\]{}\"]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(text + "\n")


# --- what the runs say ---------------------------------------------------------------------------


def _final(run: dict[str, Any], column: int = 1) -> float:
    return statistics.fmean(point[column] for point in run["curve"][-LAST:])


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """Of one arm's seeds: reward and success of the last steps, and when the target was reached."""
    rewards = [_final(run) for run in runs.values()]
    return {
        "seeds": len(runs),
        "reward_mean": round(statistics.fmean(rewards), 4),
        "reward_least": round(min(rewards), 4),
        "reward_most": round(max(rewards), 4),
        "success_mean": round(statistics.fmean(_final(run, 2) for run in runs.values()), 4),
        "steps_to_target": [reached(run) for run in runs.values()],
        "sampled_tokens": [run["curve"][-1][0] for run in runs.values()],
        "steps": [len(run["curve"]) for run in runs.values()],
    }


def reached(run: dict[str, Any]) -> int | None:
    """The step after which the mean reward of ten steps is above 95 % of the optimum for the first time."""
    rewards = [point[1] for point in run["curve"]]
    for end in range(LAST, len(rewards) + 1):
        if statistics.fmean(rewards[end - LAST : end]) > TARGET * world.OPTIMUM:
            return end
    return None


# --- the figure ----------------------------------------------------------------------------------

PANELS = (
    ("Who learns", ("joint", "alternate_k", "freeze_low", "freeze_high")),
    (
        "Whose credit, which form",
        ("joint", "broadcast", "shuffled_credit", "low_only", "single_level"),
    ),
)
COLOURS = {
    "joint": "#0b5fa5", "alternate_k": "#5fb3b3", "freeze_low": "#d1495b", "freeze_high": "#edae49",
    "broadcast": "#7a5195", "shuffled_credit": "#555555", "low_only": "#66a182",
    "single_level": "#e07a3f",
}  # fmt: skip


def _draw(result: dict[str, Any]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    for axis, (title, arms) in zip(axes, PANELS, strict=True):
        for arm in arms:
            if arm in result["runs"]:
                _band(axis, arm, list(result["runs"][arm].values()))
        _line(axis, world.OPTIMUM, "optimum")
        _line(axis, world.FROZEN_EXECUTOR, "best with the SFT executor")
        _line(axis, world.CHANCE, "best without knowing the goal")
        axis.set(
            title=title, xlabel="sampled tokens (thousands)", ylim=(0.15, 1.06), xlim=(0, None)
        )
        axis.legend(loc="upper left", frameon=False, fontsize=8.5, bbox_to_anchor=(0.0, 0.94))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel("reward of the executions (R_exe)")
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=150)


def _band(axis: Any, arm: str, runs: list[dict[str, Any]]) -> None:
    """Mean over the seeds, smoothed over five steps, between the least and the greatest."""
    import numpy as np

    length = min(len(run["curve"]) for run in runs)
    kernel = np.ones(5) / 5
    curves = np.array(
        [np.convolve([p[1] for p in run["curve"][:length]], kernel, "valid") for run in runs]
    )
    tokens = np.array([p[0] for p in runs[0]["curve"][4:length]]) / 1000
    axis.fill_between(tokens, curves.min(0), curves.max(0), color=COLOURS[arm], alpha=0.18, lw=0)
    axis.plot(tokens, curves.mean(0), color=COLOURS[arm], lw=1.8, label=arm)


def _line(axis: Any, height: float, label: str) -> None:
    axis.axhline(height, color="#999999", lw=0.9, ls=(0, (4, 3)), zorder=0)
    axis.annotate(
        label, (0.995, height), xycoords=("axes fraction", "data"), xytext=(0, 2),
        textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color="#666666",
    )  # fmt: skip


if __name__ == "__main__":
    main()
