"""Resumable training state: safetensors and JSON only, whole or not there at all.

A checkpoint lives outside DVC's outs (DVC empties those before a stage runs), in a directory keyed by
settings and input digests, so another configuration never resumes from it.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from cahl_core.errors import DataError
from cahl_core.files import atomic_dir, read_json, sha256, write_json
from cahl_core.training.trainee import Trainee

MANIFEST = "manifest.json"


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
