"""Tokens, memory and time of a configured run, put together."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from cahl_core.config import Settings
from cahl_core.cost.calibration import Shape, Speed
from cahl_core.cost.peaks import Memory, predict_memory
from cahl_core.cost.skeleton import Passes, read_config, sizes, trace_passes
from cahl_core.cost.workload import RoleLoad, StepLoad, predict_steps
from cahl_core.policy.backbone import pick_device, pick_dtype
from cahl_core.policy.logprobs import packed_rows
from cahl_core.records import ToolTask
from cahl_core.roles import Role

STEPS = 8  # that prompts are drawn for; a run's mean is taken from them
COUNTS = ("encoded", "sampled", "sampled_bound", "packed", "packed_bound")


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a run will take. Tokens and seconds are means per step; bounds assume cut completions."""

    settings: Settings
    tokens: dict[str, float]
    by_role: dict[str, dict[str, float]]
    memory: Memory
    passes: Passes
    seconds: dict[str, float]
    steps: list[StepLoad]
    too_long: int
    speed: Speed | None = None
    signal: float = 1.0

    @property
    def total_seconds(self) -> float:
        """Of all steps of the run."""
        return self.seconds.get("step", 0.0) * self.settings.train.steps


def predict(
    backbone: Path,
    settings: Settings,
    tasks: Sequence[ToolTask],
    tokenizer: Any,
    *,
    speed: Speed | None = None,
    signal: float = 1.0,
    process: int = 0,
    steps: int = STEPS,
    alike: bool = False,
) -> Prediction:
    """Predicts a run of one process; without ``speed`` there are no seconds.

    Args:
        signal: share of the groups that have a signal, which are those the update trains on.
        process: bytes that the process holds without a model.
        steps: that are looked at; the run's means are theirs.
        alike: `predict_steps`.

    Raises:
        ModelError: there is no backbone.
    """
    loads = predict_steps(tasks, tokenizer, settings, min(steps, settings.train.steps), alike=alike)
    device = pick_device()
    dtype = pick_dtype(settings.model.dtype, device)
    if settings.model.weights == "two_models":
        dtype = torch.float32
    config = read_config(backbone)
    row, lengths = _longest_row(loads, settings)
    passes = trace_passes(config, settings.model, dtype, row, lengths)
    memory = predict_memory(
        settings, sizes(config, settings.model), passes, loads, dtype, device, process=process
    )
    by_role = {r: _means([load.roles[r] for load in loads]) for r in loads[0].roles}
    for own in by_role.values():
        own["packed"] *= signal
    tokens = {name: sum(own[name] for own in by_role.values()) for name in COUNTS}
    tokens["reference"] = sum(
        own["packed"] for r, own in by_role.items() if getattr(settings.train, r).kl_weight
    )
    seconds = predict_seconds(loads, settings, speed, signal) if speed else {}
    too_long = sum(own.too_long for load in loads for own in load.roles.values())
    named = {str(role): own for role, own in by_role.items()}
    return Prediction(
        settings, tokens, named, memory, passes, seconds, loads, too_long, speed, signal
    )


def predict_seconds(
    loads: Sequence[StepLoad], settings: Settings, speed: Speed, signal: float = 1.0
) -> dict[str, float]:
    """Mean seconds per step by phase; ``reference`` is part of ``update``, as in the log."""
    phases = dict.fromkeys(("prefill", "decode", "reference", "update"), 0.0)
    for load in loads:
        for role, own in load.roles.items():
            phases["prefill"] += own.encoded * speed.encode
            phases["decode"] += len(own.batches) * settings.max_tokens(role) * speed.step
            phases["decode"] += own.sampled * speed.row + speed.merge
            packed = signal * own.packed
            phases["reference"] += scoring(role, settings, speed) * packed
            phases["update"] += training(role, settings, speed) * packed
    means = {name: value / len(loads) for name, value in phases.items()}
    means["rollout"] = means["prefill"] + means["decode"]
    means["step"] = means["rollout"] + means["update"]
    return means


def scoring(role: str, settings: Settings, speed: Speed) -> float:
    """Seconds per packed token of the reference's passes."""
    return speed.score if getattr(settings.train, role).kl_weight else 0.0


def training(role: str, settings: Settings, speed: Speed) -> float:
    """Seconds per packed token of a whole update, the reference's passes included."""
    return scoring(role, settings, speed) + settings.train.inner_epochs * speed.train


def calibration_shape(loads: Sequence[StepLoad], settings: Settings) -> Shape:
    """The typical prompt and the widest batch of the steps: what speed is measured at."""
    roles = [own for load in loads for own in load.roles.values() if own.batches]
    lengths = [n for own in roles for batch, _ in own.batches for n in batch]
    rows = max(len(batch) * samples for own in roles for batch, samples in own.batches)
    samples = max(s for own in roles for _, s in own.batches)
    typical = int(statistics.median(lengths))
    longest = max(own.longest_row for own in roles)
    return Shape(_rounded(typical), rows, samples, _rounded(longest))


def _rounded(value: int) -> int:
    """To multiples of 64, so that a little more or less data keeps the measurement."""
    return max(64, round(value / 64) * 64)


def _means(loads: Sequence[RoleLoad]) -> dict[str, float]:
    values = [{k: v for k, v in asdict(load).items() if isinstance(v, int)} for load in loads]
    return {key: statistics.fmean(v[key] for v in values) for key in values[0]}


def _longest_row(loads: Sequence[StepLoad], settings: Settings) -> tuple[Any, list[int]]:
    """A row as long as the longest of the steps: one prompt and samples that fill it up."""
    role, own = max(
        ((r, own) for load in loads for r, own in load.roles.items()),
        key=lambda x: x[1].longest_row,
    )
    tokens = max(own.longest_row, 2)
    prompt = min(max(own.longest, 1), tokens - 1)
    own_tokens = tokens - prompt
    count = -(-own_tokens // _bound(settings, role))
    lengths = [own_tokens // count + (i < own_tokens % count) for i in range(count)]
    completions = [[100_000 + i, *[0] * (n - 1)] for i, n in enumerate(lengths)]
    (row,) = packed_rows([[0] * prompt] * count, completions, 10**9)
    return row, [prompt] * count


def _bound(settings: Settings, role: Role) -> int:
    return settings.max_tokens(role)
