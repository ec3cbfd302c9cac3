"""Paired differences between two models on the same items, which share the items' difficulty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from cahl_core.errors import DataError
from cahl_core.evaluation.core import ItemScore
from cahl_core.evaluation.metrics import ROUNDS, Array, Interval, percentiles
from cahl_core.evaluation.resampling import Table, ratio, resampled
from cahl_core.evaluation.statistics import (
    MEASURES,
    OVER,
    Items,
    as_json,
    by_item,
    of_category,
    table_of,
)

LISTED = 5  # items named in a refusal


def paired(
    one: Sequence[ItemScore], other: Sequence[ItemScore], rounds: int = ROUNDS
) -> dict[str, Any]:
    """``other`` less ``one`` on the same items, overall and by category, as JSON.

    Returns:
        ``n``, ``one`` and ``other`` (accuracies), ``difference`` (an interval), ``better`` and ``worse``
        (items on which ``other`` scored higher or lower), ``mcnemar_p`` (`mcnemar`; ``None`` where scores
        are not 0 or 1), ``measures`` (name → interval of the difference), ``by_category``.

    Raises:
        DataError: the two do not hold the same items; says which differ.
    """
    first, second = by_item(one), by_item(other)
    check_same_items(first, second)
    second = {id_: second[id_] for id_ in first}
    categories = dict.fromkeys(s.category for s in one)
    return {
        **_paired(first, second, rounds),
        "by_category": {
            c: _paired(of_category(first, c), of_category(second, c), rounds, measures=False)
            for c in categories
        },
    }


def check_same_items(one: Items, other: Items) -> None:
    """Refuses two sets of items that are not the same, naming up to five of each kind."""
    kinds = {
        "only the first has": [i for i in one if i not in other],
        "only the second has": [i for i in other if i not in one],
        "in different categories": [
            i for i in one if i in other and one[i][0].category != other[i][0].category
        ],
    }
    found = [
        f"{kind} {len(ids)} ({', '.join(ids[:LISTED])}{', …' if len(ids) > LISTED else ''})"
        for kind, ids in kinds.items()
        if ids
    ]
    if found:
        raise DataError(
            f"a paired difference needs the same items: {'; '.join(found)}",
            "evaluate both models with the same benchmark, sample and seed",
        )


def _paired(one: Items, other: Items, rounds: int, measures: bool = True) -> dict[str, Any]:
    first, second = table_of(one), table_of(other)
    columns = len(first.names) if measures else 1
    found = _differences(first, second, columns, rounds)
    a, b = first.top[:, 0], second.top[:, 0]
    better, worse = int((b > a).sum()), int((b < a).sum())
    binary = set(a) | set(b) <= {0.0, 1.0}
    return {
        "n": len(one),
        "one": float(a.mean()) if len(a) else None,
        "other": float(b.mean()) if len(b) else None,
        "difference": found["accuracy"],
        "better": better,
        "worse": worse,
        "mcnemar_p": mcnemar(better, worse) if binary else None,
        **({"measures": {n: found[n] for n in MEASURES}} if measures else {}),
    }


def _differences(first: Table, second: Table, columns: int, rounds: int) -> dict[str, Any]:
    a, b = (
        Table(t.names[:columns], t.top[:, :columns], t.bottom[:, :columns]) for t in (first, second)
    )
    if not len(a.top):
        nothing = Interval(None, None, None, OVER, "none", "nothing was observed")
        return {name: as_json(nothing) for name in a.names}
    values = ratio(b.top.sum(0), b.bottom.sum(0)) - ratio(a.top.sum(0), a.bottom.sum(0))
    both = Table([], np.hstack([a.top, b.top]), np.hstack([a.bottom, b.bottom]))
    before, after = np.split(resampled(both, rounds), 2, axis=1)
    drawn = after - before
    return {name: as_json(_difference(values[i], drawn[:, i])) for i, name in enumerate(a.names)}


def _difference(value: float, drawn: Array) -> Interval:
    if np.isnan(value):
        return Interval(None, None, None, OVER, "none", "not observed in both")
    return percentiles(float(value), drawn, OVER)


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p-value of McNemar's test: how surprising the split of the items that changed is.

    >>> mcnemar(5, 0)
    0.0625
    """
    changed = better + worse
    tail = sum(math.comb(changed, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / (1 << changed))
