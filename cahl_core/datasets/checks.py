"""Which records may be trained on. A record that breaks a rule is set aside with the reason."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cahl_core.config import PrepareSettings
from cahl_core.datasets.references import (
    MISSING,
    dependencies,
    has_reference,
    leaves,
    walk,
    whole_reference,
)
from cahl_core.datasets.validity import (
    control_characters,
    find_cycle,
    meta_problem,
    plain,
    schema_problem,
    value_problem,
    without_control_characters,
)
from cahl_core.errors import DataError
from cahl_core.files import dump_json
from cahl_core.records import ToolCall, ToolSpec, ToolTask

RULES = {
    "unreadable_file": "a file is damaged or ends early; its readable records are still used",
    "invalid_utf8": "the record is not UTF-8",
    "not_json": "the record is not JSON (NaN, Infinity and repeated keys are not JSON either)",
    "record_too_large": "the record is longer than prepare.max_text_chars",
    "malformed": "the record does not have the form of a task",
    "control_characters": "a text holds NUL, other control or bidirectional control characters",
    "tool_without_schema": "an offered tool has no usable parameter schema",
    "empty_request": "no user message with text",
    "duplicate_tool": "two offered tools have one name",
    "too_many_tools": "more tools than prepare.max_tools",
    "recursive_schema": "a tool's schema refers to itself, so it has no finite form",
    "remote_schema": "a tool's schema refers to another document, which is never fetched",
    "too_many_steps": "more gold steps than prepare.max_steps",
    "unknown_tool": "a gold call names a tool that is not offered",
    "unknown_argument": "a gold call has an argument its tool does not have",
    "missing_argument": "a gold call lacks a required argument",
    "wrong_type": "a gold argument does not satisfy its tool's schema",
    "bad_reference": "a reference is part of a text, or points to nothing",
    "cyclic_reference": "calls refer to one another in a circle",
    "step_order": "a call refers to one of its own or a later step: the order is not topological",
    "bad_dialogue": "the places of the gold calls do not fit the messages",
    "ungrounded": "a gold value is a choice among results that a plan cannot make",
    "long_result": "a referenced result does not fit prepare.max_result_chars",
    "duplicate_id": "the id is taken by an earlier record",
    "duplicate": "the request repeats an earlier one",
    "near_duplicate": "the request is almost an earlier one (prepare.near_duplicate)",
    "benchmark_overlap": "a user's text equals a test question or shares ten words in a row with it",
    "prompt_too_long": "planner or executor prompt beyond prepare.max_prompt_tokens",
    "target_too_long": "prompt plus gold text beyond model.max_context",
}
# rules that only say that a record is beyond this profile's budget
LIMITS = (
    "too_many_steps",
    "too_many_tools",
    "record_too_large",
    "long_result",
    "prompt_too_long",
    "target_too_long",
)
EXCERPT, DETAIL = 160, 400
NOT_VALUES = ("required", "additionalProperties")  # rules of their own: missing, unknown argument

Problem = tuple[str, str]  # rule, detail


@dataclass(frozen=True, slots=True)
class Quarantined:
    """One record that was set aside."""

    source: str
    id: str
    rule: str
    detail: str
    excerpt: str

    def to_json(self) -> dict[str, str]:
        return {name: getattr(self, name) for name in self.__slots__}


def quarantine(record: Any, source: str, record_id: str, problem: Problem) -> Quarantined:
    """Wraps a record with the rule it broke; only known rules may be used."""
    rule, detail = problem
    assert rule in RULES
    given = record if isinstance(record, Mapping) else {}
    shown = given.get("messages") or given.get("excerpt") or record
    excerpt = shown if isinstance(shown, str) else json.dumps(shown, ensure_ascii=False)
    return Quarantined(
        source, plain(record_id), rule, plain(detail)[:DETAIL], plain(excerpt)[:EXCERPT]
    )


def parse(record: Any, where: str) -> ToolTask | Problem:
    """The record as a task, or why it is none."""
    if isinstance(record, Mapping):
        if "malformed" in record:
            return str(record.get("rule", "malformed")), str(record["malformed"])
        tools = record.get("tools")
        for tool in tools if isinstance(tools, list) else []:
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(function, Mapping) and not isinstance(function.get("parameters"), dict):
                return "tool_without_schema", f"tool '{function.get('name')}' has no parameters"
    try:
        task = ToolTask.from_json(record, where)
        problem = meta_problem(task.meta, len(task.calls))
        return ("malformed", problem) if problem is not None else _clean_results(task)
    except DataError as error:
        return "malformed", error.what
    except RecursionError:
        return "malformed", "nested too deeply"


def _clean_results(task: ToolTask) -> ToolTask:
    """The task with control characters taken out of its recorded results, counted in the meta.

    What a live service returns holds them at times (bidirectional marks in hotel names); the record is
    sound all the same. In what people and models write they are a fault.
    """
    results = task.meta.get("results")
    if not isinstance(results, list) or control_characters(results) is None:
        return task
    cleaned, count = without_control_characters(results)
    return replace(task, meta={**task.meta, "results": cleaned, "results_cleaned": count})


def check(task: ToolTask, settings: PrepareSettings) -> Problem | None:
    """The first rule the task breaks by itself, or ``None``."""
    if not any(m.role == "user" and m.content.strip() for m in task.messages):
        return "empty_request", "messages hold no user text"
    written = {k: v for k, v in task.to_json().items() if k != "meta"}
    noted = {k: v for k, v in task.meta.items() if k != "results"}  # those were cleaned (`parse`)
    if (found := control_characters({**written, "meta": noted})) is not None:
        return "control_characters", found
    if len(task.tools) > settings.max_tools:
        return "too_many_tools", f"{len(task.tools)} tools, allowed {settings.max_tools}"
    names = [tool.name for tool in task.tools]
    if len(set(names)) != len(names):
        return "duplicate_tool", ", ".join(sorted({n for n in names if names.count(n) > 1}))
    if len(task.steps) > settings.max_steps:
        return "too_many_steps", f"{len(task.steps)} steps, allowed {settings.max_steps}"
    for tool in task.tools:
        if (problem := schema_problem(dump_json(tool.parameters))) is not None:
            return problem[0], f"tool '{tool.name}': {problem[1]}"
    for rule in (_calls, _references, _grounding, _results):
        if (problem := next(iter(rule(task, settings)), None)) is not None:
            return problem
    return None


def _calls(task: ToolTask, _: PrepareSettings) -> Iterator[Problem]:
    tools = {tool.name: tool for tool in task.tools}
    resolved = list(task.meta.get("resolved") or [])
    resolved += [None] * (len(task.calls) - len(resolved))
    for number, (call, values) in enumerate(zip(task.calls, resolved, strict=False), 1):
        tool = tools.get(call.name)
        if tool is None:
            yield "unknown_tool", f"call {number}: {call.name}"
            return
        yield from _arguments(tool, call, values, f"call {number} ({call.name})")


def _arguments(
    tool: ToolSpec, call: ToolCall, values: Mapping[str, Any] | None, where: str
) -> Iterator[Problem]:
    unknown = sorted(set(call.arguments) - set(tool.properties))
    if unknown:
        yield "unknown_argument", f"{where}: {', '.join(unknown)}"
    missing = [name for name in tool.required if name not in call.arguments]
    if missing:
        yield "missing_argument", f"{where}: {', '.join(missing)}"
    known = call.arguments if values is None else values
    # where nothing was recorded, what a reference stands for cannot be known
    concrete = {
        name: value
        for name, value in known.items()
        if values is not None or not any(has_reference(leaf) for _, leaf in leaves(value))
    }
    schema = {k: v for k, v in tool.parameters.items() if k not in NOT_VALUES}
    reason = value_problem(dump_json(schema), dump_json(concrete))
    if reason is not None:
        yield "wrong_type", f"{where}: {reason}"


def _references(task: ToolTask, _: PrepareSettings) -> Iterator[Problem]:
    step_of = [k for k, step in enumerate(task.steps) for _ in step]
    used = dependencies(task.calls)
    if cycle := find_cycle([(r.call, r.source) for r in used]):
        yield "cyclic_reference", "calls " + " -> ".join(map(str, cycle))
    for number, call in enumerate(task.calls, 1):
        for name, value in leaves(call.arguments):
            found = whole_reference(value)
            where = f"call {number}: {name}: {value!r}"
            if found is None and has_reference(value):
                yield "bad_reference", f"{where} mixes text and reference"
            elif found is not None and not 0 < found[0] <= len(step_of):
                yield "bad_reference", f"{where} is none of the {len(step_of)} calls"
            elif found is not None and step_of[found[0] - 1] >= step_of[number - 1]:
                yield "step_order", f"{where} is not of an earlier step"
            elif found is not None:
                result = task.results[found[0] - 1]
                if result is not None and walk(result, found[1]) is MISSING:
                    yield "bad_reference", f"{where} is not in the result"


def _grounding(task: ToolTask, _: PrepareSettings) -> Iterator[Problem]:
    names = task.meta.get("ungrounded")
    if names:
        yield "ungrounded", ", ".join(names)


def _results(task: ToolTask, settings: PrepareSettings) -> Iterator[Problem]:
    for number, result in enumerate(task.results, 1):
        size = 0 if result is None else len(dump_json(result))
        if size > settings.max_result_chars:
            yield "long_result", f"result {number}: {size} > {settings.max_result_chars} characters"
