"""Resumable training state: safetensors and JSON only, whole or not there at all.

A checkpoint is written to a temporary directory, every file is synced, the manifest with the sums of
the others last, then one rename makes it visible. One that is damaged is passed over for the one
before, with a warning. Checkpoints live outside DVC's outs (DVC empties those before a stage runs), in
a directory keyed by settings and input digests, so another configuration never resumes from them.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cahl_core.errors import DataError
from cahl_core.files import atomic_dir, read_json, sha256, write_json
from cahl_core.signals import held_signals
from cahl_core.training.distributed import Workers
from cahl_core.training.trainee import Trainee

MANIFEST = "manifest.json"
STATE, EXTRA = "state.safetensors", "extra.json"
RNG = "rng."


def save(
    folder: Path,
    step: int,
    trainees: Sequence[Trainee],
    extra: Mapping[str, Any],
    keep: int = 1,
    *,
    writes: bool = True,
) -> None:
    """Writes ``folder/step-N`` atomically, then removes all but the newest ``keep``.

    Holds every trainee's tensors with its optimizer's, the states of the random generators of
    Python, NumPy and torch (CUDA too), and ``extra`` (JSON values: cursors, counts, metrics).
    Tensors are whole, so any number of processes can go on from it.

    Args:
        writes: False in the processes that only give their parts of sharded tensors.
    """
    from safetensors.torch import save_file

    if not writes and not any(t.sharded for t in trainees):
        return
    target = folder / f"step-{step:06d}"
    tensors = {k: v for t in trainees for k, v in t.tensors().items()}
    if not writes:
        return
    python, generators = _generators()
    with atomic_dir(target) as temporary:
        save_file(tensors | generators, temporary / STATE)
        write_json(temporary / EXTRA, {"extra": extra, "python_random": python})
        sums = {name: sha256(temporary / name) for name in (STATE, EXTRA)}
        write_json(temporary / MANIFEST, {"step": step, "sha256": sums})
    found = _found(folder)
    done = found.index(target) + 1
    # what is later than this one was passed over as damaged when the run was resumed
    for old in [*found[: max(0, done - keep)], *found[done:]]:
        shutil.rmtree(old, ignore_errors=True)
    for leftover in folder.glob(".step-*"):  # of a process that was killed while writing
        shutil.rmtree(leftover, ignore_errors=True)


def load_latest(
    folder: Path, trainees: Sequence[Trainee], workers: Workers | None = None
) -> tuple[int, dict[str, Any], list[str]]:
    """Restores the newest whole checkpoint: trainees and random generators.

    Args:
        workers: the processes that go on from it; rank 0 reads it and sends it to the others, so
            they need not see its files.

    Returns:
        Steps done (0 without a checkpoint), the extra values, and a sentence per skipped directory.
    """
    found, warnings = _newest(folder) if workers is None or workers.is_main else (None, [])
    tensors: Mapping[str, Tensor] = found[3] if found else {}
    if workers is not None:
        found, warnings = workers.broadcast(((*found[:3], {}) if found else None, warnings))
    if found is None:
        return 0, {}, warnings
    step, extra, python, _ = found
    if workers is not None:
        tensors = workers.broadcast_tensors(tensors)
    for trainee in trainees:
        trainee.restore(tensors)
    generators = {name: tensors[name] for name in sorted(tensors) if name.startswith(RNG)}
    _restore_generators(python, generators)
    return step, extra, warnings


Found = tuple[int, dict[str, Any], Any, dict[str, Tensor]]


def _newest(folder: Path) -> tuple[Found | None, list[str]]:
    """The newest whole checkpoint's contents, and a sentence per damaged one that was passed over."""
    warnings: list[str] = []
    for path in reversed(_found(folder)):
        try:
            # what a signal's handler raises inside a C call of the loader is lost there, and the
            # checkpoint would be taken for a damaged one
            with held_signals():
                return _read(path), warnings
        except (DataError, OSError, KeyError, TypeError, ValueError) as error:
            warnings.append(f"checkpoint {path.name} is not whole and is skipped: {error}")
    return None, warnings


def _read(path: Path) -> Found:
    from safetensors.torch import load_file

    if not (path / MANIFEST).exists():
        raise DataError(f"{MANIFEST} is missing")
    manifest = read_json(path / MANIFEST)
    for name in (STATE, EXTRA):
        if sha256(path / name) != manifest["sha256"][name]:
            raise DataError(f"{name} does not have the sum in its manifest")
    extra = read_json(path / EXTRA)
    return int(manifest["step"]), extra["extra"], extra["python_random"], load_file(path / STATE)


def _generators() -> tuple[Any, dict[str, Tensor]]:
    name, words, position, has_gauss, cached = np.random.get_state()
    assert name == "MT19937"
    tensors = {
        f"{RNG}torch": torch.get_rng_state(),
        f"{RNG}numpy": torch.from_numpy(np.asarray(words, dtype=np.int64)),
        f"{RNG}numpy_rest": torch.tensor([position, has_gauss, cached], dtype=torch.float64),
    }
    if torch.cuda.is_available():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"{RNG}cuda.{index}"] = state
    return random.getstate(), tensors


def _restore_generators(python: Any, tensors: Mapping[str, Tensor]) -> None:
    version, words, gauss = python
    random.setstate((version, tuple(words), gauss))
    torch.set_rng_state(tensors[f"{RNG}torch"])
    position, has_gauss, cached = tensors[f"{RNG}numpy_rest"].tolist()
    words = tensors[f"{RNG}numpy"].numpy().astype(np.uint32)
    state = ("MT19937", words, int(position), int(has_gauss), cached)
    np.random.set_state(state)
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"{RNG}cuda.{index}" in tensors:
            torch.cuda.set_rng_state(tensors[f"{RNG}cuda.{index}"], index)


def clear(folder: Path) -> None:
    """Removes the checkpoints of a finished run."""
    shutil.rmtree(folder, ignore_errors=True)


def _found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("step-*") if p.is_dir())
