"""Peaks of phases, what is free, and what counts as running out of memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from cahl_core import memory
from cahl_core.config import Settings
from cahl_core.memory import (
    PhaseMemory,
    ResidentGauge,
    SampledGauge,
    free_memory,
    gib,
    is_out_of_memory,
    release_memory,
)
from cahl_core.stage import StageRun

MIB = 2**20


class Dial:
    """A gauge whose use is set by hand."""

    source = "a dial"

    def __init__(self) -> None:
        self.used = self.most = 0

    def use(self, value: int) -> None:
        self.used = value
        self.most = max(self.most, value)

    def reset(self) -> None:
        self.most = self.used

    def peak(self) -> int:
        return self.most


def test_every_phase_has_its_own_peak_and_an_outer_one_has_the_inner_ones_too() -> None:
    dial = Dial()
    phases = PhaseMemory(lambda: dial)
    dial.use(90)
    dial.use(10)
    with phases.phase("update"):
        dial.use(40)
        dial.use(20)
        with phases.phase("reference"):
            dial.use(60)
            dial.use(30)
        dial.use(35)
    with phases.phase("rollout"):
        dial.use(50)
    assert phases.take() == {"reference": 60, "update": 60, "rollout": 50}
    with phases.phase("update"):
        dial.use(70)
        dial.use(55)
        with phases.phase("reference"):
            pass
    assert phases.take() == {"update": 70, "reference": 55}
    assert phases.highest == {"update": 70, "reference": 60, "rollout": 50}


def test_a_phase_that_raises_is_measured_and_closed() -> None:
    dial = Dial()
    phases = PhaseMemory(lambda: dial)
    with pytest.raises(KeyError), phases.phase("load"):
        dial.use(5)
        raise KeyError
    dial.use(9)
    assert phases.take() == {"load": 5}


def test_without_a_gauge_it_says_so_and_nothing_else_changes() -> None:
    phases = PhaseMemory(lambda: None)
    with phases.phase("load"):
        pass
    assert phases.take() == {}
    assert phases.source.startswith("not measured")


def _touch(mib: int) -> bytearray:
    block = bytearray(mib * MIB)
    block[::4096] = b"x" * len(block[::4096])
    return block


@pytest.mark.parametrize("kind", [ResidentGauge, SampledGauge])
def test_a_gauge_sees_what_was_held_between_two_looks(kind: type) -> None:
    try:
        gauge = kind()
    except (OSError, ImportError) as error:
        pytest.skip(f"this system cannot: {error}")
    gauge.reset()
    before = gauge.peak()
    block = _touch(200)
    assert len(block)
    if kind is SampledGauge:
        time.sleep(0.2)
    del block
    assert 180 * MIB < gauge.peak() - before < 260 * MIB
    gauge.reset()
    assert gauge.peak() - before < 60 * MIB


def test_the_peak_of_the_whole_process_survives_the_resets_of_phases() -> None:
    code = """
        import resource
        from cahl_core import memory, stage_record
        gauge = memory.make_gauge()
        block = bytearray(300 * 2**20)
        block[::4096] = b"x" * len(block[::4096])
        del block
        gauge.reset()
        print(gauge.source, stage_record.peak_rss() > 300 * 2**20, sep="|")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("|True")


def test_a_stage_reports_the_peak_of_its_phases(tmp_path: Path) -> None:
    stage = StageRun("train", tmp_path, Settings())
    with stage.phase("load"):
        block = _touch(150)
        del block
    if stage.memory.source.startswith("not"):
        pytest.skip(stage.memory.source)
    assert gib(stage.memory.highest)["memory/load_peak_gib"] > 150 / 1024


# --- running out ----------------------------------------------------------------------------------


def test_a_refused_allocation_of_torch_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError(),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_other_ways_of_saying_it(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("can't allocate memory"),
        RuntimeError("expected scalar type Float but found BFloat16"),
    ],
)
def test_other_failures_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)


def test_what_a_failed_attempt_held_is_free_again_while_its_error_lives() -> None:
    alive: list[torch.Tensor] = []

    def attempt() -> None:
        import weakref

        held = torch.zeros(1000)
        weakref.finalize(held, alive.clear)
        alive.append(torch.zeros(1))
        raise MemoryError

    try:
        attempt()
    except MemoryError as error:
        assert alive
        release_memory(torch.device("cpu"), error)
        assert not alive


# --- what is free ---------------------------------------------------------------------------------


def test_free_memory_is_the_lesser_of_the_machines_and_the_containers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = free_memory(torch.device("cpu"))
    if host is None:
        pytest.skip("this system does not say what is free")
    bound, used = tmp_path / "max", tmp_path / "current"
    bound.write_text("1000000\n")
    used.write_text("400000\n")
    monkeypatch.setattr(memory, "CONTROL_GROUPS", ((str(bound), str(used)),))
    assert free_memory(torch.device("cpu")) == 600_000
    bound.write_text("max\n")
    unbounded = free_memory(torch.device("cpu"))
    assert unbounded is not None and unbounded > 600_000
