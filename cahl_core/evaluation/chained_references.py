"""References between calls as a graph: forms that can be compared, other numbers, order.

`cahl_core.datasets.references` reads and resolves single references; here they are edges between calls,
``(number of the call, leaf that holds it, number it names, path)``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cahl_core.datasets.references import REFERENCE, STEP, leaves, number_of
from cahl_core.evaluation.plan_graph import CallGraph
from cahl_core.records import Plan, ToolCall

NOWHERE = 0  # no call has this number
Edge = tuple[int, str, int, str]


def path_form(path: str) -> str:
    """A path without the ``[0]`` that a key makes superfluous: a list met by a key gives its first item.

    >>> path_form("data[0][0].hotels[1].id"), path_form("[0]")
    ('data.hotels[1].id', '[0]')
    """
    kept: list[str] = []
    for match in STEP.finditer(path):
        if match[1] is None:
            while kept and kept[-1] == "[0]":
                kept.pop()
        kept.append(f"[{match[1].lstrip('0') or '0'}]" if match[1] is not None else f".{match[2]}")
    return "".join(kept).removeprefix(".")


def references(value: Any) -> Iterator[tuple[str, int, str]]:
    """Every reference in a value: the leaf that holds it, the number it names, its path's form."""
    for leaf, text in leaves(value):
        if isinstance(text, str):
            for match in REFERENCE.finditer(text):
                yield leaf, number_of(match[1]), path_form(match[2] or "")


def renumbered(value: Any, numbers: Mapping[int, int] | None) -> Any:
    """A value whose references name other calls, paths in their form; unknown ones name call 0.

    Args:
        numbers: old number → new number; ``None`` keeps the numbers.

    >>> renumbered({"a": ["$var2.x[0].y$", 1]}, {2: 1})
    {'a': ['$var1.x.y$', 1]}
    """
    if isinstance(value, Mapping):
        return {k: renumbered(v, numbers) for k, v in value.items()}
    if isinstance(value, list):
        return [renumbered(v, numbers) for v in value]
    if not isinstance(value, str):
        return value

    def other(match: re.Match[str]) -> str:
        number = number_of(match[1])
        new = number if numbers is None else numbers.get(number, NOWHERE)
        return f"$var{new}.{path_form(match[2] or '')}$"

    return REFERENCE.sub(other, value)


def reference_edges(calls: Sequence[ToolCall]) -> Counter[Edge]:
    """Every reference of the calls, numbered from 1."""
    return Counter(
        (number, leaf, source, path)
        for number, call in enumerate(calls, 1)
        for leaf, source, path in references(call.arguments)
    )


def graph_of(calls: Sequence[ToolCall]) -> CallGraph:
    """Calls as nodes, references as edges labelled with argument and path."""
    edges: dict[tuple[int, int], Counter[Any]] = {}
    for (number, leaf, source, path), count in reference_edges(calls).items():
        if 0 < source <= len(calls):
            edges.setdefault((source - 1, number - 1), Counter())[leaf, path] += count
    return CallGraph(tuple(c.name for c in calls), edges)


def plan_graph(plan: Plan) -> CallGraph:
    """`graph_of` the sub-tasks with a tool; a reference to any other sub-task has no edge."""
    calls = [ToolCall(s.tool or "", s.arguments if s.tool else {}) for s in plan.sub_tasks]
    nodes = [i for i, s in enumerate(plan.sub_tasks) if s.tool is not None]
    place, whole = {i: node for node, i in enumerate(nodes)}, graph_of(calls)
    return CallGraph(
        tuple(whole.labels[i] for i in nodes),
        {(place[a], place[b]): c for (a, b), c in whole.edges.items() if a in place and b in place},
    )


def depends(calls: Sequence[ToolCall]) -> set[tuple[int, int]]:
    """All (earlier, later) indices of calls where the later one needs the earlier, also indirectly."""
    found: set[tuple[int, int]] = set()
    direct = {pair for pair in graph_of(calls).edges if pair[0] < pair[1]}
    for later in range(len(calls)):
        for source in (a for a, b in direct if b == later):
            found |= {(source, later)} | {(a, later) for a, b in found if b == source}
    return found
