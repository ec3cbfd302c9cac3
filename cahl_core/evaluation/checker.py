"""The harness's side of `bfcl_worker`: the official single-turn checkers as functions.

A worker that crashes, hangs or answers something else is an `EvaluationError` with the end of what
it printed (`worker_process`); it is never a score.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.errors import EvaluationError, StageInputError
from cahl_core.evaluation.worker_process import WorkerProcess
from cahl_core.records import ToolCall

WORKER = Path(__file__).with_name("bfcl_worker.py")


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered to one item; ``calls=None`` is an output that could not be decoded."""

    id: str
    category: str
    calls: tuple[ToolCall, ...] | None


@dataclass(frozen=True, slots=True)
class TextAnswer:
    """A text in the official form of calls, for the official decoder."""

    id: str
    category: str
    text: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """The official judgement of one answer."""

    id: str
    valid: bool
    error_type: str | None
    error: str


@dataclass(frozen=True, slots=True)
class TextVerdict:
    """The same of a text, with the calls that the official decoder read; ``None``: it read none."""

    id: str
    valid: bool
    error_type: str | None
    error: str
    calls: tuple[ToolCall, ...] | None


class BfclChecker:
    """The official BFCL package, v3 or v4, as unzipped by `cahl fetch`.

    One worker process serves all requests, started at the first; `close` ends it.

    Args:
        wheel: directory that holds ``bfcl_eval/``.
        timeout: seconds one request to the worker may take.
        worker: the script to run; tests put others here.
    """

    def __init__(self, wheel: Path, timeout: float, worker: Path = WORKER) -> None:
        if not (wheel / "bfcl_eval").is_dir():
            raise StageInputError(f"{wheel} holds no BFCL package", "run: cahl fetch")
        self.wheel = wheel.absolute()
        self._process = WorkerProcess(worker, [str(self.wheel)], timeout)

    def load(self, categories: Sequence[str], official_prompt: bool = False) -> dict[str, Any]:
        """``version``, ``files`` (of the wheel, that a score depends on) and ``items`` (id, category,
        messages, functions, gold) as a model sees them.

        ``official_prompt``: messages with the system prompt for models that are prompted with text.
        """
        request = {"categories": list(categories), "official_prompt": official_prompt}
        return self._ask("load", request, "items", "version", "files")

    def format_items(self) -> dict[str, Any]:
        """The same for format_sensitivity (v4); an item's category is its prompt configuration."""
        return self._ask("format_items", {}, "items", "version", "files")

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
        return [Verdict(**v) for v in self._verdicts("score", sent)]

    def score_texts(self, answers: Sequence[TextAnswer]) -> list[TextVerdict]:
        """One verdict per text, in the same order; Python categories and format_sensitivity only."""
        sent = [{"id": a.id, "category": a.category, "text": a.text} for a in answers]
        return [
            TextVerdict(v["id"], v["valid"], v["error_type"], v["error"], _calls(v))
            for v in self._verdicts("score_texts", sent)
        ]

    def close(self) -> None:
        """Ends the worker; the next request starts another."""
        self._process.close()

    def _verdicts(self, operation: str, answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
        reply = self._ask(operation, {"answers": answers}, "verdicts")
        verdicts: list[dict[str, Any]] = reply["verdicts"]
        if [v["id"] for v in verdicts] != [a["id"] for a in answers]:
            raise EvaluationError("the BFCL worker's verdicts are not those of the answers sent")
        return verdicts

    def _ask(self, operation: str, request: Mapping[str, Any], *keys: str) -> dict[str, Any]:
        return self._process.ask({"op": operation, **request}, *keys)


def _calls(verdict: Mapping[str, Any]) -> tuple[ToolCall, ...] | None:
    if verdict["calls"] is None:
        return None
    return tuple(ToolCall.from_json(c, verdict["id"]) for c in verdict["calls"])
