"""What one attempt cost and how well its parts kept to each other; definitions in `call_metrics`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from cahl_core.call_metrics import call_counts, call_key, plan_is_valid
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, ToolCall, ToolSpec
from cahl_core.serving.results import AgentResult


def efficiency(
    results: AgentResult | Sequence[AgentResult],
    tools: Sequence[ToolSpec] | Sequence[Sequence[ToolSpec]],
    gold: Sequence[ToolCall] | None = None,
) -> dict[str, Any]:
    """The fields of `core.ItemScore` that are the same for every benchmark.

    Args:
        results: of an item's only turn, or of its turns in order.
        tools: what was offered, or what each turn was offered.
        gold: of a solved item, the calls it needed: what goes beyond them is redundant.
    """
    turns = [results] if isinstance(results, AgentResult) else list(results)
    offered: list[Any] = [tools] if isinstance(results, AgentResult) else list(tools)
    counts = [
        call_counts([s.execution for s in turn.steps], known)
        for turn, known in zip(turns, offered, strict=True)
    ]
    attempted = sum(a for _, a in counts)
    return {
        "attempted": attempted,
        "unparsed": sum(isinstance(s.execution, ParseFailure) for t in turns for s in t.steps),
        "invalid": attempted - sum(v for v, _ in counts),
        "redundant": redundant([c for turn in turns for c in turn.calls], gold),
        "planned": _planned(turns, offered),
        "adherence": adherence(turns),
        "prompt_tokens": sum(t.prompt_tokens for t in turns),
        "completion_tokens": sum(t.completion_tokens for t in turns),
    }


def redundant(calls: Sequence[ToolCall], gold: Sequence[ToolCall] | None = None) -> int:
    """Calls that repeat an earlier one; where ``gold`` is given, calls beyond it as well."""
    made = Counter(map(call_key, calls))
    if gold is not None:
        return sum((made - Counter(map(call_key, gold))).values())
    return sum(count - 1 for count in made.values())


def adherence(turns: Sequence[AgentResult]) -> float | None:
    """Share of the sub-tasks with a tool that were carried out by exactly one call of that tool.

    In the flat forms with a plan the calls stand in one text: the n-th call is that of the n-th
    sub-task. ``None`` where no plan asks for a tool.
    """
    kept: list[bool] = []
    for turn in turns:
        if not isinstance(turn.plan, Plan) or turn.form == "low_only":
            continue
        if turn.form == "hierarchical":
            made = [_calls(turn, n) for n in range(len(turn.plan.sub_tasks))]
        else:
            wanted = [s for s in turn.plan.sub_tasks if s.tool is not None]
            written = iter(turn.calls)
            made = [
                (tuple(c for c in [next(written, None)] if c)) if s in wanted else ()
                for s in turn.plan.sub_tasks
            ]
        kept += [
            [c.name for c in calls] == [sub_task.tool]
            for sub_task, calls in zip(turn.plan.sub_tasks, made, strict=True)
            if sub_task.tool is not None
        ]
    return sum(kept) / len(kept) if kept else None


def _calls(turn: AgentResult, number: int) -> tuple[ToolCall, ...]:
    if number >= len(turn.steps):
        return ()
    execution = turn.steps[number].execution
    return execution.calls if isinstance(execution, Execution) else ()


def _planned(turns: Sequence[AgentResult], offered: Sequence[Sequence[ToolSpec]]) -> bool | None:
    """Whether every plan is valid; ``None`` in the form without plans."""
    plans = [
        plan_is_valid(turn.plan, known)
        for turn, known in zip(turns, offered, strict=True)
        if turn.form != "low_only" and turn.too_long is None
    ]
    return all(plans) if plans else None
