"""Grammars of planner and executor texts. Parsing never raises on model text.

Plan:      ``<plan>`` JSON list of ``{"task": str, "tool": str | null, "arguments": {…}}`` ``</plan>``
Execution: optional ``<think>…</think>``, then one or more
           ``<tool_call>{"name": str, "arguments": {…}}</tool_call>`` or one ``<response>…</response>``

White space between elements is free; any other text outside the tags is a failure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from cahl_core.records import Plan, SubTask, ToolCall

PLAN_OPEN, PLAN_CLOSE = "<plan>", "</plan>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<response>", "</response>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
TAGS = (
    PLAN_OPEN, PLAN_CLOSE, CALL_OPEN, CALL_CLOSE,
    RESPONSE_OPEN, RESPONSE_CLOSE, THINK_OPEN, THINK_CLOSE,
)  # fmt: skip

MAX_JSON_DEPTH = 64


@dataclass(frozen=True, slots=True)
class ParseFailure:
    """Why a text is outside the grammar, and the character position where that shows."""

    reason: str
    position: int


@dataclass(frozen=True, slots=True)
class Execution:
    """What the executor wrote: calls, or a response in words; the thinking is kept apart."""

    calls: tuple[ToolCall, ...]
    response: str | None = None
    think: str | None = None


def parse_plan(text: str) -> Plan | ParseFailure:
    """Reads one plan that fills ``text``.

    >>> parse_plan('<plan>[{"task": "add", "tool": "f", "arguments": {"a": 1}}]</plan>').sub_tasks[0].tool
    'f'
    >>> parse_plan("Sure!")
    ParseFailure(reason='no <plan>', position=0)
    """
    start = _skip_space(text, 0)
    if not text.startswith(PLAN_OPEN, start):
        return ParseFailure("no <plan>", start)
    close = text.find(PLAN_CLOSE, start)
    if close < 0:
        return ParseFailure("no </plan>", len(text))
    if text[close + len(PLAN_CLOSE) :].strip():
        return ParseFailure("text after </plan>", close + len(PLAN_CLOSE))
    inner = start + len(PLAN_OPEN)
    value = _load(text[inner:close], inner)
    if isinstance(value, ParseFailure):
        return value
    if not isinstance(value, list):
        return ParseFailure("the plan is not a JSON list", inner)
    sub_tasks = []
    for index, item in enumerate(value):
        sub_task = _sub_task(item)
        if sub_task is None:
            return ParseFailure(
                f"sub-task {index + 1} is not {{task: text, tool: text or null, arguments: object}}",
                inner,
            )
        sub_tasks.append(sub_task)
    return Plan(tuple(sub_tasks))


def parse_execution(text: str) -> Execution | ParseFailure:
    """Reads one executor text.

    >>> parse_execution('<tool_call>{"name": "f", "arguments": {}}</tool_call>').calls
    (ToolCall(name='f', arguments={}),)
    >>> parse_execution("<response>No tool fits.</response>").response
    'No tool fits.'
    """
    position = _skip_space(text, 0)
    think = None
    if text.startswith(THINK_OPEN, position):
        end = text.find(THINK_CLOSE, position)
        if end < 0:
            return ParseFailure("no </think>", len(text))
        think = text[position + len(THINK_OPEN) : end]
        position = _skip_space(text, end + len(THINK_CLOSE))
    if text.startswith(RESPONSE_OPEN, position):
        end = text.find(RESPONSE_CLOSE, position)
        if end < 0:
            return ParseFailure("no </response>", len(text))
        after = _skip_space(text, end + len(RESPONSE_CLOSE))
        if after < len(text):
            return ParseFailure("text after </response>", after)
        return Execution((), text[position + len(RESPONSE_OPEN) : end].strip(), think)
    calls: list[ToolCall] = []
    while text.startswith(CALL_OPEN, position):
        inner = position + len(CALL_OPEN)
        end = text.find(CALL_CLOSE, inner)
        if end < 0:
            return ParseFailure("no </tool_call>", len(text))
        value = _load(text[inner:end], inner)
        if isinstance(value, ParseFailure):
            return value
        if not (
            isinstance(value, dict)
            and set(value) == {"name", "arguments"}
            and isinstance(value["name"], str)
            and isinstance(value["arguments"], dict)
        ):
            return ParseFailure("a call is not {name: text, arguments: object}", inner)
        calls.append(ToolCall(value["name"], value["arguments"]))
        position = _skip_space(text, end + len(CALL_CLOSE))
    if not calls:
        return ParseFailure("neither <tool_call> nor <response>", position)
    if position < len(text):
        return ParseFailure("text after </tool_call>", position)
    return Execution(tuple(calls), None, think)


def _sub_task(item: Any) -> SubTask | None:
    if not isinstance(item, dict) or set(item) != {"task", "tool", "arguments"}:
        return None
    task, tool, arguments = item["task"], item["tool"], item["arguments"]
    if not isinstance(task, str) or not isinstance(arguments, dict):
        return None
    if tool is not None and not isinstance(tool, str):
        return None
    return SubTask(task, tool, arguments)


def _skip_space(text: str, position: int) -> int:
    match = re.compile(r"\s*").match(text, position)
    return match.end() if match else position


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is out of range")
    return number


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) != len(keys):
        raise ValueError("a key is given twice")
    return dict(pairs)


def _load(text: str, offset: int) -> Any:
    """Strict JSON (no NaN, no repeated keys, bounded nesting), or a `ParseFailure`."""
    if _depth(text) > MAX_JSON_DEPTH:
        return ParseFailure(f"nested deeper than {MAX_JSON_DEPTH}", offset)
    try:
        value = json.loads(
            text,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair cannot be written
        return value
    except json.JSONDecodeError as error:
        return ParseFailure(f"not JSON: {error.msg}", offset + error.pos)
    except ValueError as error:  # NaN, 1e999, repeated key, an integer of thousands of digits
        return ParseFailure(f"not JSON: {error}", offset)


def _depth(text: str) -> int:
    """An upper bound of the nesting (brackets inside strings count too)."""
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    return deepest
