"""Checkpoints: whole or passed over, and everything random goes on where it was."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cahl_core.training import checkpoints


def _save(folder: Path, *steps: int, keep: int = 2) -> None:
    for step in steps:
        checkpoints.save(folder, step, [], {"done": step}, keep)


def _steps(folder: Path) -> list[int]:
    return [int(p.name[5:]) for p in sorted(folder.glob("step-*"))]


def test_the_newest_ones_are_kept(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, 4, keep=2)
    assert _steps(tmp_path) == [3, 4]
    assert checkpoints.load_latest(tmp_path, []) == (4, {"done": 4}, [])


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no manifest", "no state", "not JSON"])
def test_a_damaged_one_is_passed_over_with_a_warning(tmp_path: Path, damage: str) -> None:
    _save(tmp_path, 1, 2)
    newest = tmp_path / "step-000002"
    state, manifest = newest / "state.safetensors", newest / "manifest.json"
    if damage == "truncated":
        state.write_bytes(state.read_bytes()[:-1])
    elif damage == "flipped":
        bytes_ = bytearray(state.read_bytes())
        bytes_[len(bytes_) // 2] ^= 1
        state.write_bytes(bytes_)
    elif damage == "no manifest":
        manifest.unlink()
    elif damage == "no state":
        state.unlink()
    else:
        manifest.write_text("{")
    done, extra, (warning,) = checkpoints.load_latest(tmp_path, [])
    assert (done, extra) == (1, {"done": 1})
    assert "step-000002 is not whole" in warning


def test_going_on_from_an_older_one_removes_what_was_later(tmp_path: Path) -> None:
    _save(tmp_path, 3, 5, keep=3)
    (tmp_path / "step-000005/manifest.json").unlink()
    _save(tmp_path, 4, keep=1)
    assert _steps(tmp_path) == [4]


def test_what_a_killed_writer_left_is_no_checkpoint_and_is_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-000009.abc"
    leftover.mkdir()
    (leftover / "state.safetensors").write_bytes(b"half")
    assert checkpoints.load_latest(tmp_path, []) == (0, {}, [])
    _save(tmp_path, 1)
    assert not leftover.exists()


def _draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_every_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    np.random.normal()  # leaves a cached second value behind
    _save(tmp_path, 1)
    expected = _draws(), float(np.random.normal())
    _draws()
    checkpoints.load_latest(tmp_path, [])
    assert (_draws(), float(np.random.normal())) == expected


def test_a_signal_while_one_is_read_waits_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a handler raises inside the loader's C code vanishes there as an error of the file."""
    _save(tmp_path, 1)
    events: list[str] = []
    real = checkpoints._read

    def reading(path: Path) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        found = real(path)
        events.append("read")
        return found

    monkeypatch.setattr(checkpoints, "_read", reading)
    before = signal.signal(signal.SIGTERM, lambda *_: events.append("handled"))
    try:
        assert checkpoints.load_latest(tmp_path, [])[0] == 1
    finally:
        signal.signal(signal.SIGTERM, before)
    assert events == ["read", "handled"]
