"""`make env` and `bin/cahl` on machines that lack something."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts/environment.sh"
BASH = shutil.which("bash") or "/bin/bash"


def make(venv: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [BASH, str(SCRIPT), str(venv)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)


def script(path: Path, body: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def test_no_python_of_a_supported_version_is_said_with_the_remedy(tmp_path: Path) -> None:
    script(tmp_path / "bin/python3", "exit 1")
    done = make(tmp_path / "venv", PATH=str(tmp_path / "bin"))
    assert done.returncode == 1
    assert "no Python 3.11 or 3.12 found" in done.stderr
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_named_python_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    old = script(tmp_path / "python3.9", "exit 1")
    done = make(tmp_path / "venv", PATH=os.environ["PATH"], PYTHON=str(old))
    assert done.returncode == 1
    assert f"PYTHON={old} is not Python 3.11 or 3.12" in done.stderr


def test_a_python_without_venv_names_the_package_and_leaves_nothing(tmp_path: Path) -> None:
    body = f'if [ "$1" = -m ]; then exit 1; fi\nexec {sys.executable} "$@"'
    bare = script(tmp_path / "python3.11", body)
    done = make(tmp_path / "venv", PATH=os.environ["PATH"], PYTHON=str(bare))
    assert done.returncode == 1
    assert "apt-get install python3-venv" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_the_wrapper_runs_the_code_of_its_own_directory(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    shutil.copy(ROOT / "bin/cahl", tmp_path / "bin/cahl")
    script(tmp_path / ".venv/bin/python", 'echo "$@"')
    below = tmp_path / ".dvc/tmp/exps/one/bin"
    below.mkdir(parents=True)
    shutil.copy(ROOT / "bin/cahl", below / "cahl")
    clean = {"PATH": os.environ["PATH"]}
    for place in (tmp_path / "bin", below):
        command = [str(place / "cahl"), "sft"]
        done = subprocess.run(command, capture_output=True, text=True, env=clean, timeout=30)
        assert done.stdout.strip() == "-m cahl_core.cli sft", done.stderr
