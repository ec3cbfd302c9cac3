"""How much accuracy moves between prompt configurations (format_sensitivity)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.evaluation.bfcl.shares import accuracies
from cahl_core.evaluation.core import ItemScore


def variation(scores: Sequence[ItemScore], counts: Mapping[str, int]) -> dict[str, Any]:
    """Accuracy by configuration and its spread, in [0, 1]; the official board shows points.

    ``configurations`` has those that were evaluated whole. ``max_delta`` (largest minus smallest) and
    ``standard_deviation`` (of a sample, n - 1) are there once all are: configurations that were
    evaluated on different items differ for that reason too.
    """
    found = accuracies(scores, counts)
    spread: dict[str, Any] = {"configurations": found}
    if len(found) == len(counts):
        values = list(found.values())
        spread["max_delta"] = max(values) - min(values)
        spread["standard_deviation"] = statistics.stdev(values)
    return spread
