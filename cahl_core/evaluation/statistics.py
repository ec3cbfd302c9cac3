"""Measures of judged items with 95 % intervals.

Items are the units: a resample draws items with replacement and takes all samples of a drawn item (Efron &
Tibshirani, 1993, percentile interval). All measures of one benchmark are taken on the same resamples, and
two models on the same items too, which is the paired bootstrap. Measures are ratios of sums over items; a
mean has a denominator of 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from cahl_core.errors import DataError
from cahl_core.evaluation.core import ItemScore
from cahl_core.evaluation.metrics import ROUNDS, Array, Interval, percentiles, wilson
from cahl_core.evaluation.resampling import Table, ratio, resampled

DECODE_FAILURES = ("plan_failure", "execution_failure", "prompt_too_long", "decode_failure")
OVER = ("items",)

# Definition of each measure, as written into results and reports.
DEFINITIONS = {
    "accuracy": "mean of the benchmark's headline measure over items, an item's samples averaged first",
    "pass_at": "chance that at least one of k samples of an item is right, by the unbiased estimate "
    "1 - C(n-c, k) / C(n, k) from n samples of which c are right, averaged over items",
    "invalid_call_rate": "calls that do not parse, name an unknown tool or do not fit the tool's schema, "
    "among all calls attempted (our definition)",
    "redundant_call_rate": "calls that repeat an earlier one of the same task, or go beyond the gold calls "
    "of a solved one, among all calls that parsed (our definition)",
    "calls_per_solved_task": "calls attempted in solved attempts, per solved attempt; 0 where the right "
    "answer is to call nothing",
    "calls_per_task": "calls attempted, per attempt",
    "plan_validity": "plans that parse and name only listed tools, among all plans (our definition)",
    "adherence": "share of a plan's sub-tasks with a tool that were carried out by exactly one call of it, "
    "averaged over attempts that have such a plan",
    "decode_failure_rate": "attempts with a text outside the grammar or a prompt too long for the context",
    "prompt_tokens_per_task": "tokens in prompts, per attempt; a prefix that was encoded once for several "
    "prompts counts in each",
    "completion_tokens_per_task": "tokens written, per attempt",
    "tokens_per_task": "prompt and written tokens, per attempt",
}
Part = tuple[float, float]  # numerator and denominator of one attempt


def _solved(score: ItemScore) -> bool:
    return score.correct >= 1


MEASURES: dict[str, Callable[[ItemScore], Part]] = {
    "invalid_call_rate": lambda s: (s.invalid, s.attempted),
    "redundant_call_rate": lambda s: (s.redundant, s.attempted - s.unparsed),
    "calls_per_solved_task": lambda s: (s.attempted, 1) if _solved(s) else (0, 0),
    "calls_per_task": lambda s: (s.attempted, 1),
    "plan_validity": lambda s: (0, 0) if s.planned is None else (s.planned, 1),
    "adherence": lambda s: (0, 0) if s.adherence is None else (s.adherence, 1),
    "decode_failure_rate": lambda s: (s.outcome in DECODE_FAILURES, 1),
    "prompt_tokens_per_task": lambda s: (s.prompt_tokens, 1),
    "completion_tokens_per_task": lambda s: (s.completion_tokens, 1),
    "tokens_per_task": lambda s: (s.prompt_tokens + s.completion_tokens, 1),
}
# No shares, may exceed 1: measures per task, and these of the benchmarks' own scores.
NO_SHARES = ("extra_calls", "searches", "reward", "executor_reward")
COUNTS = frozenset(
    [*(n for n in MEASURES if n.endswith("_task")), *(f"score {name}" for name in NO_SHARES)]
)
Items = dict[str, list[ItemScore]]  # samples by id of the item


# --- one model -----------------------------------------------------------------------------------


def summarise(scores: Sequence[ItemScore], rounds: int = ROUNDS) -> dict[str, Any]:
    """Everything about one model on one benchmark, overall and by category, as JSON.

    Returns:
        ``n`` items, ``attempts``, ``accuracy`` (an interval: value, low, high, method, note),
        ``wilson`` (low and high; ``None`` where an item's score is not 0 or 1), ``pass_at`` (k → interval,
        where items have several samples), ``measures`` and the means of ``ItemScore.scores`` (name →
        interval), ``outcomes`` and ``error_types`` (counts of attempts), ``by_category`` (the same).

    Raises:
        DataError: a sample of an item is there twice, or an item in two categories.
    """
    items = by_item(scores)
    categories = {c: of_category(items, c) for c in dict.fromkeys(s.category for s in scores)}
    return {
        **_summary(items, rounds),
        "by_category": {c: _summary(own, rounds) for c, own in categories.items()},
    }


def by_item(scores: Sequence[ItemScore]) -> Items:
    """The samples of each item, in the order of the items' first samples."""
    items: Items = {}
    for score in scores:
        items.setdefault(score.id, []).append(score)
    for id_, own in items.items():
        if len({s.sample for s in own}) < len(own):
            raise DataError(f"item {id_} has a sample twice", "one score per item and sample")
        if len({s.category for s in own}) > 1:
            raise DataError(
                f"item {id_} is in several categories: {sorted({s.category for s in own})}"
            )
    return items


