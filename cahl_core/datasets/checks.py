"""Which records may be trained on. A record that breaks a rule is set aside with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cahl_core.config import PrepareSettings
from cahl_core.datasets.references import MISSING, has_reference, leaves, walk, whole_reference
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
    "too_many_steps": "more gold steps than prepare.max_steps",
    "unknown_tool": "a gold call names a tool that is not offered",
    "unknown_argument": "a gold call has an argument its tool does not have",
    "missing_argument": "a gold call lacks a required argument",
    "wrong_type": "a gold argument does not satisfy its tool's schema",
    "bad_reference": "a reference is part of a text, points forward, or to nothing",
    "ungrounded": "a gold value is a choice among results that a plan cannot make",
    "long_result": "a referenced result does not fit prepare.max_result_chars",
    "duplicate": "the request repeats an earlier one",
    "benchmark_overlap": "the request equals a BFCL question or shares ten words in a row",
    "prompt_too_long": "planner or executor prompt beyond prepare.max_prompt_tokens",
    "target_too_long": "prompt plus gold text beyond model.max_context",
}
# rules that only say that a record is beyond this profile's budget
LIMITS = ("too_many_steps", "long_result", "prompt_too_long", "target_too_long")
EXCERPT = 160

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
    messages = record.get("messages") if isinstance(record, Mapping) else None
    shown = messages if messages else record
    excerpt = shown if isinstance(shown, str) else dump_json(shown)
    return Quarantined(source, record_id, rule, detail, excerpt[:EXCERPT])


def parse(record: Any, where: str) -> ToolTask | Problem:
    """The record as a task, or why it is none."""
    if isinstance(record, Mapping):
        if "malformed" in record:
            return str(record.get("rule", "malformed")), str(record["malformed"])
        for tool in record.get("tools") or []:
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(function, Mapping) and not isinstance(function.get("parameters"), dict):
                return "tool_without_schema", f"tool '{function.get('name')}' has no parameters"
    try:
        return ToolTask.from_json(record, where)
    except DataError as error:
        return "malformed", error.what


def check(task: ToolTask, settings: PrepareSettings) -> Problem | None:
    """The first rule the task breaks by itself, or ``None``."""
    if not any(m.role == "user" and m.content.strip() for m in task.messages):
        return "empty_request", "messages hold no user text"
    names = [tool.name for tool in task.tools]
    if len(set(names)) != len(names):
        return "duplicate_tool", ", ".join(sorted({n for n in names if names.count(n) > 1}))
    if len(task.steps) > settings.max_steps:
        return "too_many_steps", f"{len(task.steps)} steps, allowed {settings.max_steps}"
    for tool in task.tools:
        if (reason := schema_problem(dump_json(tool.parameters))) is not None:
            return "tool_without_schema", f"tool '{tool.name}': {reason}"
    for rule in (_calls, _references, _grounding, _results):
        if (problem := next(iter(rule(task, settings)), None)) is not None:
            return problem
    return None


@lru_cache(maxsize=4096)
def schema_problem(schema: str) -> str | None:
    """Why a parameter schema (JSON text) is not a JSON Schema of an object, or ``None``."""
    import json

    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    value = json.loads(schema)
    if value.get("type", "object") != "object":
        return f"the type of the parameters is {value['type']!r}, must be 'object'"
    if not isinstance(value.get("properties", {}), dict):
        return "'properties' is not an object"
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        return error.message
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
    for name, value in call.arguments.items():
        if values is None and any(has_reference(leaf) for _, leaf in leaves(value)):
            continue  # nothing was recorded, so its type cannot be known
        value = values[name] if values is not None else value
        reason = value_problem(dump_json(tool.properties.get(name, {})), dump_json(value))
        if reason is not None:
            yield "wrong_type", f"{where}: {name}: {reason}"


@lru_cache(maxsize=65536)
def value_problem(schema: str, value: str) -> str | None:
    """Why a value does not satisfy its schema (both JSON texts), or ``None``."""
    import json

    from jsonschema import Draft202012Validator

    error = next(Draft202012Validator(json.loads(schema)).iter_errors(json.loads(value)), None)
    return None if error is None else str(error.message)[:EXCERPT]


def _references(task: ToolTask, _: PrepareSettings) -> Iterator[Problem]:
    for number, call in enumerate(task.calls, 1):
        for name, value in leaves(call.arguments):
            found = whole_reference(value)
            if found is None and has_reference(value):
                yield "bad_reference", f"call {number}: {name}: {value!r} mixes text and reference"
            elif found is not None and not 0 < found[0] < number:
                yield "bad_reference", f"call {number}: {name}: {value} is not an earlier call"
            elif found is not None:
                result = task.results[found[0] - 1]
                if result is not None and walk(result, found[1]) is MISSING:
                    yield "bad_reference", f"call {number}: {name}: {value} is not in the result"


def _grounding(task: ToolTask, _: PrepareSettings) -> Iterator[Problem]:
    names = task.meta.get("ungrounded")
    if names:
        yield "ungrounded", ", ".join(names)


def _results(task: ToolTask, settings: PrepareSettings) -> Iterator[Problem]:
    for number, result in enumerate(task.results, 1):
        size = 0 if result is None else len(dump_json(result))
        if size > settings.max_result_chars:
            yield "long_result", f"result {number}: {size} > {settings.max_result_chars} characters"
