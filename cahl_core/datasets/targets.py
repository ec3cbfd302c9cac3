"""What supervised training writes: plans, and executor texts per sub-task or for a whole request.

The executor of a sub-task sees the recorded results of the calls before it. A sub-task with a tool is
carried out by the gold call, references resolved where results were recorded; one without a tool by
words: the record's answer, or a short decline.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

from cahl_core.errors import DataError
from cahl_core.records import Plan, SubTask, ToolCall, ToolTask

# none of these names a tool: which tools are offered differs from task to task
DECLINES = (
    "No tool fits.", "None of the available tools can do this.",
    "I cannot do this with the tools I have.", "There is no tool for this request.",
    "This needs a tool that is not offered.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ExecutorTarget:
    """One supervised example of the executor: either ``calls`` or ``response`` is given.

    ``feedback`` holds the earlier calls as sub-tasks with their recorded results (``None``: unknown).
    """

    sub_task: SubTask
    feedback: tuple[tuple[SubTask, Any], ...]
    calls: tuple[ToolCall, ...] | None
    response: str | None


def planner_target(task: ToolTask) -> Plan:
    """The plan that is trained on.

    Raises:
        DataError: the task has none.
    """
    if task.plan is None:
        raise DataError(f"task '{task.id}' has no plan", "`cahl prepare` writes one for every task")
    return task.plan


def executor_targets(task: ToolTask) -> list[ExecutorTarget]:
    """One target per sub-task of the plan, in order; sub-tasks with a tool take the gold calls in order."""
    gold = resolved_gold(task)
    targets = []
    reached = 0
    for sub_task in planner_target(task).sub_tasks:
        feedback = tuple(gold_feedback(task, reached))
        if sub_task.tool is not None and reached < len(gold):
            targets.append(ExecutorTarget(sub_task, feedback, (gold[reached],), None))
            reached += 1
        else:
            targets.append(ExecutorTarget(sub_task, feedback, None, _response(task, sub_task)))
    return targets


def flat_target(task: ToolTask) -> tuple[tuple[ToolCall, ...], str | None]:
    """The gold calls in order, or words where none is due: the flat forms' one text.

    References stay as the record has them (they count the calls, as the text does): nothing has been
    called when the text is written.
    """
    if task.calls:
        return task.calls, None
    sub_tasks = planner_target(task).sub_tasks
    return (), _response(task, sub_tasks[0] if sub_tasks else SubTask("", None))


def _response(task: ToolTask, sub_task: SubTask) -> str:
    answer = task.meta.get("answer")
    if sub_task.tool is None and isinstance(answer, str) and answer.strip():
        return answer.strip()
    return random.Random(f"{task.id} decline").choice(DECLINES)


def resolved_gold(task: ToolTask) -> list[ToolCall]:
    """The gold calls with their references resolved where results were recorded."""
    resolved = task.meta.get("resolved") or []
    return [
        ToolCall(call.name, resolved[i]) if i < len(resolved) and resolved[i] is not None else call
        for i, call in enumerate(task.calls)
    ]


def gold_feedback(task: ToolTask, count: int) -> list[tuple[SubTask, Any]]:
    """The first ``count`` gold calls as sub-tasks, with their recorded results."""
    return [
        (SubTask("", call.name, call.arguments), result)
        for call, result in zip(task.calls[:count], task.results[:count], strict=True)
    ]
