"""The table of an experiment: a row per arm, every measure with its interval and its difference."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from cahl_core.experiments.grid import START
from cahl_core.experiments.measures import MEASURES, observations
from cahl_core.experiments.plan import Cell
from cahl_core.experiments.state import CellFolder
from cahl_core.experiments.statistics import difference, estimate, ratio
from cahl_core.files import read_jsonl

REFERENCE = "joint"
Outcomes = dict[int, list[dict[str, Any]]]  # by seed


def label_of(cell: Cell) -> str:
    """The name of a row: the arm, and the variant where the grid has several."""
    return cell.arm if len(cell.grid.variants) == 1 else f"{cell.arm} / {cell.variant}"


def reference_of(cells: Sequence[Cell]) -> str:
    """The row that the others are compared with: `joint` of the first variant, else the first arm."""
    labels = list(dict.fromkeys(label_of(c) for c in cells if c.trains))
    return next((x for x in labels if x.split(" / ")[0] == REFERENCE), labels[0])


def compare(
    cells: Sequence[Cell], outcomes: Mapping[str, Sequence[dict[str, Any]]]
) -> list[dict[str, Any]]:
    """A row per arm and variant.

    Args:
        cells: all of the grid.
        outcomes: of the finished cells, by id, of one split and one mode.
    """
    rows: dict[str, Outcomes] = defaultdict(dict)
    for cell in cells:
        if cell.id in outcomes:
            rows[label_of(cell)][cell.seed] = list(outcomes[cell.id])
    tasks = list(dict.fromkeys(o["task"] for found in outcomes.values() for o in found))
    reference = rows.get(reference_of(cells))
    table = []
    for label, own in rows.items():
        others = None if own is reference else reference
        whole = _repeated([c for c in cells if label_of(c) == label], own)
        table.append(
            {
                "row": label,
                "seeds": sorted(own),
                "tasks": len(tasks),
                "void": sum(o["void"] for found in own.values() for o in found),
                "measures": {name: _measured(own, tasks, name) for name in MEASURES},
                "less_reference": _differences(whole, others, tasks) if others else {},
            }
        )
    return table


def _measured(own: Outcomes, tasks: Sequence[str], name: str) -> dict[str, Any]:
    seen = observations(own, tasks, name)
    by_seed = {str(s): ratio(seen.only([s], tasks)) for s in seen.seeds}
    return {**asdict(estimate(seen)), "by_seed": by_seed}


def _differences(own: Outcomes, others: Outcomes, tasks: Sequence[str]) -> dict[str, Any]:
    pairs = {
        name: (observations(own, tasks, name), observations(others, tasks, name))
        for name in MEASURES
    }
    return {name: asdict(difference(*pair)) for name, pair in pairs.items()}


def _repeated(cells: Sequence[Cell], own: Outcomes) -> Outcomes:
    """A start that all seeds share is every seed's start when it is compared with what came of it."""
    grid = cells[0].grid
    if cells[0].arm != START or grid.sft.per_seed:
        return own
    (only,) = own.values()
    return dict.fromkeys(grid.seeds, only)


def tokens_of(folder: CellFolder) -> float:
    """Tokens that a cell sampled in training; 0 where nothing was trained."""
    if not folder.rows.exists():
        return 0.0
    return float(sum(r.get("sampled_tokens") or 0 for r in read_jsonl(folder.rows)))
