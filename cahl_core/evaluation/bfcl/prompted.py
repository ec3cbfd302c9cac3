"""BFCL with the package's own prompts and decoders: one text per item, as the board's "prompt" rows.

The official system prompt asks for ``[name(argument=value, …)]`` and nothing else, and the official
decoder reads the answer. Java and JavaScript answers would be read with tree_sitter 0.21, which is not
used here: their categories are left out (150 items in either edition), and with them the non-live columns
that need them. All items of format_sensitivity are Python and need none of it.

The decoder would evaluate arithmetic in a text (``f(a=2*3)``); here only arithmetic on literals is, and
everything else counts as text that cannot be decoded.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahl_core.errors import ConfigError, EvaluationError
from cahl_core.evaluation.bfcl.formulas import V4
from cahl_core.evaluation.bfcl.items import BfclEntry, Loaded, loaded
from cahl_core.evaluation.bfcl.single import (
    CHUNK,
    BfclSingleTurn,
    Version,
    described,
    item_score,
    notes,
)
from cahl_core.evaluation.bfcl.variation import variation
from cahl_core.evaluation.checker import TextAnswer, TextVerdict
from cahl_core.evaluation.core import Attempt, Emit, ItemScore, Record, Solver
from cahl_core.evaluation.solvers import TextSolver
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import ToolSpec
from cahl_core.serving.results import WHOLE_REQUEST, AgentResult, Outcome, StepResult


class BfclOfficialPrompt(BfclSingleTurn):
    """The Python categories of single-turn with the official prompt, for flat models.

    Args:
        max_tokens: of one answer.
    """

    text_only = True

    def __init__(
        self, wheel: Path, timeout: float, version: Version, max_tokens: int = 512
    ) -> None:
        super().__init__(wheel, timeout, version)
        self.max_tokens = max_tokens
        self.name = f"bfcl_{version}_official_prompt"
        self.title = f"BFCL {version}, single-turn, official prompt"

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        """One text per attempt.

        Raises:
            ConfigError: the solver writes plans and calls only.
            EvaluationError: it did not give one text per attempt.
        """
        if not isinstance(solver, TextSolver):
            raise ConfigError(
                f"{self.name} needs a model that completes plain conversations",
                "evaluate a base or Hugging Face model flat, or a server",
            )
        messages = [a.item.data.messages for a in attempts]
        texts = solver.complete(messages, self.max_tokens, [a.seed for a in attempts])
        if len(texts) != len(attempts):
            raise EvaluationError(f"{len(texts)} texts came back for {len(attempts)} prompts")
        for attempt, text in zip(attempts, texts, strict=True):
            emit(attempt, {"text": text})

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """The official verdicts on the texts; no text at all is no call."""
        answers = [
            TextAnswer(a.item.id, a.item.category, r["text"] or "")
            for a, r in zip(attempts, records, strict=True)
        ]
        verdicts: list[TextVerdict] = []
        for start in range(0, len(answers), CHUNK):
            verdicts += self.checker.score_texts(answers[start : start + CHUNK])
        return [
            self._score(attempt, record["text"], verdict)
            for attempt, record, verdict in zip(attempts, records, verdicts, strict=True)
        ]

    def about(self) -> dict[str, Any]:
        data = self._data()
        checker = f"bfcl_eval {self.edition.prefix}: prompt, decoder and checker"
        left_out = [c for c in self.edition.simple[1:] if c not in data.counts]
        said = [*notes(self.edition, data.counts), "No token counts: texts come without them."]
        if left_out:
            said.append(
                f"{' and '.join(left_out)} are left out: the official decoder needs tree_sitter "
                "0.21 for them, so there are no non-live columns."
            )
        return {
            "protocol": {
                "prompt": "the package's default system prompt, before the model's chat template",
                "answer": f"one text of at most {self.max_tokens} tokens, no plan",
                "checker": checker,
                "abstention": "text that is not empty and does not look like a call (ours)",
            },
            "notes": said,
            "data": data.data,
            "counts": data.counts,
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        text = record["text"]
        return described(attempt.item, ["prompt too long" if text is None else f"text: {text}"])

    def _score(self, attempt: Attempt, text: str | None, verdict: TextVerdict) -> ItemScore:
        entry: BfclEntry = attempt.item.data
        kind = text_outcome(text, verdict.calls, entry.tools)
        result = AgentResult(form="low_only", too_long=None if text is not None else "no room")
        if text is not None:
            read = Execution(verdict.calls or (), None if verdict.calls else text)
            failed = ParseFailure("not decoded", 0)
            step = failed if kind == "execution_failure" else read
            result.steps.append(StepResult(WHOLE_REQUEST, text, step))
        return item_score(self.edition, attempt, result, verdict, kind)

    def _data(self) -> Loaded:
        if self._loaded is None:
            readable = [c for c in self.edition.single_turn if c not in self.edition.simple[1:]]
            reply = self.checker.load(readable, official_prompt=True)
            self._loaded = loaded(reply, self.edition, self.wheel, {"max_tokens": self.max_tokens})
        return self._loaded


class BfclFormatSensitivity(BfclOfficialPrompt):
    """v4's format_sensitivity: 200 items in 26 prompt configurations; no part of any score.

    An item's category is its configuration. The package adds its Python hint twice in these prompts,
    and so do they here.
    """

    def __init__(self, wheel: Path, timeout: float, max_tokens: int = 512) -> None:
        super().__init__(wheel, timeout, "v4", max_tokens)
        self.name = "bfcl_v4_format_sensitivity"
        self.title = "BFCL v4, format sensitivity"

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """`variation.variation` over the configurations."""
        return variation(scores, self._data().counts)

    def about(self) -> dict[str, Any]:
        about = super().about()
        about["protocol"]["prompt"] = (
            "the package's system prompt in 26 configurations: form of the answer, tag around it, form "
            "of the documents, mark-up, wording"
        )
        about["notes"] = [
            "Not part of any score: how much accuracy moves with the form of one and the same prompt.",
            "The official JSON decoder cuts a list of objects inside a call off, so the six JSON "
            "configurations can reach 99.5 % at most (simple_python_96).",
            "No token counts: texts come without them.",
        ]
        return about

    def _data(self) -> Loaded:
        if self._loaded is None:
            reply = self.checker.format_items()
            self._loaded = loaded(reply, V4, self.wheel, {"max_tokens": self.max_tokens})
        return self._loaded


def text_outcome(
    text: str | None, calls: Sequence[Any] | None, tools: Sequence[ToolSpec]
) -> Outcome:
    """What kind of output a text is.

    Without a decoded call it is a failed call when it is empty, begins like one (``[``, ``{``, ``<``, a
    code fence) or writes an offered tool's name like one (``name(``, ``"name"``); else it is an
    abstention in words. The split is ours; the official rule knows calls and everything else.
    """
    if text is None:
        return "prompt_too_long"
    if calls:
        return "calls"
    bare = text.strip()
    if bare.strip("`\n ") in ("[]", "<TOOLCALL>[]</TOOLCALL>"):
        return "abstained"
    named = any(
        re.search(rf"{re.escape(t.name)}\s*\(|\"{re.escape(t.name)}\"", bare) for t in tools
    )
    return "execution_failure" if not bare or bare[0] in "[{<`" or named else "abstained"
