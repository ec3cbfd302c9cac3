"""Plan targets by rule: one sub-task per gold call, in order, with the gold arguments.

The text of a sub-task depends on its tool, and on a telling argument value where the tool is used
more than once: it is what a reader of the plan needs and what a small model can predict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from cahl_core.datasets.names import title
from cahl_core.datasets.references import has_reference
from cahl_core.datasets.wording import LEADING
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec, ToolTask

TASK_WORDS = 8
VALUE_WORDS = 4


def plan_from_gold(task: ToolTask) -> Plan:
    """The plan whose sub-tasks are the gold calls; empty if no call is right."""
    tools = {tool.name: tool for tool in task.tools}
    names = [call.name for call in task.calls]
    return Plan(
        tuple(
            SubTask(_text(call, tools, names.count(call.name) > 1), call.name, call.arguments)
            for call in task.calls
        )
    )


def _text(call: ToolCall, tools: Mapping[str, ToolSpec], repeated: bool) -> str:
    text = purpose(tools[call.name]) if call.name in tools else title(call.name)
    value = _telling_value(call) if repeated else None
    return f"{text} for {value}" if value else text


def purpose(tool: ToolSpec) -> str:
    """What the tool is for in at most eight words: its description's first clause, or its name.

    >>> purpose(ToolSpec("get_x", "Find airports by their location, address, state.", {}))
    'Find airports by their location'
    """
    clause = LEADING.sub(
        "", re.split(r"[.,;:(\n]", tool.description.strip(), maxsplit=1)[0]
    ).strip()
    if not 1 < len(clause.split()) <= TASK_WORDS or re.search(r"[`/_]", clause):
        return title(tool.name)
    return clause[0].upper() + clause[1:]


def _telling_value(call: ToolCall) -> str | None:
    """The first argument value that is a short text of the request, or a number."""
    for value in call.arguments.values():
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            continue
        text = str(value)
        if not has_reference(text) and 0 < len(text.split()) <= VALUE_WORDS:
            return text
    return None
