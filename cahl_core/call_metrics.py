"""Validity and redundancy of what planner and executor wrote: pure functions.

The paper publishes no definitions of its efficiency figures; these are ours:

- valid plan: parses, and every tool it names is in the request's tool list;
- invalid call: does not parse, names an unknown tool, or has arguments outside the tool's JSON
  Schema (`call_schema.fits_schema`: unknown, missing, wrong type); rate over all calls attempted;
- redundant call: repeats a call of the same task, or in a solved task goes beyond the gold calls;
- solved task: every gold call was made with exactly its values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from cahl_core.call_schema import fits_schema
from cahl_core.canonical import canonical
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, ToolCall, ToolSpec


def plan_is_valid(plan: Plan | ParseFailure | None, tools: Sequence[ToolSpec]) -> bool:
    """Whether the plan parsed and names only tools of the list."""
    if not isinstance(plan, Plan):
        return False
    known = {tool.name for tool in tools}
    return all(s.tool is None or s.tool in known for s in plan.sub_tasks)


def call_counts(
    executions: Iterable[Execution | ParseFailure], tools: Sequence[ToolSpec]
) -> tuple[int, int]:
    """(valid calls, calls attempted); an executor text outside the grammar is one attempt."""
    valid = attempted = 0
    for execution in executions:
        if isinstance(execution, Execution):
            attempted += len(execution.calls)
            valid += sum(fits_schema(call, tools) for call in execution.calls)
        else:
            attempted += 1
    return valid, attempted


def call_key(call: ToolCall) -> str:
    """The same text for calls that are equal as JSON (5 = 5.0, key order ignored)."""
    return canonical(call.to_json())


def is_solved(calls: Sequence[ToolCall], gold: Sequence[ToolCall]) -> bool:
    """Every gold call was made with exactly its values; nothing where nothing was due."""
    if not gold:
        return not calls
    missing = Counter(map(call_key, gold)) - Counter(map(call_key, calls))
    return not missing


def redundant_calls(calls: Sequence[ToolCall], gold: Sequence[ToolCall]) -> int:
    """How many of ``calls`` were not needed, after the definition above."""
    made = Counter(map(call_key, calls))
    repeated = sum(count - 1 for count in made.values())
    if not is_solved(calls, gold):
        return repeated
    return sum((made - Counter(map(call_key, gold))).values())
