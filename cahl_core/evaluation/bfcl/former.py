"""What `evaluate` used before `single`; goes when nothing imports it any more.

BFCL v3 single-turn: items, the fixed stratified sample, and the scores.

Official rules (the package's): an AST item is right iff its checker says so; an irrelevance item
iff no call was decoded; a relevance item iff any was. An output that cannot be decoded therefore
passes irrelevance, so ``strict`` counts clean abstentions only, and the accuracy over items that
need calls is kept apart from irrelevance: a model that writes nothing gets 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.errors import ConfigError, EvaluationError
from cahl_core.evaluation.bfcl.schemas import tool
from cahl_core.evaluation.checker import BfclChecker, Verdict
from cahl_core.evaluation.metrics import wilson
from cahl_core.records import Message, ToolSpec

VERSION = "BFCL_v3"
NON_LIVE_AST = ("simple", "java", "javascript", "multiple", "parallel", "parallel_multiple")
LIVE_AST = ("live_simple", "live_multiple", "live_parallel", "live_parallel_multiple")
AST = NON_LIVE_AST + LIVE_AST
IRRELEVANCE = ("irrelevance", "live_irrelevance")
RELEVANCE = ("live_relevance",)
SINGLE_TURN = (*AST, *IRRELEVANCE, *RELEVANCE)

# Labels that no answer can meet (or only a degenerate one); they stay in every score.
UNANSWERABLE = (
    "java_36", "java_64", "java_65",
    "live_simple_106-63-0", "live_simple_112-68-0",
    "live_multiple_862-181-3", "live_multiple_964-207-0",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class BfclItem:
    """One single-turn item as a model sees it."""

    id: str
    category: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]


def load_items(
    checker: BfclChecker, sample: Mapping[str, int] | None
) -> tuple[list[BfclItem], dict[str, int]]:
    """The items to evaluate, by category then hash of the id, and the size of every category.

    Args:
        sample: items per category; ``None`` takes every single-turn item.

    Raises:
        ConfigError: ``sample`` names a category that does not exist.
        EvaluationError: the package is not BFCL v3.
    """
    wanted = dict.fromkeys(SINGLE_TURN) if sample is None else dict(sample)
    if unknown := sorted(set(wanted) - set(SINGLE_TURN)):
        raise ConfigError(
            f"evaluate.sample: no such category: {', '.join(unknown)}",
            f"single-turn categories: {', '.join(SINGLE_TURN)}",
        )
    categories = [c for c in SINGLE_TURN if wanted.get(c, 0) != 0]
    reply = checker.load(categories)
    if reply["version"] != VERSION:
        raise EvaluationError(
            f"{checker.wheel} is {reply['version']}, not {VERSION}", "source bfcl-v3 is needed"
        )
    items = [_item(record) for record in reply["items"]]
    chosen: list[BfclItem] = []
    for category in categories:
        chosen += stratum([i for i in items if i.category == category], wanted[category])
    return chosen, reply["counts"]


def stratum(items: Sequence[BfclItem], count: int | None) -> list[BfclItem]:
    """The ``count`` items whose hashed ids come first: the same ones whatever the file's order."""
    ordered = sorted(items, key=lambda i: hashlib.sha256(i.id.encode()).hexdigest())
    return ordered[:count]


def _item(record: Mapping[str, Any]) -> BfclItem:
    where = f"BFCL item {record['id']}"
    return BfclItem(
        record["id"],
        record["category"],
        tuple(Message.from_json(m, where) for m in record["messages"]),
        tuple(tool(f) for f in record["functions"]),
    )


@dataclass(frozen=True, slots=True)
class Scored:
    """One judged item: the verdict and what kind of output it was (`agent.Outcome`)."""

    category: str
    verdict: Verdict
    outcome: str

    @property
    def decode_failure(self) -> bool:
        return self.outcome in ("plan_failure", "execution_failure", "prompt_too_long")


def by_category(scored: Sequence[Scored]) -> dict[str, dict[str, Any]]:
    """Per category: n, official accuracy with its 95 % interval, and the kinds of output."""
    table: dict[str, dict[str, Any]] = {}
    for category in SINGLE_TURN:
        rows = [s for s in scored if s.category == category]
        if not rows:
            continue
        table[category] = {
            **proportion([s.verdict.valid for s in rows]),
            "decode_failures": sum(s.decode_failure for s in rows),
            "abstentions": sum(s.outcome == "abstained" for s in rows),
            "called": sum(s.outcome == "calls" for s in rows),
            "prompt_too_long": sum(s.outcome == "prompt_too_long" for s in rows),
        }
        if category in IRRELEVANCE:
            table[category]["strict"] = _mean([s.outcome == "abstained" for s in rows])
    return table


def summary(scored: Sequence[Scored], full: bool) -> dict[str, Any]:
    """The headline numbers; ``bfcl_accuracy`` is the mean over the items that need calls."""
    ast = proportion([s.verdict.valid for s in scored if s.category in AST])
    irrelevance = [s for s in scored if s.category in IRRELEVANCE]
    result: dict[str, Any] = {
        "bfcl_n": ast["n"],
        "bfcl_accuracy": ast["accuracy"],
        "bfcl_accuracy_low": ast["low"],
        "bfcl_accuracy_high": ast["high"],
        "decode_failures": sum(s.decode_failure for s in scored if s.category in AST),
        "irrelevance_n": len(irrelevance),
        "irrelevance": _mean([s.verdict.valid for s in irrelevance]),
        "irrelevance_strict": _mean([s.outcome == "abstained" for s in irrelevance]),
    }
    if full:
        result.update(official(by_category(scored)))
    return result


def official(table: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The single-turn columns of the v3 leaderboard without executable categories, in [0, 1].

    Non-live: mean of five (simple = mean of Python, Java, JavaScript; multiple; parallel;
    parallel_multiple; irrelevance). Live: mean over the items of all six live categories.
    """

    def accuracy(category: str) -> float:
        return float(table[category]["accuracy"])

    simple = sum(map(accuracy, ("simple", "java", "javascript"))) / 3
    parts = [simple, *map(accuracy, ("multiple", "parallel", "parallel_multiple", "irrelevance"))]
    live = [table[c] for c in (*LIVE_AST, "live_irrelevance", "live_relevance")]
    items = sum(row["n"] for row in live)
    return {
        "official_non_live": sum(parts) / len(parts),
        "official_live": sum(row["accuracy"] * row["n"] for row in live) / items,
    }


def proportion(outcomes: Sequence[bool]) -> dict[str, Any]:
    """n, share of true outcomes and its Wilson 95 % interval."""
    low, high = wilson(sum(outcomes), len(outcomes))
    return {"n": len(outcomes), "accuracy": _mean(outcomes), "low": low, "high": high}


def _mean(outcomes: Sequence[bool]) -> float:
    return sum(outcomes) / len(outcomes) if outcomes else 0.0
