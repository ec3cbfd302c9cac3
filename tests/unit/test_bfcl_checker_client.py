"""What the harness does when the worker misbehaves: an error that says so, never a score."""

from __future__ import annotations

from pathlib import Path

import pytest

from cahl_core.errors import EvaluationError, StageInputError
from cahl_core.evaluation.checker import Answer, BfclChecker

ANSWERS = [Answer("simple_0", "simple", ())]


def _checker(tmp_path: Path, script: str, timeout: float = 20) -> BfclChecker:
    (tmp_path / "bfcl_eval").mkdir()
    worker = tmp_path / "worker.py"
    worker.write_text(script)
    return BfclChecker(tmp_path, timeout, worker)


def test_a_crash_is_an_error_with_the_end_of_what_was_printed(tmp_path: Path) -> None:
    checker = _checker(tmp_path, "raise KeyError('gone')")
    with pytest.raises(EvaluationError, match=r"code 1(?s:.*)KeyError: 'gone'"):
        checker.score(ANSWERS)


def test_a_kill_is_an_error(tmp_path: Path) -> None:
    checker = _checker(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EvaluationError, match="code -9"):
        checker.score(ANSWERS)


def test_a_hang_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    script = "import sys, time; print('busy', file=sys.stderr, flush=True); time.sleep(60)"
    with pytest.raises(EvaluationError, match=r"0\.5 s(?s:.*)busy(?s:.*)checker_timeout"):
        _checker(tmp_path, script, timeout=0.5).score(ANSWERS)


@pytest.mark.parametrize(
    ("printed", "message"),
    [
        ("", "not one JSON line"),
        ("done", "not one JSON line"),
        ("[]", "lacks verdicts"),
        ('{"verdicts": []}', "not those of the answers sent"),
        (
            '{"verdicts": [{"id": "simple_9", "valid": true, "error_type": null, "error": ""}]}',
            "not those of the answers sent",
        ),
    ],
)
def test_a_wrong_reply_is_an_error(tmp_path: Path, printed: str, message: str) -> None:
    with pytest.raises(EvaluationError, match=message):
        _checker(tmp_path, f"print({printed!r})").score(ANSWERS)


def test_the_worker_sees_neither_our_packages_nor_our_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "1")
    script = """
import importlib.util, json, os
hidden = all(importlib.util.find_spec(m) is None for m in ("torch", "yaml", "cahl_core", "pip"))
verdict = {"id": "simple_0", "valid": hidden and "SECRET" not in os.environ,
           "error_type": None, "error": ""}
print(json.dumps({"verdicts": [verdict]}))
"""
    assert _checker(tmp_path, script).score(ANSWERS)[0].valid


def test_without_the_package_the_command_that_fetches_it_is_named(tmp_path: Path) -> None:
    with pytest.raises(StageInputError, match="cahl fetch"):
        BfclChecker(tmp_path, 1)
