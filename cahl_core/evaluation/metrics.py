"""Shared measures of what an agent wrote: validity, redundancy, intervals. Pure functions.

The paper publishes no definitions of its efficiency figures; these are ours:

- valid plan: parses, and every tool it names is in the request's tool list;
- invalid call: does not parse, names an unknown tool, or has arguments outside the tool's JSON
  Schema (`rewards.fits_schema`: unknown, missing, wrong type); rate over all calls attempted;
- redundant call: repeats a call of the same task, or in a solved task goes beyond the gold calls;
- solved task: every gold call was made with exactly its values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, ToolCall, ToolSpec
from cahl_core.rewards import canonical, fits_schema
from cahl_core.serving.results import AgentResult

Z95 = 1.959963984540054


def wilson(successes: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a proportion; ``(0, 1)`` without observations.

    >>> [round(x, 3) for x in wilson(14, 64)]
    [0.135, 0.334]
    """
    if n == 0:
        return 0.0, 1.0
    share, z2 = successes / n, Z95**2
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return (middle - half if successes else 0.0), (middle + half if successes < n else 1.0)


def plan_is_valid(plan: Plan | ParseFailure | None, tools: Sequence[ToolSpec]) -> bool:
    """Whether the plan parsed and names only tools of the list."""
    if not isinstance(plan, Plan):
        return False
    known = {tool.name for tool in tools}
    return all(s.tool is None or s.tool in known for s in plan.sub_tasks)


def call_counts(result: AgentResult, tools: Sequence[ToolSpec]) -> tuple[int, int]:
    """(valid calls, calls attempted); an executor text outside the grammar is one attempt."""
    valid = attempted = 0
    for step in result.steps:
        if isinstance(step.execution, Execution):
            attempted += len(step.execution.calls)
            valid += sum(fits_schema(call, tools) for call in step.execution.calls)
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
