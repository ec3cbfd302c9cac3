"""Resumable training state: safetensors and JSON only, whole or not there at all.

A checkpoint lives outside DVC's outs (DVC empties those before a stage runs), in a directory keyed by
settings and input digests, so another configuration never resumes from it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cahl_core.errors import DataError
from cahl_core.files import atomic_dir, read_json, sha256, write_json
from cahl_core.policy.backbone import Policy

MANIFEST = "manifest.json"


class Trainee:
    """One adapter in training: its tensors, its AdamW, its gradient norm bound."""

    def __init__(
        self,
        policy: Policy,
        name: str,
        learning_rate: float,
        grad_clip: float,
        weight_decay: float = 0.0,
    ) -> None:
        self.policy = policy
        self.name = name
        self.learning_rate = learning_rate
        self.grad_clip = grad_clip
        self.parameters = policy.parameters(name)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learning_rate, weight_decay=weight_decay, betas=(0.9, 0.99)
        )

    def step(self, scale: float) -> float:
        """One AdamW step at ``scale`` times the learning rate; returns the gradient norm before
        clipping. A non-finite norm skips the step and leaves everything as it was.
        """
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self.grad_clip))
        if norm == norm and norm != float("inf"):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * scale
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def tensors(self) -> dict[str, Tensor]:
        """Adapter and optimizer state under flat names."""
        out: dict[str, Tensor] = {}
        for index, parameter in enumerate(self.parameters):
            out[f"{self.name}.{index}.value"] = parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"{self.name}.{index}.{key}"] = value
        return {k: v.contiguous().cpu() for k, v in out.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes over what `tensors` wrote."""
        for index, parameter in enumerate(self.parameters):
            prefix = f"{self.name}.{index}."
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            parameter.copy_(mine.pop("value"))
            if mine:
                self.optimizer.state[parameter] = {
                    k: v.clone() if k == "step" else v.to(parameter.device, copy=True)
                    for k, v in mine.items()
                }


def save(folder: Path, step: int, trainees: list[Trainee], extra: dict[str, Any]) -> None:
    """Writes ``folder/step-N`` atomically and removes older ones."""
    from safetensors.torch import save_file

    target = folder / f"step-{step:06d}"
    with atomic_dir(target) as temporary:
        tensors = {k: v for t in trainees for k, v in t.tensors().items()}
        save_file(tensors, temporary / "state.safetensors")
        write_json(temporary / "extra.json", extra)
        names = ("state.safetensors", "extra.json")
        sums = {name: sha256(temporary / name) for name in names}
        write_json(temporary / MANIFEST, {"step": step, "sha256": sums})
    for old in _found(folder):
        if old != target:
            shutil.rmtree(old, ignore_errors=True)


def load_latest(folder: Path, trainees: list[Trainee]) -> tuple[int, dict[str, Any], list[str]]:
    """Restores the newest whole checkpoint.

    Returns:
        Steps done (0 without a checkpoint), the extra values, and a sentence per skipped directory.
    """
    from safetensors.torch import load_file

    warnings: list[str] = []
    for path in reversed(_found(folder)):
        try:
            manifest = read_json(path / MANIFEST)
            for name, expected in manifest["sha256"].items():
                if sha256(path / name) != expected:
                    raise DataError(f"{name} does not have the sum in its manifest")
        except (DataError, OSError, KeyError, TypeError) as error:
            warnings.append(f"checkpoint {path.name} is not whole and is skipped: {error}")
            continue
        tensors = load_file(path / "state.safetensors")
        for trainee in trainees:
            trainee.restore(tensors)
        return int(manifest["step"]), read_json(path / "extra.json"), warnings
    return 0, {}, warnings


def clear(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def _found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())
