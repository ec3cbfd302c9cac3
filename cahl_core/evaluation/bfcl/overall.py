"""Scores over single-turn and multi-turn together, where every category of both was evaluated whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cahl_core.evaluation.bfcl import formulas
from cahl_core.evaluation.bfcl.formulas import EDITIONS
from cahl_core.evaluation.bfcl.shares import accuracies
from cahl_core.evaluation.core import ItemScore

Scores = Mapping[str, Sequence[ItemScore]]  # by benchmark
Counts = Mapping[str, Mapping[str, int]]  # by benchmark, then by category: all items
PARTS = ("non_live", "live", "multi_turn")


def combined(scores: Scores, counts: Counts) -> dict[str, dict[str, float]]:
    """One model's combined scores; what lacks a category is left out.

    Returns:
        ``bfcl_v3_no_exec``: ``overall``, ``non_live``, ``live``, ``multi_turn`` as the v3 leaderboard
        without executed categories. ``bfcl_v4_nonagentic``: ``v4_nonagentic`` (our name: the part of v4's
        overall that needs no network, scaled to 1) with its parts.
    """
    found: dict[str, dict[str, float]] = {}
    for version in EDITIONS:
        parts = _parts(version, scores, counts)
        if parts is None:
            continue
        if version == "v3":
            whole = formulas.overall_v3_no_exec(parts, parts["multi_turn"])
            found["bfcl_v3_no_exec"] = {"overall": whole} | _some(parts, *PARTS)
        else:
            whole = formulas.v4_nonagentic(parts, parts["multi_turn"])
            found["bfcl_v4_nonagentic"] = {"v4_nonagentic": whole} | _some(
                parts, *PARTS, "irrelevance"
            )
    return found


def _some(parts: Mapping[str, float], *names: str) -> dict[str, float]:
    return {name: parts[name] for name in names}


def _parts(version: str, scores: Scores, counts: Counts) -> dict[str, float] | None:
    """Columns and multi-turn of one edition, or ``None`` where a category is missing or sampled."""
    single, turns = f"bfcl_{version}", f"bfcl_{version}_multi_turn"
    if single not in scores or turns not in scores:
        return None
    own = accuracies(scores[single], counts[single])
    multi_turn = formulas.multi_turn(accuracies(scores[turns], counts[turns]))
    if multi_turn is None or len(own) < len(counts[single]):
        return None
    columns = formulas.columns(EDITIONS[version], own, counts[single])
    return {**columns, "multi_turn": multi_turn}
