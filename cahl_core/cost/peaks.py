"""Memory of a run by phase, from sizes: what stays, and what each phase adds at its peak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from cahl_core.config import Settings
from cahl_core.cost.skeleton import Passes, Sizes
from cahl_core.cost.workload import StepLoad
from cahl_core.policy.head_logprobs import Blocks
from cahl_core.policy.linear import packs
from cahl_core.policy.prefix_state import PAD

FULL = 4  # bytes of float32
SAMPLING = 6  # tensors of [rows, vocabulary] that choosing the next token has at one time
BLOCKS = 3  # blocks of logits that scoring has at one time
SPARE = 1.25  # predictions were up to a sixth too low (docs/planning.md)


@dataclass(slots=True)
class Memory:
    """Bytes by part; a phase's peak is everything that stays plus what it adds.

    Attributes:
        stays: weights, adapters, optimizer … by name.
        adds: by phase, by name, in the order in which they run.
        sticky: what a phase frees stays with the process, so that later ones need no less (resident
            memory of a CPU run: malloc keeps most of it).
    """

    stays: dict[str, int] = field(default_factory=dict)
    adds: dict[str, dict[str, int]] = field(default_factory=dict)
    sticky: bool = False

    def peak(self, phase: str) -> int:
        """Bytes in use at the phase's peak."""
        before = list(self.adds)[: list(self.adds).index(phase)] if self.sticky else []
        most = max(sum(self.adds[name].values()) for name in [*before, phase])
        return sum(self.stays.values()) + most

    @property
    def highest(self) -> tuple[str, int]:
        """The phase that needs most, and how much."""
        return max(((p, self.peak(p)) for p in self.adds), key=lambda x: x[1])


def predict_memory(
    settings: Settings,
    sizes: Sizes,
    passes: Passes,
    steps: Sequence[StepLoad],
    dtype: torch.dtype,
    device: torch.device,
    *,
    process: int = 0,
) -> Memory:
    """Peaks of one process of a run.

    Args:
        process: bytes that the process holds without a model (libraries; 0 on CUDA).
    """
    memory = Memory(sticky=device.type == "cpu")
    trained = _weights(memory.stays, settings, sizes, dtype, device)
    memory.stays["libraries"] = process
    gradients = trained * FULL
    caches, logits = _rollout(settings, sizes, steps, dtype)
    memory.adds["rollout"] = {
        "keys and values": caches,
        "logits": logits,
        "encoding": passes.scored,
    }
    memory.adds["reference"] = {"activations": passes.scored}
    checkpointed = settings.model.gradient_checkpointing
    memory.adds["update"] = {
        "activations": passes.trained_checkpointed if checkpointed else passes.trained,
        "gradients": 2 * gradients,
    }
    if device.type != "cpu":  # passes are traced with a CPU's small blocks of logits
        for phase in ("reference", "update"):
            memory.adds[phase]["logits"] = BLOCKS * Blocks.of(device).elements * FULL
    memory.adds["checkpoint"] = {"copies on the host": 3 * gradients if device.type == "cpu" else 0}
    return memory


def _weights(
    stays: dict[str, int],
    settings: Settings,
    sizes: Sizes,
    dtype: torch.dtype,
    device: torch.device,
) -> int:
    """Fills in what stays; returns how many elements train at one time."""
    model, roles = settings.model, 2 if settings.model.form == "hierarchical" else 1
    if model.weights == "two_models":
        stays["backbones"] = (roles + 1) * sizes.total * FULL
        stays["adapters"] = roles * sizes.adapter * FULL
        stays["optimizer"] = 2 * roles * sizes.trained_whole * FULL
        stays["decoding copies"] = roles * decoding_copy(sizes, torch.float32, device, merged=False)
        return sizes.trained_whole
    made = 1 if model.weights == "shared_adapter" else roles
    stays["backbone"] = sizes.total * dtype.itemsize
    stays["adapters"] = 2 * made * sizes.adapter * FULL  # each with its reference
    stays["optimizer"] = 2 * made * sizes.adapter * FULL
    stays["decoding copy"] = decoding_copy(sizes, dtype, device, merged=True)
    return sizes.adapter


def decoding_copy(sizes: Sizes, dtype: torch.dtype, device: torch.device, *, merged: bool) -> int:
    """Bytes of the weights that decoding holds of its own.

    Where the processor has a layout of its own for them (`linear.packs`), that is every matrix and
    the head; else what adapters are merged into and at least the attention's, whose rows change places.
    """
    if device.type == "cpu" and packs(torch.empty(1, 1, dtype=dtype)):
        return (sizes.decoder + sizes.head) * dtype.itemsize
    return max(sizes.adapted * merged, sizes.attention) * dtype.itemsize


def cache_bytes(
    lengths: Sequence[int], samples: int, room: int, sizes: Sizes, dtype: torch.dtype
) -> int:
    """Keys and values of a decoding batch: prompts once, padded alike, and ``room`` per sample."""
    longest = max(lengths) + -max(lengths) % PAD
    tokens = len(lengths) * (longest + samples * room)
    return tokens * sizes.kv_width * sizes.layers * dtype.itemsize


def _rollout(
    settings: Settings, sizes: Sizes, steps: Sequence[StepLoad], dtype: torch.dtype
) -> tuple[int, int]:
    """The largest batch's caches, and what choosing tokens for the most rows takes."""
    caches = rows = 0
    for load in steps:
        for role, own in load.roles.items():
            for lengths, samples in own.batches:
                room = settings.max_tokens(role)
                caches = max(caches, cache_bytes(lengths, samples, room, sizes, dtype))
                rows = max(rows, len(lengths) * samples)
    return caches, SAMPLING * rows * sizes.vocabulary * FULL


def shortage(memory: Memory, settings: Settings, passes: Passes, free: int) -> list[str]:
    """What to change where the predicted peak is above ``free`` bytes; nothing where it fits."""
    phase, peak = memory.highest
    if peak * SPARE <= free:
        return []
    said = [
        f"the {phase} phase is predicted to need {gib(peak)} GiB, and {gib(free)} GiB are free: "
        "it may run out of memory"
    ]
    return said + [f"try {change}" for change in _changes(memory, settings, passes, phase)]


def _changes(memory: Memory, settings: Settings, passes: Passes, phase: str) -> list[str]:
    train, model, changes = settings.train, settings.model, []
    if phase == "update" and not model.gradient_checkpointing:
        parts = memory.adds["update"] | {"activations": passes.trained_checkpointed}
        smaller = Memory(memory.stays, memory.adds | {"update": parts}, memory.sticky)
        less = smaller.peak("update")
        changes.append(f"model.gradient_checkpointing=true (the update then needs {gib(less)} GiB)")
    if phase in ("update", "reference"):
        changes.append(f"train.row_tokens={max(train.row_tokens // 2, 1)} (now {train.row_tokens})")
    if phase == "rollout":
        changes.append("fewer train.tasks_per_step, or a lower max_tokens of planner and executor")
    changes.append("model.dtype=bfloat16 if it is float32, or a smaller backbone")
    return changes


def gib(value: int) -> str:
    """Bytes as GiB with two decimals."""
    return f"{value / 2**30:.2f}"
