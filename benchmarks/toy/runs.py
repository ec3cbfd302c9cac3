"""Warm start and training of the toy world through the stages' own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahl_core.config import Settings, validate
from cahl_core.roles import roles_of
from cahl_core.stage import StageRun
from cahl_core.training import joint, sft
from cahl_core.training.places import Places
from toy.backbone import write_backbone
from toy.world import GOALS, WORDS, goal_tasks, warm_start_tasks, write_data

ARMS = (
    "joint", "freeze_low", "freeze_high", "low_only", "single_level", "alternate_k", "broadcast",
    "shuffled_credit",
)  # fmt: skip
STEPS = 120
# per goal 8 plans of 3 tokens, each executed 4 times by calls of 5 tokens
TOKENS = STEPS * len(GOALS) * 8 * (3 + 4 * 5)

# the same for every arm; only execution pays, since the plan's words are worth what they cause
_ROLE = {
    "learning_rate": 1e-3, "kl_weight": 0.05, "max_tokens": 10, "warmup_steps": 0,
}  # fmt: skip
_MODEL = {
    "backbone": "toy", "dtype": "float32", "max_context": 256, "lora": {"rank": 8, "alpha": 16},
}  # fmt: skip
_SFT = {
    "steps": 100, "tokens_per_step": 256, "row_tokens": 256, "learning_rate": 1e-2,
    "executor_share": 0.5, "checkpoint_every": 1000,
}  # fmt: skip
_TRAIN = {
    "steps": 1000,  # the tokens end it
    "tasks_per_step": len(GOALS), "plans_per_task": 8, "executions_per_plan": 4,
    "row_tokens": 4096, "checkpoint_every": 1000, "planner": _ROLE, "executor": _ROLE,
    "rewards": {"w_param": 0.0, "w_exe": 1.0}, "trace": {"every": 0}, "max_bad_steps": 3,
    "alarm": {"min_entropy": 0.0, "zero_variance": 1.0, "length_factor": 100.0},
}  # fmt: skip


def settings(
    arm: str,
    seed: int,
    *,
    model: dict[str, Any] | None = None,
    sft: dict[str, Any] | None = None,
    **train: Any,
) -> Settings:
    """Settings of one run; the other arguments override what all arms share."""
    form = form_of(arm)
    return validate(
        {
            "seed": seed,
            "model": {**_MODEL, "form": form, **(model or {})},
            "sft": {**_SFT, **(sft or {})},
            "train": {**_TRAIN, "arm": arm, "max_sampled_tokens": TOKENS, **train},
        }
    )


def form_of(arm: str) -> str:
    """``model.form`` of an arm."""
    return arm if arm in ("low_only", "single_level") else "hierarchical"


def warm_start(root: Path, form: str, seed: int = 0, **changes: Any) -> Path:
    """Backbone, data and SFT adapters of one form below ``root``; returns ``root``.

    ``changes``: other values of the SFT settings.
    """
    arm = "joint" if form == "hierarchical" else form
    flat = form != "hierarchical"
    write_backbone(root / "data/backbone", goal_tasks(flat), WORDS, form, seed)
    write_data(root / "data/prepared", warm_start_tasks(8, flat))
    sft.run(StageRun("sft", root, settings(arm, seed, sft=changes)))
    write_data(root / "goals", goal_tasks())
    return root


def train(start: Path, out: Path, chosen: Settings) -> list[dict[str, float]]:
    """One run from the warm start; returns its rows of metrics."""
    return joint.train(StageRun("train", out, chosen), places(start, out))


def places(start: Path, out: Path) -> Places:
    """Where a run reads and writes: the goals are its training tasks and its dev tasks."""
    return Places(
        prepared=start / "goals",
        backbone=start / "data/backbone",
        start=start / "models/sft",
        out=out / "models/cahl",
        metrics=out / "metrics/train.json",
        plot=out / "plots/train.csv",
        cache=out / ".cahl/train",
        traces=out / "traces",
        report=out / "hacks.json",
        snapshots=out / "snapshots",
    )


def earned(row: dict[str, float], form: str) -> float:
    """Mean reward of a step's executions in [0, 1]: R_exe of the plans, or R_sem without plans."""
    flat = roles_of(form) == ("executor",)  # type: ignore[arg-type]
    return row["reward_semantics" if flat else "reward_execution"]
