"""Which predicted call is compared with which gold call: assignment without order, alignment in order.

A gold step is a set of parallel calls. Gold calls are numbered from 0 here, through all steps; ``$varN``
counts them from 1. A step without calls asks for nothing and is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
    rows, columns = scores.shape
    aligned: list[int | None] = [None] * rows
    cells = scores.tolist()
    for start, _, column in segments(rows, columns, lambda i, _, j: float(cells[i][j]))[1]:
        aligned[start] = column
    return aligned


Segment = tuple[int, int, int]


def segments(
    rows: int,
    columns: int,
    score: Callable[[int, int, int], float],
    widths: Sequence[int] | None = None,
) -> tuple[float, list[Segment]]:
    """The best way to give columns disjoint stretches of rows, in order (dynamic programming).

    Args:
        score: non-negative, of ``(start, stop, column)``: rows ``start`` to ``stop`` for that column;
            stretches that score 0 are never taken.
        widths: the longest stretch of each column; ``None``: one row each.

    Returns:
        The largest sum and its stretches ``(start, stop, column)``. Of equal sums, the one that takes
        a stretch as soon as it can.
    """
    widths = widths or [1] * columns
    best = [[0.0] * (columns + 1) for _ in range(rows + 1)]
    taken: dict[tuple[int, int], tuple[int, int]] = {}
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            options = [(best[i][j + 1], i, j + 1), (best[i + 1][j], i + 1, j)]
            for stop in range(i + 1, min(i + widths[j], rows) + 1):
                if (value := score(i, stop, j)) > 0:
                    options.insert(0, (value + best[stop][j + 1], stop, j + 1))
            chosen = max(options, key=lambda option: option[0])
            best[i][j], taken[i, j] = chosen[0], chosen[1:]
    return best[0][0], _walk(taken, rows, columns)


def _walk(taken: dict[tuple[int, int], tuple[int, int]], rows: int, columns: int) -> list[Segment]:
    i = j = 0
    found = []
    while i < rows and j < columns:
        stop, after = taken[i, j]
        if stop > i and after > j:
            found.append((i, stop, j))
        i, j = stop, after
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
    scores = np.array([[_likeness(s, call, rules) for call in calls] for s in plan.sub_tasks])
    if len(calls) == len(steps):
        return align(scores)
    return _align_steps(scores, [len(step) for step in steps])


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
    for segment in segments(rows, len(sizes), total, [rows] * len(sizes))[1]:
        for i, j in within(*segment):
            aligned[i] = j
    return aligned
