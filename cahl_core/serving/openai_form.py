"""Requests and answers in the form of OpenAI's chat completions."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cahl_core.errors import DataError
from cahl_core.files import digest
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.protocol.prompts import calls_line
from cahl_core.records import Message, Plan, ToolCall, ToolSpec
from cahl_core.serving.results import AgentResult, Request

WAITS = re.compile(r"\$var(\d{1,6})(?!\d)")


def parse_request(record: Any, where: str = "request") -> Request:
    """``{"messages": […], "tools": […]}`` as a `Request`.

    Content may be text, ``null`` or a list of text parts; calls of earlier assistant turns are shown
    to the planner as text.

    Raises:
        DataError: names the message or tool and what is wrong with it.
    """
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: is {type(record).__name__}, must be an object", FORM)
    messages = record.get("messages")
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not len(messages):
        raise DataError(f"{where}: 'messages' must be a list with at least one message", FORM)
    parsed = tuple(_message(m, f"{where}: messages[{i}]") for i, m in enumerate(messages))
    if parsed[-1].role == "assistant":
        raise DataError(
            f"{where}: the last message is the assistant's own", "end with user or tool"
        )
    tools = parse_tools(record.get("tools") or [], where)
    return Request(parsed, tools, seed=digest([m.to_json() for m in parsed]))


FORM = (
    'expected {"messages": [{"role": "user", "content": "…"}], "tools": [{"type": "function", …}]}'
)


def parse_tools(tools: Any, where: str) -> tuple[ToolSpec, ...]:
    """A list of OpenAI function tools.

    Raises:
        DataError: not a list, a tool without name or schema, or a name given twice.
    """
    if not isinstance(tools, Sequence) or isinstance(tools, str):
        raise DataError(f"{where}: 'tools' is {type(tools).__name__}, must be a list of tools")
    parsed = []
    for index, tool in enumerate(tools):
        place = f"{where}: tools[{index}]"
        if not isinstance(tool, Mapping):
            raise DataError(f"{place}: is {type(tool).__name__}, must be an object")
        parsed.append(ToolSpec.from_json(tool, place))
        _check_schema(parsed[-1], place)
    names = [tool.name for tool in parsed]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(f"{where}: tool '{twice[0]}' is given twice", "give each tool its own name")
    return tuple(parsed)


def _check_schema(tool: ToolSpec, place: str) -> None:
    properties = tool.parameters.get("properties", {})
    required = tool.parameters.get("required", [])
    if not isinstance(properties, Mapping) or not all(
        isinstance(schema, Mapping) for schema in properties.values()
    ):
        raise DataError(f"{place} '{tool.name}': 'properties' must map names to schemas")
    if not isinstance(required, Sequence) or isinstance(required, str):
        raise DataError(f"{place} '{tool.name}': 'required' must be a list of names")


def _message(record: Any, where: str) -> Message:
    if not isinstance(record, Mapping):
        raise DataError(f"{where}: is {type(record).__name__}, must be an object")
    content = record.get("content")
    if isinstance(content, Sequence) and not isinstance(content, str):
        content = "".join(_part(part, where) for part in content)
    calls = record.get("tool_calls")
    made = [] if calls is None or not len(calls) else _calls(calls, where)
    if not all(isinstance(call["arguments"], dict) for call in made):
        # what a model wrote wrongly is shown as it stands: it is part of the history
        content = "\n".join(filter(None, [content, calls_line(made)]))
        made = []
    return Message.from_json({**record, "content": content, "tool_calls": made}, where)


def _part(part: Any, where: str) -> str:
    if isinstance(part, Mapping) and part.get("type") == "text":
        return str(part.get("text") or "")
    raise DataError(f"{where}: only text parts are understood in content", "leave other parts out")


def _calls(calls: Any, where: str) -> list[dict[str, Any]]:
    try:
        return [
            {"name": c["function"]["name"], "arguments": _arguments(c["function"]["arguments"])}
            for c in calls
        ]
    except (TypeError, KeyError) as error:
        raise DataError(
            f"{where}: tool_calls must be [{{'function': {{'name', 'arguments'}}}}]"
        ) from error


def _arguments(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except json.JSONDecodeError:
        return value


def answer(result: AgentResult, conversation: str) -> dict[str, Any]:
    """One answer: ``plan``, ``tool_calls``, ``content``, ``finish_reason``, ``outcome``, ``usage``.

    A call whose arguments refer to the result of an earlier one carries ``waits_for``: the ids of
    those calls. ``problem`` says why there is no plan or no call, where a text was malformed.

    Args:
        conversation: makes the ids of the calls distinct between conversations.
    """
    prefix = f"call_{digest(conversation)[:8]}"
    calls = [
        _call(call, f"{prefix}_{n}", sources)
        for n, (call, sources) in enumerate(_with_sources(result, prefix), 1)
    ]
    return {
        "plan": result.plan.to_json() if isinstance(result.plan, Plan) else None,
        "tool_calls": calls,
        "content": result.response,
        "finish_reason": "tool_calls" if calls else "stop",
        "outcome": result.outcome,
        "problem": _problem(result),
        "usage": {
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "total_tokens": result.prompt_tokens + result.completion_tokens,
        },
    }


def _with_sources(
    result: AgentResult, prefix: str
) -> Iterator[tuple[ToolCall, Mapping[int, list[str]]]]:
    """Every call with the ids of the earlier calls that ``$varN`` stands for, by N.

    N counts sub-tasks, of which one may have made no call or several; in the flat forms, calls.
    """
    made = 0
    sources: dict[int, list[str]] = {}
    for number, step in enumerate(result.steps, 1):
        calls = step.execution.calls if isinstance(step.execution, Execution) else ()
        known = dict(sources)
        for place, call in enumerate(calls, 1):
            yield call, (known if result.form == "hierarchical" else sources)
            made += 1
            target = number if result.form == "hierarchical" else place
            sources.setdefault(target, []).append(f"{prefix}_{made}")


def _call(call: ToolCall, identity: str, sources: Mapping[int, list[str]]) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    form: dict[str, Any] = {
        "id": identity,
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
    named = sorted({int(n) for n in WAITS.findall(arguments)} & set(sources))
    if named:
        form["waits_for"] = [call_id for n in named for call_id in sources[n]]
    return form


def _problem(result: AgentResult) -> str | None:
    if isinstance(result.plan, ParseFailure):
        return f"plan: {result.plan.reason} (at character {result.plan.position})"
    flat = result.form != "hierarchical"
    before = len(result.plan_text or "") if flat else 0  # of the same text
    for number, step in enumerate(result.steps, 1):
        if isinstance(step.execution, ParseFailure):
            failure = step.execution
            place = "calls" if flat else f"sub-task {number}"
            return f"{place}: {failure.reason} (at character {before + failure.position})"
    return None
