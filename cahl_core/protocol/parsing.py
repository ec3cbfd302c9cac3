"""Grammars of planner and executor texts, and their parsers. Parsing never raises on model text.

EBNF (`ws` is white space, `json` strict JSON as in `json_text`, `words` any text without the tag
that closes it):

    plan      = ws, "<plan>", list, "</plan>", ws ;
    list      = json list of sub-task ;
    sub-task  = json object of exactly "task": string, "tool": string | null, "arguments": object ;
    execution = ws, [ think ], ( call, { call } | response ) ;
    think     = "<think>", words, "</think>", ws ;
    call      = "<tool_call>", json object of exactly "name": string, "arguments": object,
                "</tool_call>", ws ;
    response  = "<response>", words, "</response>", ws ;
    single    = plan, execution ;

In the form ``hierarchical`` the planner writes `plan` and the executor an `execution` of one call or
a response; in ``low_only`` the executor writes `execution`, in ``single_level`` `single`.

The first closing tag closes, also inside a JSON string: generation ends there, before anybody could
know better. Writers put ``\\u003c`` for the ``<`` of a tag inside a string (`texts`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cahl_core.protocol.json_text import ParseFailure, elements, load, skip_space, unwritable
from cahl_core.records import Plan, SubTask, ToolCall

__all__ = ["Execution", "ParseFailure", "Single", "parse_execution", "parse_plan", "parse_single"]

PLAN_OPEN, PLAN_CLOSE = "<plan>", "</plan>"
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"
RESPONSE_OPEN, RESPONSE_CLOSE = "<response>", "</response>"
THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
RESULT_OPEN, RESULT_CLOSE = "<tool_response>", "</tool_response>"  # in prompts only
TAGS = (
    PLAN_OPEN, PLAN_CLOSE, CALL_OPEN, CALL_CLOSE, RESPONSE_OPEN, RESPONSE_CLOSE,
    THINK_OPEN, THINK_CLOSE, RESULT_OPEN, RESULT_CLOSE,
)  # fmt: skip

SUB_TASK_FORM = "{task: text, tool: text or null, arguments: object}"
CALL_FORM = "{name: text, arguments: object}"
HALF = "half of a surrogate pair"


@dataclass(frozen=True, slots=True)
class Execution:
    """What the executor wrote: calls, or a response in words; the thinking is kept apart."""

    calls: tuple[ToolCall, ...]
    response: str | None = None
    think: str | None = None


@dataclass(frozen=True, slots=True)
class Single:
    """What one text of the form ``single_level`` holds."""

    plan: Plan
    execution: Execution


def parse_plan(text: str) -> Plan | ParseFailure:
    """Reads one plan that fills ``text``.

    >>> parse_plan('<plan>[{"task": "add", "tool": "f", "arguments": {"a": 1}}]</plan>').sub_tasks[0].tool
    'f'
    >>> parse_plan("Sure!")
    ParseFailure(reason='no <plan>', position=0)
    """
    half = unwritable(text)
    if half is not None:
        return ParseFailure(HALF, half)
    plan, after = _plan(text)
    if isinstance(plan, Plan) and after < len(text):
        return ParseFailure("text after </plan>", after)
    return plan


def parse_execution(text: str) -> Execution | ParseFailure:
    """Reads one executor text.

    >>> parse_execution('<tool_call>{"name": "f", "arguments": {}}</tool_call>').calls
    (ToolCall(name='f', arguments={}),)
    >>> parse_execution("<response>No tool fits.</response>").response
    'No tool fits.'
    """
    half = unwritable(text)
    if half is not None:
        return ParseFailure(HALF, half)
    return _execution(text, 0)


def parse_single(text: str) -> Single | ParseFailure:
    """Reads a plan and the execution that follows it; positions are those in ``text``.

    >>> parse_single("<plan>[]</plan><response>No.</response>").execution.response
    'No.'
    """
    half = unwritable(text)
    if half is not None:
        return ParseFailure(HALF, half)
    plan, after = _plan(text)
    if isinstance(plan, ParseFailure):
        return plan
    execution = _execution(text, after)
    return execution if isinstance(execution, ParseFailure) else Single(plan, execution)


def split_single(text: str) -> tuple[str, str]:
    """``text`` up to its first ``</plan>`` and what follows: `parse_plan` and `parse_execution`
    read the parts as `parse_single` reads the whole, each for itself.
    """
    head, tag, tail = text.partition(PLAN_CLOSE)
    return head + tag, tail


def _plan(text: str) -> tuple[Plan | ParseFailure, int]:
    """The plan that ``text`` begins with, and the first position after it that is no space."""
    start = skip_space(text, 0)
    if not text.startswith(PLAN_OPEN, start):
        return ParseFailure("no <plan>", start), start
    inner = start + len(PLAN_OPEN)
    close = text.find(PLAN_CLOSE, inner)
    if close < 0:
        return ParseFailure("no </plan>", len(text)), len(text)
    return _sub_tasks(text, inner, close), skip_space(text, close + len(PLAN_CLOSE))


def _sub_tasks(text: str, start: int, end: int) -> Plan | ParseFailure:
    value = load(text, start, end)
    if isinstance(value, ParseFailure):
        return value
    if not isinstance(value, list):
        return ParseFailure("the plan is not a JSON list", skip_space(text, start))
    found = []
    for index, item in enumerate(value):
        wrong = _wrong(item, {"task": str, "tool": (str, type(None)), "arguments": dict})
        if wrong is not None:
            reason = f"sub-task {index + 1} is not {SUB_TASK_FORM}: {wrong}"
            return ParseFailure(reason, list(elements(text, start, end))[index][0])
        found.append(SubTask(item["task"], item["tool"], item["arguments"]))
    return Plan(tuple(found))


def _execution(text: str, position: int) -> Execution | ParseFailure:
    """The execution that fills ``text`` from ``position`` on."""
    position = skip_space(text, position)
    think = None
    if text.startswith(THINK_OPEN, position):
        end = text.find(THINK_CLOSE, position)
        if end < 0:
            return ParseFailure("no </think>", len(text))
        think = text[position + len(THINK_OPEN) : end]
        position = skip_space(text, end + len(THINK_CLOSE))
    if text.startswith(RESPONSE_OPEN, position):
        return _response(text, position + len(RESPONSE_OPEN), think)
    return _calls(text, position, think)


def _response(text: str, inner: int, think: str | None) -> Execution | ParseFailure:
    end = text.find(RESPONSE_CLOSE, inner)
    if end < 0:
        return ParseFailure("no </response>", len(text))
    after = skip_space(text, end + len(RESPONSE_CLOSE))
    if after < len(text):
        return ParseFailure("text after </response>", after)
    return Execution((), text[inner:end].strip(), think)


def _calls(text: str, position: int, think: str | None) -> Execution | ParseFailure:
    calls: list[ToolCall] = []
    while text.startswith(CALL_OPEN, position):
        inner = position + len(CALL_OPEN)
        end = text.find(CALL_CLOSE, inner)
        if end < 0:
            return ParseFailure("no </tool_call>", len(text))
        value = load(text, inner, end)
        if isinstance(value, ParseFailure):
            return value
        wrong = _wrong(value, {"name": str, "arguments": dict})
        if wrong is not None:
            reason = f"call {len(calls) + 1} is not {CALL_FORM}: {wrong}"
            return ParseFailure(reason, skip_space(text, inner))
        calls.append(ToolCall(value["name"], value["arguments"]))
        position = skip_space(text, end + len(CALL_CLOSE))
    if not calls:
        return ParseFailure("neither <tool_call> nor <response>", position)
    if position < len(text):
        return ParseFailure("text after </tool_call>", position)
    return Execution(tuple(calls), None, think)


def _wrong(item: Any, form: Mapping[str, type | tuple[type, ...]]) -> str | None:
    """What keeps ``item`` from being an object of exactly these keys, or ``None``."""
    if not isinstance(item, dict):
        return f"it is {_JSON_NAMES[type(item)]}"
    for key in form:
        if key not in item:
            return f"no '{key}'"
    for key, value in item.items():
        if key not in form:
            return f"'{key[:40]}' is none of its keys"
        if not isinstance(value, form[key]):
            return f"'{key}' is {_JSON_NAMES[type(value)]}"
    return None


_JSON_NAMES: dict[type, str] = {
    dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "null",
    int: "a number", float: "a number",
}  # fmt: skip