def of_category(items: Items, category: str) -> Items:
    return {id_: own for id_, own in items.items() if own[0].category == category}


def _summary(items: Items, rounds: int) -> dict[str, Any]:
    attempts = [s for own in items.values() for s in own]
    names = list(dict.fromkeys(name for s in attempts for name in s.scores))
    ks = passes(min(map(len, items.values()), default=0))
    found = _intervals(table_of(items, names, ks), rounds)
    right = [float(np.mean([s.correct for s in own])) for own in items.values()]
    return {
        "n": len(items),
        "attempts": len(attempts),
        "accuracy": found["accuracy"],
        "wilson": list(wilson(int(sum(right)), len(right))) if set(right) <= {0, 1} else None,
        "pass_at": {str(k): found[f"pass@{k}"] for k in ks},
        "measures": {name: found[name] for name in MEASURES},
        "scores": {name: found[f"score {name}"] for name in names},
        "outcomes": _counted(s.outcome for s in attempts),
        "error_types": _counted(s.error_type for s in attempts if s.error_type is not None),
    }


def _counted(words: Iterator[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items(), key=lambda pair: (-pair[1], pair[0])))


def table_of(items: Items, scores: Sequence[str] = (), ks: Sequence[int] = ()) -> Table:
    """All measures of the items: a column each."""
    means = [(float(np.mean([s.correct for s in own])), 1.0) for own in items.values()]
    columns: dict[str, list[Part]] = {"accuracy": means}
    for k in ks:
        columns[f"pass@{k}"] = [
            (pass_at_k(len(own), sum(map(_solved, own)), k), 1) for own in items.values()
        ]
    for name, part in MEASURES.items():
        columns[name] = [_summed([part(s) for s in own]) for own in items.values()]
    for name in scores:
        columns[f"score {name}"] = [
            _summed([_seen(s.scores.get(name)) for s in own]) for own in items.values()
        ]
    parts = np.array(list(columns.values()), dtype=float).reshape(len(columns), len(items), 2)
    return Table(list(columns), parts[..., 0].T, parts[..., 1].T)


def _seen(value: float | None) -> Part:
    return (0, 0) if value is None else (value, 1)


def _summed(parts: Sequence[Part]) -> Part:
    return sum(p for p, _ in parts), sum(q for _, q in parts)


def passes(samples: int) -> list[int]:
    """Which k are reported: powers of two up to the samples that every item has, and all of them.

    >>> passes(1), passes(6)
    ([], [1, 2, 4, 6])
    """
    if samples < 2:
        return []
    return sorted({1 << i for i in range(samples.bit_length())} | {samples})


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of ``k`` samples is right (Chen et al., 2021).

    Args:
        n: samples, ``correct`` of them right; ``1 <= k <= n``.

    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(
            f"pass@{k} of {correct} right among {n}: 1 <= k <= n and correct <= n needed"
        )
    return 1 - math.comb(n - correct, k) / math.comb(n, k)


# --- intervals -------------------------------------------------------------------------------


def _intervals(table: Table, rounds: int) -> dict[str, dict[str, Any]]:
    if not len(table.top):
        nothing = Interval(None, None, None, OVER, "none", "nothing was observed")
        return {name: as_json(nothing) for name in table.names}
    values = ratio(table.top.sum(axis=0), table.bottom.sum(axis=0))
    all_draws = resampled(table, rounds)
    return {
        name: as_json(
            _interval(
                values[i], table.top[:, i], table.bottom[:, i], all_draws[:, i], name not in COUNTS
            )
        )
        for i, name in enumerate(table.names)
    }


def _interval(value: float, top: Array, bottom: Array, drawn: Array, share: bool) -> Interval:
    if np.isnan(value):
        return Interval(None, None, None, OVER, "none", "nothing was observed")
    own = top[bottom > 0] / bottom[bottom > 0]
    if share and value in (0.0, 1.0) and set(own) == {value}:  # a bootstrap would have no width
        low, high = wilson(round(value * len(own)), len(own))
        return Interval(
            float(value), low, high, OVER, "wilson", "all items are equal: Wilson's interval"
        )
    return percentiles(float(value), drawn, OVER if len(top) > 1 else ())


def as_json(interval: Interval) -> dict[str, Any]:
    """Value, bounds and method; the note where there is one."""
    found = {"value": interval.value, "low": interval.low, "high": interval.high}
    return {
        **found,
        "method": interval.method,
        **({"note": interval.note} if interval.note else {}),
    }
