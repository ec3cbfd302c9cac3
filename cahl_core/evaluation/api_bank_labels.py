"""What is wrong with API-Bank's labels and prompts: counted from the items, to stand beside any score."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from cahl_core.call_schema import fits_schema
from cahl_core.protocol.prompts import spoken_text
from cahl_core.records import ToolCall, ToolSpec, ToolTask

YEAR = re.compile(r"\b(?:19|20)\d\d\b")
CUT = re.compile(r"', \w+=")  # the end of one argument and the start of the next
# name → by level, level 1 first
Counts = dict[str, list[int]]


def gold_of(task: ToolTask) -> ToolCall:
    """The one call that is due."""
    return task.calls[0]


def dialogue(task: ToolTask) -> str:
    """Every word of the conversation, calls and results included."""
    return "\n".join(map(spoken_text, task.messages))


def is_corrupt(task: ToolTask) -> bool:
    """Whether the label is debris of a failed parse: it lost an argument that its tool documents, and
    another one is empty or holds the lost one's beginning.
    """
    spec, gold = _spec(task), gold_of(task)
    if spec is None or set(spec.properties) <= set(gold.arguments):
        return False
    return any(v == "" or CUT.search(str(v)) for v in gold.arguments.values())


def year_is_nowhere(task: ToolTask) -> bool:
    """Whether a year of the label stands nowhere in the conversation."""
    said = dialogue(task)
    years = {y for v in gold_of(task).arguments.values() for y in YEAR.findall(str(v))}
    return any(year not in said for year in years)


def is_verbatim(task: ToolTask) -> bool:
    """Whether every value of the label occurs in the conversation as it is."""
    said = dialogue(task)
    return all(str(v) in said for v in gold_of(task).arguments.values())


def is_verbatim_but_for_case(task: ToolTask) -> bool:
    """`is_verbatim` without case."""
    said = dialogue(task).lower()
    return all(str(v).lower() in said for v in gold_of(task).arguments.values())


def tool_is_missing(task: ToolTask) -> bool:
    """Whether the label's tool is none of those offered."""
    return _spec(task) is None


def has_unknown_argument(task: ToolTask) -> bool:
    """Whether the label has an argument that its tool does not document."""
    spec = _spec(task)
    return spec is not None and not set(gold_of(task).arguments) <= set(spec.properties)


def typed_values(task: ToolTask) -> int:
    """How many of the label's values are texts where the tool documents another type."""
    spec = _spec(task)
    properties = spec.properties if spec else {}
    return sum(
        properties[name].get("type") != "string"
        for name in gold_of(task).arguments
        if name in properties
    )


def is_token_request(task: ToolTask) -> bool:
    """Whether the label is a GetUserToken(username, password)."""
    return gold_of(task).name == "GetUserToken"


def breaks_its_schema(task: ToolTask) -> bool:
    """Whether the label would count as an invalid call by the definition in `call_metrics`."""
    return not fits_schema(gold_of(task), task.tools)


MEASURES: dict[str, Callable[[ToolTask], int]] = {
    "corrupt_label": is_corrupt,
    "year_nowhere_in_prompt": year_is_nowhere,
    "values_verbatim_in_dialogue": is_verbatim,
    "values_verbatim_ignoring_case": is_verbatim_but_for_case,
    "gold_tool_not_offered": tool_is_missing,
    "undocumented_gold_argument": has_unknown_argument,
    "values_typed_otherwise_in_doc": typed_values,
    "gold_call_breaks_its_schema": breaks_its_schema,
    "get_user_token": is_token_request,
}


def counts(tasks: Sequence[ToolTask], levels: Sequence[int]) -> Counts:
    """Every measure by level, and how many of the items are another one's copy."""
    table = {
        name: [sum(int(measure(t)) for t in tasks if _level(t) == level) for level in levels]
        for name, measure in MEASURES.items()
    }
    table["copies_of_another_item"] = [
        _copies([t for t in tasks if _level(t) == level]) for level in levels
    ]
    return table


def _copies(tasks: Sequence[ToolTask]) -> int:
    shown = Counter(repr([_without_id(t)]) for t in tasks)
    return sum(n - 1 for n in shown.values())


def _without_id(task: ToolTask) -> dict[str, Any]:
    record = task.to_json()
    return {key: record[key] for key in ("messages", "tools", "answers")}


def _level(task: ToolTask) -> int:
    return int(task.meta["level"])


def _spec(task: ToolTask) -> ToolSpec | None:
    name = gold_of(task).name
    return next((t for t in task.tools if t.name == name), None)
