"""The harness's side of `bfcl_worker`: starts it, talks to it, and trusts none of it.

A worker that crashes, hangs or answers something else is an `EvaluationError` with the end of what
it printed; it is never a score.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.errors import EvaluationError, StageInputError
from cahl_core.records import ToolCall

WORKER = Path(__file__).with_name("bfcl_worker.py")
TAIL_LINES = 12


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one item; ``calls=None`` is an output that could not be decoded."""

    id: str
    category: str
    calls: tuple[ToolCall, ...] | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The official judgement of one answer."""

    id: str
    valid: bool
    error_type: str | None
    error: str


class BfclChecker:
    """The official BFCL package as unzipped by `cahl fetch`.

    Args:
        wheel: directory that holds ``bfcl_eval/``.
        timeout: seconds one request to the worker may take.
        worker: the script to run; tests put others here.
    """

    def __init__(self, wheel: Path, timeout: float, worker: Path = WORKER) -> None:
        if not (wheel / "bfcl_eval").is_dir():
            raise StageInputError(f"{wheel} holds no BFCL package", "run: cahl fetch")
        self.wheel = wheel.absolute()
        self.timeout = timeout
        self.worker = worker

    def load(self, categories: Sequence[str]) -> dict[str, Any]:
        """``{"items": […], "counts": {category: n}, "version": str}``, documents as shipped."""
        reply = self._ask({"op": "load", "categories": list(categories)})
        return self._expect(reply, "items", "counts", "version")

    def score(self, answers: Sequence[Answer]) -> list[Verdict]:
        """One verdict per answer, in the same order."""
        sent = [
            {
                "id": a.id,
                "category": a.category,
                "calls": None if a.calls is None else [c.to_json() for c in a.calls],
            }
            for a in answers
        ]
        reply = self._expect(self._ask({"op": "score", "answers": sent}), "verdicts")
        verdicts = [Verdict(**v) for v in reply["verdicts"]]
        if [v.id for v in verdicts] != [a.id for a in answers]:
            raise EvaluationError("the BFCL worker's verdicts are not those of the answers sent")
        return verdicts

    def _ask(self, request: dict[str, Any]) -> Any:
        command = [sys.executable, "-I", "-S", "-B", "-X", "utf8"]
        with tempfile.TemporaryDirectory(prefix="cahl-bfcl-") as scratch:
            try:
                done = subprocess.run(
                    [*command, str(self.worker), str(self.wheel)],
                    input=json.dumps(request) + "\n",
                    capture_output=True,
                    encoding="utf-8",
                    errors="replace",
                    timeout=self.timeout,
                    cwd=scratch,
                    env=_environment(scratch),
                    check=False,
                )
            except subprocess.TimeoutExpired as error:
                raise EvaluationError(
                    f"the BFCL worker did not answer '{request['op']}' in {self.timeout:g} s"
                    + _tail(error.stderr),
                    "raise evaluate.checker_timeout if the machine is slow",
                ) from error
        if done.returncode != 0:
            raise EvaluationError(
                f"the BFCL worker ended with code {done.returncode} on '{request['op']}'"
                + _tail(done.stderr),
                "no score was recorded; fetch the package again if its files were changed",
            )
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError as error:
            raise EvaluationError(
                f"the BFCL worker answered '{request['op']}' with something that is not one "
                f"JSON line ({error.msg}): {done.stdout[:200]!r}"
            ) from error

    @staticmethod
    def _expect(reply: Any, *keys: str) -> dict[str, Any]:
        if not isinstance(reply, dict) or any(key not in reply for key in keys):
            raise EvaluationError(f"the BFCL worker's reply lacks {', '.join(keys)}")
        return reply


def _environment(scratch: str) -> dict[str, str]:
    """Nothing of ours but what the interpreter itself may need to start."""
    kept = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}
    return {"BFCL_PROJECT_ROOT": scratch, **kept}


def _tail(stderr: str | bytes | None) -> str:
    text = stderr.decode(errors="replace") if isinstance(stderr, bytes) else stderr or ""
    lines = text.strip().splitlines()[-TAIL_LINES:]
    return "; it printed:\n    " + "\n    ".join(lines) if lines else ""
