"""Which predicted call is compared with which gold call: assignment without order, alignment in order.

A gold step is a set of parallel calls. Gold calls are numbered from 0 here, through all steps; ``$varN``
counts them from 1. A step without calls asks for nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cahl_core.canonical import EXACT, equal
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.train_config import ValueSettings

Gold = Sequence[ToolCall] | Sequence[Sequence[ToolCall]]  # calls, or steps of calls
Scores = NDArray[np.float64]


def as_steps(gold: Gold) -> list[tuple[ToolCall, ...]]:
    """The steps of ``gold``; calls that are given alone are a step each.

    >>> f, g = ToolCall("f", {}), ToolCall("g", {})
    >>> as_steps([f, g]) == [(f,), (g,)], as_steps([[f, g], []]) == [(f, g)]
    (True, True)
    """
    steps = [(item,) if isinstance(item, ToolCall) else tuple(item) for item in gold]
    return [step for step in steps if step]


def grouped_like(steps: Sequence[Sequence[ToolCall]], gold: Gold) -> list[tuple[ToolCall, ...]]:
    """The calls of ``gold`` in the steps of ``steps``."""
    calls = iter([call for step in as_steps(gold) for call in step])
    return [tuple(next(calls) for _ in step) for step in steps]


def key_match(call: ToolCall, gold: ToolCall) -> float:
    """Jaccard similarity of the argument names; 0 for calls of different tools."""
    if call.name != gold.name:
        return 0.0
    union = set(call.arguments) | set(gold.arguments)
    return len(set(call.arguments) & set(gold.arguments)) / len(union) if union else 1.0


def value_match(call: ToolCall, gold: ToolCall, rules: ValueSettings = EXACT) -> float:
    """Equal arguments over the union of the argument names; 0 for calls of different tools."""
    if call.name != gold.name:
        return 0.0
    mine, wanted = call.arguments, gold.arguments
    union = set(mine) | set(wanted)
    same = sum(equal(mine[k], wanted[k], rules) for k in mine if k in wanted)
    return same / len(union) if union else 1.0


def same_calls(
    calls: Sequence[ToolCall], gold: Sequence[ToolCall], rules: ValueSettings = EXACT
) -> bool:
    """Whether the calls are exactly the gold calls, in any order."""
    if len(calls) != len(gold):
        return False
    left = list(gold)
    for call in calls:
        found = (i for i, g in enumerate(left) if same_call(call, g, rules))
        index = next(found, None)
        if index is None:
            return False
        del left[index]
    return True


def same_call(call: ToolCall, gold: ToolCall, rules: ValueSettings = EXACT) -> bool:
    """Whether tool, argument names and values are equal."""
    return (
        call.name == gold.name
        and call.arguments.keys() == gold.arguments.keys()
        and all(equal(v, gold.arguments[k], rules) for k, v in call.arguments.items())
    )


def assign(scores: Scores) -> list[tuple[int, int]]:
    """The pairs (row, column) of an assignment with the largest sum, rows in order.

    >>> assign(np.array([[1.0, 2.0], [1.0, 3.0]]))
    [(0, 0), (1, 1)]
    """
    if 1 in scores.shape:
        best = int(scores.argmax())
        return [(best, 0) if scores.shape[1] == 1 else (0, best)]
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(scores, maximize=True)
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def align(scores: Scores) -> list[int | None]:
    """Order-preserving alignment of rows (sub-tasks) with columns (gold steps), by score sum.

    Args:
        scores: ``[sub-tasks, gold steps]``, non-negative; pairs that score 0 are never aligned.

    Returns:
        For each row its column, or ``None``.

    >>> align(np.array([[0.0, 1.0], [1.0, 0.0]]))  # crossing is not allowed: the first wins
    [1, None]
    """
    return _aligned(scores.tolist(), scores.shape[1])


def _aligned(cells: Sequence[Sequence[float]], columns: int) -> list[int | None]:
    aligned: list[int | None] = [None] * len(cells)
    for found in segments(len(cells), [1] * columns, lambda i, _, j: cells[i][j]):
        aligned[found.start] = found.column
    return aligned


class Segment(NamedTuple):
    """Rows ``start`` to ``stop``, given to ``column`` for ``score``."""

    start: int
    stop: int
    column: int
    score: float


def segments(
    rows: int, widths: Sequence[int], score: Callable[[int, int, int], float]
) -> list[Segment]:
    """The best way to give columns disjoint stretches of rows, in order (dynamic programming).

    Args:
        widths: the longest stretch of each column.
        score: non-negative, of ``(start, stop, column)``; stretches that score 0 are never taken.

    Returns:
        The stretches with the largest sum. Of equal sums, the one that takes a stretch as soon as it
        can, and then the longest.
    """
    columns = len(widths)
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    taken: dict[tuple[int, int], Segment] = {}
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            top = max(best[i][j + 1], best[i + 1][j])
            for stop in range(i + 1, min(i + widths[j], rows) + 1):
                value = score(i, stop, j)
                if value > 0 and value + best[stop][j + 1] >= top:
                    top = value + best[stop][j + 1]
                    taken[i, j] = Segment(i, stop, j, value)
            best[i][j] = top
    return _followed(best, taken)


def _followed(
    best: Sequence[Sequence[float]], taken: dict[tuple[int, int], Segment]
) -> list[Segment]:
    i = j = 0
    found = []
    while i < len(best) - 1 and j < len(best[0]) - 1:
        segment = taken.get((i, j))
        if segment is not None:
            found.append(segment)
            i, j = segment.stop, j + 1
        elif best[i][j] == best[i][j + 1]:
            j += 1
        else:
            i += 1
    return found


def align_plan(plan: Plan, gold: Gold, rules: ValueSettings = EXACT) -> list[int | None]:
    """The number of the gold call that each sub-task stands for, or ``None``.

    Same tool, steps in order and calls within a step in any, most argument values in common.

    >>> from cahl_core.records import SubTask
    >>> f, g = ToolCall("f", {}), ToolCall("g", {})
    >>> plan = Plan((SubTask("", "g"), SubTask("", "f")))
    >>> align_plan(plan, [f, g]), align_plan(plan, [[f, g]])
    ([1, None], [1, 0])
    """
    steps = as_steps(gold)
    calls = [call for step in steps for call in step]
    if not calls or not plan.sub_tasks:
        return [None] * len(plan.sub_tasks)
    cells = [[_likeness(s, call, rules) for call in calls] for s in plan.sub_tasks]
    if len(calls) == len(steps):
        return _aligned(cells, len(calls))
    return _align_steps(np.array(cells), [len(step) for step in steps])


def _likeness(sub_task: SubTask, call: ToolCall, rules: ValueSettings) -> float:
    if sub_task.tool != call.name:
        return 0.0
    return 1.0 + value_match(ToolCall(call.name, sub_task.arguments), call, rules)


def _align_steps(scores: Scores, sizes: Sequence[int]) -> list[int | None]:
    """`align` where columns come in steps of ``sizes`` and have no order within one."""
    starts = np.cumsum([0, *sizes])

    def within(start: int, stop: int, step: int) -> list[tuple[int, int]]:
        part = scores[start:stop, starts[step] : starts[step + 1]]
        pairs = [(start + i, int(starts[step]) + j) for i, j in assign(part)]
        return [(i, j) for i, j in pairs if scores[i, j] > 0]

    def total(start: int, stop: int, step: int) -> float:
        return float(sum(scores[i, j] for i, j in within(start, stop, step)))

    rows = len(scores)
    aligned: list[int | None] = [None] * rows
    for segment in segments(rows, [rows] * len(sizes), total):
        for i, j in within(segment.start, segment.stop, segment.column):
            aligned[i] = j
    return aligned
