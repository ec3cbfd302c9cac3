"""Aggregates of BFCL scores: official columns of whole categories, and the kinds of output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.evaluation.bfcl.formulas import IRRELEVANCE, Edition, columns, mean
from cahl_core.evaluation.bfcl.items import UNANSWERABLE
from cahl_core.evaluation.core import ItemScore


def summarise(
    edition: Edition, scores: Sequence[ItemScore], counts: Mapping[str, int]
) -> dict[str, Any]:
    """What `core.Benchmark.summary` returns for an edition; shares in [0, 1].

    ``columns`` has the leaderboard's columns (`formulas.columns`) whose categories were evaluated
    whole, with as many samples of each item. Beside them ``irrelevance_strict``, the column
    ``irrelevance`` with clean abstentions alone.

    ``ast``: of the items that need given calls; ``irrelevance_items``: of those that need none. A model
    that writes nothing usable has 0 in ``ast`` and in ``strict``.
    """
    whole = accuracies(scores, counts)
    strict = accuracies(scores, counts, "strict")
    found = columns(edition, whole, counts)
    if all(c in strict for c in IRRELEVANCE):
        found["irrelevance_strict"] = mean([strict[c] for c in IRRELEVANCE])
    lost = [s.id for s in scores if s.id in UNANSWERABLE[edition.name] and s.sample == 0]
    return {
        "columns": found,
        "ast": _group([s for s in scores if s.category in edition.ast]),
        "irrelevance_items": _group([s for s in scores if s.category in IRRELEVANCE]),
        "unanswerable": lost,
    }


def accuracies(
    scores: Sequence[ItemScore], counts: Mapping[str, int], measure: str | None = None
) -> dict[str, float]:
    """Accuracy (or the mean of another measure) of the categories that were evaluated whole.

    A category is whole when all of its ``counts`` items are there, each with the same samples.
    """
    found: dict[str, float] = {}
    for category, count in counts.items():
        rows = [s for s in scores if s.category == category]
        samples = {s.sample for s in rows}
        if not rows or len({(s.id, s.sample) for s in rows}) != count * len(samples):
            continue
        values = [s.correct if measure is None else s.scores.get(measure) for s in rows]
        observed = [v for v in values if v is not None]
        if len(observed) == len(values):
            found[category] = mean(observed)
    return found


def _group(scores: Sequence[ItemScore]) -> dict[str, float | int]:
    """n, accuracy and the share of each kind of output; empty without items."""
    if not scores:
        return {}
    names = dict.fromkeys(name for s in scores for name in s.scores)
    measures = {
        name: mean([v for s in scores if (v := s.scores.get(name)) is not None]) for name in names
    }
    # samples of an item are no items of their own
    items = len({s.id for s in scores})
    return {"n": items, "accuracy": mean([s.correct for s in scores]), **measures}
