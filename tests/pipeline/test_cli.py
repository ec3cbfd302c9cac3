"""The ``cahl`` command as a user meets it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys, types, cahl_core.cli as cli, cahl_core.stage as stages
stages._open_tracker = lambda stage: None
module = types.ModuleType("stub")
exec({body!r}, module.__dict__)
sys.modules["stub"] = module
cli.MODULES["sft"] = "stub"
cli.main()
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A project directory with settings and nothing else."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "params.yaml").write_text("profile: quick\n")
    (tmp_path / "configs/quick.yaml").write_text("{}\n")
    return tmp_path


def cahl(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cahl_core.cli", *arguments, "--root", str(root)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def start_stub(body: str, root: Path) -> subprocess.Popen[str]:
    """``cahl sft`` with a stage of our own."""
    command = [sys.executable, "-c", PROGRAM.format(body=body), "sft", "--root", str(root)]
    # below a shell's background job SIGINT is ignored, and children inherit that
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, previous)


def test_help_answers_at_once() -> None:
    # 0.15 s here; the bound leaves room for a busy machine, the import test names what is heavy
    times = []
    for _ in range(3):
        start = time.perf_counter()
        command = [sys.executable, "-m", "cahl_core.cli", "--help"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 1.5
    for command_name in ("fetch", "prepare", "sft", "train", "evaluate", "register", "chat"):
        assert command_name in done.stdout


def test_an_unknown_key_is_refused_with_the_nearest(bare: Path) -> None:
    done = cahl("train", "--set", "train.stps=3", root=bare)
    assert done.returncode == 2
    assert "train.steps" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_input_names_it_and_the_command_to_run_first(bare: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", bare)
    (bare / "params.yaml").write_text("profile: quick\n")
    (bare / "cahl_core").symlink_to(ROOT / "cahl_core")
    done = cahl("sft", root=bare)
    assert done.returncode == 5
    assert "needs data/prepared, data/backbone" in done.stderr
    assert "cahl fetch && cahl prepare" in done.stderr


def test_a_directory_that_is_no_project_is_named(tmp_path: Path) -> None:
    done = cahl("fetch", root=tmp_path)
    assert done.returncode == 2
    assert "params.yaml does not exist" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_expected_failure_keeps_its_exit_code_and_is_recorded(bare: Path) -> None:
    body = (
        "from cahl_core.errors import ModelError\ndef run(s): raise ModelError('no fit', 'fetch')"
    )
    process = start_stub(body, bare)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 6
    assert "error: sft: no fit" in stderr
    assert "Traceback" not in stderr
    record = json.loads((bare / ".cahl/stages/sft.json").read_text())
    assert record["status"] == "failed"
    assert record["error"].startswith("no fit")


def test_an_unexpected_failure_saves_its_traceback(bare: Path) -> None:
    process = start_stub("def run(s): return 1 / 0", bare)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 70
    assert "ZeroDivisionError" in stderr
    assert "Traceback" not in stderr
    [log] = (bare / ".cahl/errors").iterdir()
    assert str(log) in stderr
    assert "1 / 0" in log.read_text() or "ZeroDivisionError" in log.read_text()


def test_a_full_disk_is_said_to_be_one(bare: Path) -> None:
    body = "import errno\ndef run(s): raise OSError(errno.ENOSPC, 'No space left on device', 'x')"
    process = start_stub(body, bare)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 10
    assert "disk is full" in stderr


WAIT = """
import time
def run(stage):
    print("ready", file=__import__("sys").stderr, flush=True)
    stage.log("waiting")
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_stage_says_so_and_is_recorded(
    number: signal.Signals, code: int, bare: Path
) -> None:
    process = start_stub(WAIT, bare)
    assert process.stderr is not None
    assert process.stderr.readline().strip() == "ready"
    os.kill(process.pid, number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code
    assert "finished files are kept" in stderr
    assert json.loads((bare / ".cahl/stages/sft.json").read_text())["status"] == "interrupted"


def test_the_same_stage_does_not_run_twice_at_once(bare: Path) -> None:
    first = start_stub(WAIT, bare)
    try:
        assert first.stderr is not None
        assert first.stderr.readline().strip() == "ready"
        second = start_stub("def run(s): pass", bare)
        _, stderr = second.communicate(timeout=60)
        assert second.returncode == 5
        assert f"already running here (process {first.pid})" in stderr
    finally:
        first.terminate()
        first.communicate(timeout=30)


def test_a_second_rank_leaves_records_alone(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    process = start_stub("def run(s): pass", bare)
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert not (bare / ".cahl").exists()
