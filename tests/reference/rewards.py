"""Rewards once more, as plain exhaustive search: slow, short, and written without cahl_core's mathematics.

Only the vocabulary (`ToolCall`, `Plan`) is shared. Values are compared by walking both of them.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

from cahl_core.records import Plan, ToolCall

Calls = Sequence[ToolCall]
Steps = Sequence[Calls]


def same(a: Any, b: Any) -> bool:
    """Equality of JSON values under the rules that always hold."""
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        exact = type(a) is type(b) or max(abs(a), abs(b)) <= 2**53
        return exact and a == b
    if isinstance(a, str) and isinstance(b, str):
        return a.strip() == b.strip()
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict) and isinstance(b, dict):
        return set(a) == set(b) and all(same(a[k], b[k]) for k in a)
    return a is None and b is None


def argument_scores(call: ToolCall, gold: ToolCall) -> tuple[float, float]:
    """(argument-name Jaccard, equal values over the union of names), of calls of one tool."""
    if call.name != gold.name:
        return 0.0, 0.0
    names = list(call.arguments)
    names += [n for n in gold.arguments if n not in call.arguments]
    if not names:
        return 1.0, 1.0
    shared = [n for n in names if n in call.arguments and n in gold.arguments]
    equal = [n for n in shared if same(call.arguments[n], gold.arguments[n])]
    return len(shared) / len(names), len(equal) / len(names)


def semantic(made: Calls, gold: Calls) -> float:
    """R_sem, the best of all assignments."""
    if not made or not gold:
        return 1.0 if not made and not gold else 0.0
    names = [c.name for c in made]
    wanted = [c.name for c in gold]
    shared = sum(min(names.count(n), wanted.count(n)) for n in set(names))
    overlap = shared / (len(names) + len(wanted) - shared)
    small, large = sorted((made, gold), key=len)
    best = 0.0
    for chosen in itertools.permutations(large, len(small)):
        pairs = [argument_scores(a, b) for a, b in zip(small, chosen, strict=True)]
        best = max(best, sum(k + v for k, v in pairs))
    return (overlap + best / len(large)) / 3


def best_path(
    rows: int, columns: int, score: Callable[[int, int, int], float], widths: Sequence[int]
) -> tuple[float, list[tuple[int, int, int]]]:
    """All ways to give columns disjoint stretches of rows in order; the first of the best ones."""

    def from_(i: int, j: int) -> tuple[float, list[tuple[int, int, int]]]:
        if i == rows or j == columns:
            return 0.0, []
        found = []
        for stop in range(min(i + widths[j], rows), i, -1):
            value = score(i, stop, j)
            if value > 0:
                rest = from_(stop, j + 1)
                found.append((value + rest[0], [(i, stop, j), *rest[1]]))
        found += [from_(i, j + 1), from_(i + 1, j)]
        return max(found, key=lambda option: option[0])

    return from_(0, 0)


def execution(made: Sequence[Calls], steps: Steps, c_extra: float) -> float:
    """R_exe."""
    gold_calls = sum(len(step) for step in steps)
    extra = c_extra * max(0, len(made) - max(gold_calls, 1))
    if not gold_calls:
        return max(0.0, (0.0 if any(made) else 1.0) - extra)
    busy = [calls for calls in made if calls]

    def score(i: int, stop: int, j: int) -> float:
        return semantic([c for calls in busy[i:stop] for c in calls], steps[j])

    total = best_path(len(busy), len(steps), score, [len(s) for s in steps])[0]
    return max(0.0, total / len(steps) - extra)


def plan_alignment(plan: Plan, calls: Calls) -> list[int | None]:
    """The gold call of each sub-task, one call per step."""

    def score(i: int, _: int, j: int) -> float:
        planned = plan.sub_tasks[i]
        if planned.tool != calls[j].name:
            return 0.0
        return 1.0 + argument_scores(ToolCall(calls[j].name, planned.arguments), calls[j])[1]

    found = best_path(len(plan.sub_tasks), len(calls), score, [1] * len(calls))[1]
    aligned: list[int | None] = [None] * len(plan.sub_tasks)
    for i, _, j in found:
        aligned[i] = j
    return aligned


def scalars(value: Any) -> list[Any]:
    """Leaves of a JSON value; an empty container is one."""
    children = list(value.values()) if isinstance(value, dict) else value
    if not isinstance(value, dict | list) or not children:
        return [value]
    return [leaf for child in children for leaf in scalars(child)]


def parameters(plan: Plan, calls: Calls) -> float:
    """R_param, strict, one call per step; a planned value is crossed out once it has counted."""
    if not calls:
        return 0.0 if any(s.tool is not None for s in plan.sub_tasks) else 1.0
    aligned = plan_alignment(plan, calls)
    wanted = [list(scalars(c.arguments)) if c.arguments else [] for c in calls]
    total = sum(map(len, wanted))
    if not total:
        return sum(a is not None for a in aligned) / len(calls)
    found = 0
    for sub_task, column in zip(plan.sub_tasks, aligned, strict=True):
        if column is None or not sub_task.arguments:
            continue
        left = scalars(sub_task.arguments)
        for value in wanted[column]:
            hit = next((i for i, mine in enumerate(left) if refers(mine, value, aligned)), None)
            if hit is not None:
                found += 1
                del left[hit]
    return found / total


def refers(planned: Any, gold: Any, aligned: Sequence[int | None]) -> bool:
    """Whether a planned value is the gold one, sub-task numbers in references read as gold calls'."""
    form = re.compile(r"\$var(\d+)\.([a-z]+)\$")
    mine = form.fullmatch(planned) if isinstance(planned, str) else None
    if mine is None:
        return same(planned, gold)
    number = int(mine[1])
    target = aligned[number - 1] if 1 <= number <= len(aligned) else None
    return target is not None and gold == f"$var{target + 1}.{mine[2]}$"


def success(plan: Plan, made: Sequence[Calls], calls: Calls) -> float:
    """Task success of one execution, one call per step."""
    aligned = plan_alignment(plan, calls)
    for j in range(len(calls)):
        if j not in aligned:
            return 0.0
    for column, mine in zip(aligned, made, strict=True):
        due = [] if column is None else [calls[column]]
        if len(mine) != len(due) or any(
            c.name != g.name or not same(c.arguments, g.arguments)
            for c, g in zip(mine, due, strict=True)
        ):
            return 0.0
    return 1.0


def every_pairing(executions: Sequence[Sequence[Calls]]) -> list[list[Calls]]:
    """All G_l^K ways to take one sample of each sub-task, of ``[G_l][sub-task]``."""
    columns = list(zip(*executions, strict=True))
    return [list(chosen) for chosen in itertools.product(*columns)]
