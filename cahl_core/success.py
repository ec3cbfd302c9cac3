"""Task success: whether an execution did exactly what was due, and to which samples it is credited.

For a fixed plan, success is a product over its sub-tasks, so its mean over all G_l^K ways to combine the
sub-tasks' samples is the product of their means (docs/method.md, ``recombine``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cahl_core.canonical import EXACT
from cahl_core.matching import Gold, align_plan, as_steps, grouped_like, same_calls
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.records import Plan, ToolCall
from cahl_core.train_config import ValueSettings

Executions = Sequence[Sequence[Sequence[ToolCall]]]  # [G_l][sub-task] calls made


def task_success(
    plan: Plan | ParseFailure,
    calls: Sequence[Sequence[ToolCall]],
    gold: Gold,
    resolved: Gold | None = None,
    rules: ValueSettings = EXACT,
) -> float:
    """1 where one execution of the plan did exactly what was due, else 0.

    The plan parses, every gold call is aligned with a sub-task (`align_plan`: the plan decides this, not
    the execution), each of these sub-tasks made exactly its gold call, and no other sub-task made any.
    Where no call is due: none was made. For a fixed plan this is a product over its sub-tasks.

    >>> from cahl_core.records import SubTask
    >>> f, plan = ToolCall("f", {"a": 1}), Plan((SubTask("do", "f"), SubTask("say", None)))
    >>> task_success(plan, [[f], []], [f]), task_success(plan, [[f], [f]], [f])
    (1.0, 0.0)
    """
    if isinstance(plan, ParseFailure):
        return 0.0
    covered, own = sub_task_success(plan, [calls], gold, resolved, rules)
    return covered * math.prod(row[0] for row in own)


def sub_task_success(
    plan: Plan,
    executions: Executions,
    gold: Gold,
    resolved: Gold | None = None,
    rules: ValueSettings = EXACT,
) -> tuple[float, list[list[float]]]:
    """Whether the plan covers the gold, and ``[sub-task][G_l]`` whether each sample did its part."""
    steps = as_steps(gold)
    targets = [
        c for s in grouped_like(steps, resolved if resolved is not None else steps) for c in s
    ]
    aligned = align_plan(plan, steps, rules)
    due = [() if column is None else (targets[column],) for column in aligned]
    covered = sum(map(len, due)) == len(targets)
    rows = range(len(plan.sub_tasks))
    return float(covered), [
        [float(same_calls(made[k], due[k], rules)) for made in executions] for k in rows
    ]


def executor_success(
    plan: Plan,
    executions: Executions,
    gold: Gold,
    recombine: bool,
    resolved: Gold | None = None,
    rules: ValueSettings = EXACT,
) -> list[list[float]]:
    """Task success credited to each sample, ``[sub-task][G_l]``.

    That of its own row; with ``recombine`` its expectation over the other sub-tasks' samples: its own
    success times the product of the others' means.

    Two samples each; the first sub-task's second one and the second one's first one went wrong:

    >>> from cahl_core.records import SubTask
    >>> f, g = ToolCall("f", {}), ToolCall("g", {})
    >>> plan, rows = Plan((SubTask("", "f"), SubTask("", "g"))), [[[f], []], [[], [g]]]
    >>> executor_success(plan, rows, [f, g], recombine=False)
    [[0.0, 0.0], [0.0, 0.0]]
    >>> executor_success(plan, rows, [f, g], recombine=True)
    [[0.5, 0.0], [0.0, 0.5]]
    """
    covered, own = sub_task_success(plan, executions, gold, resolved, rules)
    if not recombine:
        rows = [covered * math.prod(column) for column in zip(*own, strict=True)]
        return [list(rows) for _ in own]
    means = [sum(row) / len(row) if row else 0.0 for row in own]
    others = [covered * math.prod(means[:k] + means[k + 1 :]) for k in range(len(own))]
    return [[value * rest for value in row] for row, rest in zip(own, others, strict=True)]


def mean_success(
    covered: float, own: Sequence[Sequence[float]], count: int, recombine: bool
) -> float:
    """Mean success over the G_l rows, or over all G_l^K pairings of the sub-tasks' samples."""
    if recombine:
        return covered * math.prod(sum(row) / count for row in own)
    return covered * sum(math.prod(row[g] for row in own) for g in range(count)) / count
