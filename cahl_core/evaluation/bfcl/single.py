"""BFCL single-turn, v3 and v4, with our own prompts and the official checkers.

An AST item is right iff the official checker says so; an irrelevance item iff no call was decoded; a
relevance item iff any was. An output that cannot be decoded therefore passes irrelevance: ``strict``
counts clean abstentions only, and outputs are split into those, decode failures and wrong calls.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from cahl_core.evaluation.bfcl.formulas import EDITIONS, IRRELEVANCE, RELEVANCE, Edition
from cahl_core.evaluation.bfcl.items import UNANSWERABLE, BfclEntry, Loaded, ceiling, loaded
from cahl_core.evaluation.bfcl.shares import summarise
from cahl_core.evaluation.checker import Answer, BfclChecker, TextVerdict, Verdict
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.evaluation.outcomes import efficiency
from cahl_core.serving.results import AgentResult, Outcome, Request

Version = Literal["v3", "v4"]
CHUNK = 1000  # answers per request to the checker, so that its time limit means something


class BfclSingleTurn:
    """All single-turn categories of one edition: a `core.Benchmark`.

    Args:
        wheel: the unzipped package (``data/raw/bfcl-v3`` or ``-v4``).
        timeout: seconds one request to the checkers may take.
        version: which edition ``wheel`` must be.
    """

    def __init__(self, wheel: Path, timeout: float, version: Version) -> None:
        self.wheel = wheel
        self.timeout = timeout
        self.edition: Edition = EDITIONS[version]
        self.name = f"bfcl_{version}"
        self.title = f"BFCL {version}, single-turn"
        self._checker: BfclChecker | None = None
        self._loaded: Loaded | None = None

    def items(self) -> list[Item]:
        """Every item, category by category in the leaderboard's order.

        Raises:
            StageInputError: the package is not there; EvaluationError: it is another version.
        """
        return self._data().items

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        """One request per attempt; nobody answers the calls."""
        requests = [Request(a.item.data.messages, a.item.data.tools, seed=a.seed) for a in attempts]
        solver.run(requests, lambda i, result: emit(attempts[i], result.to_json()))

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """The official verdicts.

        Raises:
            EvaluationError: the checker failed; never a score.
        """
        results = [AgentResult.from_json(record) for record in records]
        answers = [answer_of(a.item, r) for a, r in zip(attempts, results, strict=True)]
        verdicts: list[Verdict] = []
        for start in range(0, len(answers), CHUNK):
            verdicts += self.checker.score(answers[start : start + CHUNK])
        return [
            item_score(self.edition, attempt, result, verdict, result.outcome)
            for attempt, result, verdict in zip(attempts, results, verdicts, strict=True)
        ]

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """`shares.summarise`: official columns of whole categories, and the kinds of output."""
        return summarise(self.edition, scores, self._data().counts)

    def about(self) -> dict[str, Any]:
        """Protocol and provenance."""
        data = self._data()
        return {
            "protocol": {
                "prompt": "ours, not BFCL's system prompt: rows of the official board were made with "
                "that prompt or with a model's own function calling",
                "shown": "the package's function documents with its language hints, as JSON Schema",
                "checker": f"bfcl_eval {self.edition.prefix}, original documents, names unchanged",
            },
            "notes": notes(self.edition, data.counts),
            "data": data.data,
            "counts": data.counts,
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        """One record for people."""
        result = AgentResult.from_json(record)
        written = [] if result.plan_text is None else [f"plan: {result.plan_text}"]
        written += [f"text: {step.text}" for step in result.steps]
        return described(attempt.item, [*written, f"outcome: {result.too_long or result.outcome}"])

    @property
    def checker(self) -> BfclChecker:
        """The official checkers; raises StageInputError where the package is not there."""
        if self._checker is None:
            self._checker = BfclChecker(self.wheel, self.timeout)
        return self._checker

    def close(self) -> None:
        """Ends the checkers' process; it starts again when it is needed."""
        if self._checker is not None:
            self._checker.close()

    def _data(self) -> Loaded:
        if self._loaded is None:
            reply = self.checker.load(self.edition.single_turn)
            self._loaded = loaded(reply, self.edition, self.wheel)
        return self._loaded


def answer_of(item: Item, result: AgentResult) -> Answer:
    """What the checkers see: the calls, or ``None`` where any text was outside the grammar."""
    decoded = result.outcome in ("calls", "abstained")
    return Answer(item.id, item.category, result.calls if decoded else None)


def item_score(
    edition: Edition,
    attempt: Attempt,
    result: AgentResult,
    verdict: Verdict | TextVerdict,
    outcome: Outcome,
) -> ItemScore:
    """One verdict with what kind of output it was and what it cost.

    ``scores``: ``decode_failure`` of every item; ``strict`` (1 for a clean abstention alone) and
    ``wrong_call`` of irrelevance items.
    """
    item, called = attempt.item, outcome == "calls"
    scores = {"decode_failure": float(outcome not in ("calls", "abstained"))}
    if item.category in IRRELEVANCE:
        scores |= {"strict": float(outcome == "abstained"), "wrong_call": float(called)}
    # the AST checkers accept no call too many: all calls of a right answer were needed
    judged_by_call = item.category in (*IRRELEVANCE, *RELEVANCE)
    gold = result.calls if verdict.valid and not judged_by_call else None
    known = "no ordinary answer can meet this label" * (item.id in UNANSWERABLE[edition.name])
    error = "; ".join(filter(None, (known, result.too_long or verdict.error)))
    return ItemScore(
        item.id,
        item.category,
        float(verdict.valid),
        outcome,
        scores,
        verdict.error_type,
        "" if verdict.valid else error,
        attempt.sample,
        **efficiency(result, item.data.tools, gold),
    )


def notes(edition: Edition, counts: dict[str, int]) -> list[str]:
    """What belongs beside the numbers of an edition."""
    there = [c for c in edition.ast if c in counts]
    said = [
        "Officially an irrelevance item is right whenever no call can be decoded, broken output "
        "included; 'strict' counts clean abstentions only.",
    ]
    if there:
        lost = [i for i in UNANSWERABLE[edition.name] if i.rsplit("_", 1)[0] in there]
        top = ceiling(edition, counts, there)
        said.append(
            f"No ordinary answer meets the labels of {', '.join(lost)}; they stay in every score, so "
            f"{top:.2%} is the most that AST items can reach."
        )
    if "live_relevance" in counts:
        said.append(
            f"live_relevance has {counts['live_relevance']} items, each right for any call at all; its "
            f"standard error is up to {50 / math.sqrt(counts['live_relevance']):.0f} points."
        )
    return said


def described(item: Item, written: Sequence[str]) -> str:
    """A request, what was written, and the accepted answers, as plain text."""
    entry: BfclEntry = item.data
    lines = [f"{m.role}: {m.content}" for m in entry.messages]
    lines += ["tools: " + ", ".join(t.name for t in entry.tools), *written]
    if entry.gold is not None:
        lines.append(f"accepted: {json.dumps(entry.gold, ensure_ascii=False)}")
    return "\n".join(lines)
