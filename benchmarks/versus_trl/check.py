"""Whether both arms compute the same thing: gradients on the same completions and advantages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from arms import Arm, TrlSettings
from workload import FIRST_TOKEN, Point

POINT = Point(prompt=200, samples=4, tokens=24)
VOCABULARY = 30_000  # random completions stay below
CASES = (
    ("float32", "grpo"), ("float32", "dr_grpo"), ("float32", "dapo"), ("bfloat16", "grpo"),
)  # fmt: skip


def check(common: dict[str, Any], threads: int, folder: Path) -> dict[str, Any]:
    """Gradients of all LoRA matrices per dtype and loss: relative distance, and both norms.

    The advantages are those that TRL computes from the rewards; ours are given the same numbers, so
    that the loss is compared and not the two conventions for a group's deviation. In bfloat16 both
    round; how far each is from TRL's float32 gradient says which rounds more.
    """
    draw = np.random.default_rng(3)
    completions = draw.integers(FIRST_TOKEN, VOCABULARY, (POINT.samples, POINT.tokens)).tolist()
    found: dict[str, Any] = {}
    exact = ""
    for dtype, loss in CASES:
        spec = {**common, "dtype": dtype, "loss": loss, "grad_clip": 1e9}
        files = {arm: str(folder / f"{arm}-{dtype}-{loss}.safetensors") for arm in ("a", "b")}
        theirs = _ask(
            "trl_generate", spec, threads,
            do="step", index=0, completions=completions, file=files["a"],
        )  # fmt: skip
        ours = _ask(
            "ours", spec, threads, do="gradients", index=0, completions=completions,
            advantages=theirs["advantages"], file=files["b"],
        )  # fmt: skip
        row = {
            "norm_trl": theirs["norm"],
            "norm_ours": ours["norm"],
            "relative_distance": _distance(files["a"], files["b"]),
        }
        if dtype == "float32":
            exact = files["a"] if loss == "grpo" else exact
        else:
            row["trl_from_fp32"] = _distance(exact, files["a"])
            row["ours_from_fp32"] = _distance(exact, files["b"])
        found[f"{dtype} {loss}"] = row
    return found


def _ask(arm: str, spec: dict[str, Any], threads: int, **command: Any) -> dict[str, Any]:
    running = Arm(arm, POINT, spec, threads, TrlSettings(micro_batch=2))
    try:
        return running.workers[0].ask(**command)
    finally:
        running.end()


def _distance(theirs: str, ours: str) -> float:
    from safetensors.numpy import load_file

    first, second = load_file(theirs), load_file(ours)
    if first.keys() != second.keys():
        raise RuntimeError(f"other tensors: {sorted(first.keys() ^ second.keys())[:4]}")
    square = sum(float(((first[k] - second[k]) ** 2).sum()) for k in first)
    return float(np.sqrt(square / sum(float((v**2).sum()) for v in first.values())))
