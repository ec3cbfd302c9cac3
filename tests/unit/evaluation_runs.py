"""Synthetic evaluations of several models on several benchmarks, for tests of statistics and reports.

Only the scores are invented; what they go through is the real code. Categories and their sizes are the
official ones (all or a tenth of them).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.evaluation import results_file
from cahl_core.evaluation.bfcl import formulas
from cahl_core.evaluation.bfcl.overall import combined
from cahl_core.evaluation.core import ItemScore

COUNTS: dict[str, dict[str, int]] = {
    "bfcl_v3": {
        "simple": 400, "java": 100, "javascript": 50, "multiple": 200, "parallel": 200,
        "parallel_multiple": 200, "irrelevance": 240, "live_simple": 258, "live_multiple": 1053,
        "live_parallel": 16, "live_parallel_multiple": 24, "live_irrelevance": 882, "live_relevance": 18,
    },
    "bfcl_v3_multi_turn": dict.fromkeys(formulas.MULTI_TURN, 200),
    "api_bank": {"level-1": 399, "level-2": 67, "level-3": 131},
    "bamboogle": {"bamboogle": 125},
}  # fmt: skip
TITLES = {
    "bfcl_v3": "BFCL v3, one turn",
    "bfcl_v3_multi_turn": "BFCL v3, multi-turn",
    "api_bank": "API-Bank (ToolRL's 597 items)",
    "bamboogle": "Bamboogle, closed book",
}
UNANSWERABLE = ("java_3", "live_simple_1")
SKILL = {"base": 0.08, "sft": 0.3, "cahl": 0.36}
CONTAMINATION = {
    "method": "users' texts, lower case, words only",
    "benchmarks": {
        "bfcl-v3": {
            "questions": 8200, "exact": 0, "ten_gram": 5, "by_source": {"nestful": 5}, "ids": [],
            "tool_names_shared": 19, "tool_names": [],
        }
    },
    "not_checked": [],
}  # fmt: skip


class Described:
    """What results need of a benchmark: text and formulas, no data."""

    def __init__(self, name: str, counts: Mapping[str, int] | None = None) -> None:
        self.name = name
        self.title = TITLES.get(name, name)
        self.counts = dict(COUNTS.get(name, {}) if counts is None else counts)

    def about(self) -> dict[str, Any]:
        return {
            "protocol": {"prompt": "our own roles", "scoring": "the package's checker"},
            "notes": [f"Notes of `{self.name}`.", "Labels of seven items cannot be met."],
            "data": {f"{self.name}.jsonl": "ab" * 32},
            "counts": self.counts,
        }

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        means: dict[str, float] = {}
        for category, count in self.counts.items():
            own = [s.correct for s in scores if s.category == category]
            if len(own) == count:
                means[category] = sum(own) / len(own)
        if self.name == "bfcl_v3":
            ids = [s.id for s in scores if s.id in UNANSWERABLE]
            return {
                "columns": formulas.columns(formulas.V3, means, self.counts),
                "unanswerable": ids,
            }
        if self.name == "bfcl_v3_multi_turn":
            found = formulas.multi_turn(means)
            return {} if found is None else {"multi_turn": found}
        return {"soft": means} if self.name == "api_bank" else {}


def scores(
    benchmark: str, model: str, *, share: float = 1.0, samples: int = 1, counts: Any = None
) -> list[ItemScore]:
    """Scores of one model; an item is about as hard for every model, so that pairing has an effect."""
    found = []
    for category, count in (counts or COUNTS[benchmark]).items():
        for number in range(max(1, round(count * share))):
            hard = random.Random(f"{benchmark} {category} {number}").random()
            for sample in range(samples):
                draw = random.Random(f"{model} {benchmark} {category} {number} {sample}")
                found.append(_score(category, number, sample, hard, model, draw))
    return found


def _score(
    category: str, number: int, sample: int, hard: float, model: str, draw: random.Random
) -> ItemScore:
    skill = SKILL.get(model, 0.2)
    right = 0.7 * hard + 0.3 * draw.random() < skill
    outcome = "calls" if right or draw.random() < 0.7 else "execution_failure"
    if "irrelevance" in category:
        outcome = draw.choice(["abstained", "calls", "plan_failure"])
        right = outcome != "calls"
    attempted = draw.randint(1, 3) if outcome != "abstained" else 0
    kind, why = (None, "") if right else ("wrong_value", f"city is wrong in {category}_{number}")
    return ItemScore(
        f"{category}_{number}",
        category,
        float(right),
        outcome,
        {"strict": right * 0.9, "f1": 0.5 * right if draw.random() < 0.9 else None},
        error_type=kind,
        error=why,
        sample=sample,
        attempted=attempted,
        invalid=0 if right else min(attempted, draw.randint(0, 1)),
        redundant=0,
        planned=model != "base" or draw.random() < 0.3,
        adherence=draw.random() if model != "base" else None,
        prompt_tokens=draw.randint(200, 900),
        completion_tokens=draw.randint(20, 160),
    )  # fmt: skip


def text_of(score: ItemScore, model: str) -> str:
    """The text for people of one attempt."""
    return "\n".join(
        [
            f"user: what is the weather in item {score.id}?",
            "tools: get_weather, book_hotel",
            f"plan of {model}: 1. [get_weather] find the weather",
            'text: <call>{"name": "get_weather", "arguments": {"city": "Paris"}}</call>',
            f"outcome: {score.outcome}",
            'gold: {"name": "get_weather", "arguments": {"city": "Lyon"}}',
        ]
    )


def lines_of(scores: Sequence[ItemScore], model: str) -> list[dict[str, Any]]:
    return [
        results_file.item_line(s, {"plan_text": "p", "steps": []}, text_of(s, model))
        for s in scores
    ]


def evaluation(
    models: Sequence[str] = ("base", "sft", "cahl"),
    benchmarks: Sequence[str] = ("bfcl_v3", "api_bank", "bamboogle"),
    *,
    share: float = 0.1,
    samples: int = 1,
    described: Mapping[str, Any] | None = None,
    **changed: Any,
) -> tuple[dict[str, Any], dict[str, dict[str, list[dict[str, Any]]]]]:
    """Results and items of synthetic runs.

    Args:
        share: of every category.
        described: what is known of each model instead of the default.
        changed: arguments of `results_file.build` instead of the defaults.
    """
    found = {m: {b: scores(b, m, share=share, samples=samples) for b in benchmarks} for m in models}
    backbone = {"backbone": "smollm2-135m-instruct", "form": "hierarchical"}
    arguments: dict[str, Any] = {
        "models": {m: described or {**backbone, "adapters": m} for m in models},
        "config": {"evaluate": {"plan_tokens": 256, "call_tokens": 192, "temperature": 0.0}},
        "versions": {"torch": "2.11", "python": "3.11.2"},
        "seeds": {"bootstrap": 20260609},
        "git": "0123abc",
        "prompts": {m: {b: prompts_of(b) for b in benchmarks} for m in models},
        "contamination": CONTAMINATION,
        **changed,
    }
    results = results_file.build(found, [Described(b) for b in benchmarks], **arguments)
    results |= {"combined": {m: combined(own, COUNTS) for m, own in found.items()}}
    items = {m: {b: lines_of(own, m) for b, own in of.items()} for m, of in found.items()}
    return results, items


def prompts_of(benchmark: str) -> list[dict[str, str]]:
    return [
        {"title": f"planner, {benchmark}", "text": "system: You plan.\nuser: what is the weather?"},
        {
            "title": f"executor, {benchmark}",
            "text": "system: You call tools.\nuser: find the weather",
        },
    ]


def timing_of(results: Mapping[str, Any]) -> dict[str, Any]:
    one = {
        "attempts": 52, "seconds": 120.5, "seconds_per_attempt": 2.3, "latency_median": 40.2,
        "latency_p95": 80.9, "scoring_seconds": 0.2, "seconds_prefill": 50.0, "seconds_decode": 61.0,
        "prefilled_tokens": 30000, "decoded_tokens": 4000,
    }  # fmt: skip
    return {m: dict.fromkeys(own, one) for m, own in results["results"].items()}


def written(folder: Path, **options: Any) -> dict[str, Any]:
    """An evaluation as a directory; returns its results."""
    results, items = evaluation(**options)
    results_file.write(folder, results, items)
    return results
