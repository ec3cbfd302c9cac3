"""From a conversation with its calls and results in place to a task.

Adapters of chat formats bring messages into one form (role, content, ``tool_calls`` as
``{"name", "arguments"}``; a tool's message is a result) and leave the rest to `task_of`:

- no calls: no call was right; a last word of the assistant becomes ``meta.answer``.
- all calls after the last request: messages end where the first call begins, each of the
  assistant's turns with calls is a step, and constants that only an earlier result can have given
  become references (`nestful.ground`).
- requests between the calls: dialogue form, the whole conversation and ``meta.answer_at``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.datasets.adapters.build import Record
from cahl_core.datasets.adapters.nestful import ground
from cahl_core.datasets.adapters.text import json_or_text
from cahl_core.datasets.references import Reference, leaves
from cahl_core.records import ToolCall

Messages = list[Record]
MIN_LENGTH = 3  # shorter values ("2", "no") occur everywhere


def task_of(
    record_id: str,
    source: str,
    messages: Messages,
    tools: list[Record],
    meta: Record,
    dialogue: bool = False,
) -> Record:
    """A task from a whole conversation; ``dialogue`` keeps the dialogue form in any case."""
    at = [index for index, message in enumerate(messages) if message.get("tool_calls")]
    record: Record = {"id": record_id, "source": source, "messages": messages, "tools": tools}
    if not at:
        return record | _without_calls(messages, tools, meta)
    record["answers"] = [messages[index]["tool_calls"] for index in at]
    results, unmatched = recorded_results(messages)
    facts: Record = {"results": results} if any(r is not None for r in results) else {}
    if unmatched:
        facts["unmatched_results"] = unmatched
    if dialogue or any(m["role"] == "user" for m in messages[at[0] :]):
        heard = [_said(messages[:index]) for index in at for _ in messages[index]["tool_calls"]]
        calls = [call for step in record["answers"] for call in step]
        deps = string_matches(calls, results, heard)
        facts |= {"form": "dialogue", "answer_at": at, "deps": [d.to_json() for d in deps]}
        return record | {"meta": facts | meta}
    record["messages"] = messages[: at[0]]
    facts |= _grounded(record, results) | _words(messages, at)
    return record | {"meta": facts | meta}


def _without_calls(messages: Messages, tools: list[Record], meta: Record) -> Record:
    facts: Record = {}
    if messages and messages[-1]["role"] == "assistant":
        facts["answer"] = messages[-1]["content"]
        messages = messages[:-1]
        if not tools:
            facts["derivation"] = "qa"
    return {"messages": messages, "answers": [], "meta": facts | meta}


def _words(messages: Messages, at: Sequence[int]) -> Record:
    """What the assistant said beside its calls, and after them."""
    facts: Record = {}
    if messages[-1]["role"] == "assistant" and not messages[-1].get("tool_calls"):
        facts["answer"] = messages[-1]["content"]
    said = [messages[index]["content"] for index in at]
    if any(said):
        facts["step_texts"] = said
    thought = [messages[index].get("reasoning") for index in at]
    if any(thought):
        facts["step_reasoning"] = thought
    return facts


def _said(messages: Messages) -> str:
    return "\n".join(m["content"] for m in messages if m["role"] in ("user", "system"))


def recorded_results(messages: Messages) -> tuple[list[Any], int]:
    """The result of each call in call order (None: not recorded), and how many fit no call.

    A result belongs to the call with its id, else to the next open call of its name, else to the
    next open call. One list for several calls made together holds one result for each.
    """
    results: list[Any] = []
    waiting: list[tuple[int, str, Any]] = []  # number, name, id of calls without a result
    unmatched = 0
    for index, message in enumerate(messages):
        if calls := message.get("tool_calls"):
            ids = message.get("tool_call_ids") or []
            ids = [*ids, *[None] * (len(calls) - len(ids))]
            waiting = [(len(results) + n, c["name"], ids[n]) for n, c in enumerate(calls)]
            results += [None] * len(calls)
        elif message["role"] == "tool":
            value = json_or_text(message["content"])
            alone = index + 1 == len(messages) or messages[index + 1]["role"] != "tool"
            together = isinstance(value, list) and len(value) == len(waiting) > 1 and alone
            for part in value if together else [value]:
                number = _take(waiting, message)
                if number is None:
                    unmatched += 1
                else:
                    results[number] = part
    return results, unmatched


def _take(waiting: list[tuple[int, str, Any]], message: Mapping[str, Any]) -> int | None:
    given, name = message.get("tool_call_id"), message.get("name")
    by_id = [w for w in waiting if given is not None and w[2] == given]
    by_name = [w for w in waiting if name is not None and w[1] == name]
    chosen = next(iter(by_id or by_name or waiting), None)
    if chosen is None:
        return None
    waiting.remove(chosen)
    return chosen[0]


def string_matches(
    calls: Sequence[Mapping[str, Any]], results: Sequence[Any], heard: Sequence[str]
) -> list[Reference]:
    """Top-level arguments that nobody said and that the latest possible earlier result holds.

    A value that the earlier call itself was given does not count: its result only repeats it.
    """
    found = []
    for number, call in enumerate(calls, 1):
        text = heard[number - 1].lower()
        for name, value in call["arguments"].items():
            if isinstance(value, bool) or not isinstance(value, str | int | float):
                continue
            if len(str(value)) < MIN_LENGTH or str(value).lower() in text:
                continue
            if str(value) in ("True", "False", "dontcare"):
                continue
            if (match := _latest(str(value), number, calls, results)) is not None:
                found.append(Reference(number, name, *match))
    return found


def _latest(
    wanted: str, number: int, calls: Sequence[Mapping[str, Any]], results: Sequence[Any]
) -> tuple[int, str] | None:
    for source in range(number - 1, 0, -1):
        if any(str(value) == wanted for _, value in leaves(calls[source - 1]["arguments"])):
            continue
        for path, value in leaves(results[source - 1]):
            if path and not isinstance(value, bool) and str(value) == wanted:
                return source, path
    return None


def _grounded(record: Record, results: Sequence[Any]) -> Record:
    """Puts references into ``record["answers"]``; calls of one step never refer to each other."""
    tools = {tool["function"]["name"]: tool for tool in record["tools"]}
    text = _said(record["messages"])
    grounded: list[Reference] = []
    ungrounded: list[str] = []
    steps, first = [], 0
    for step in record["answers"]:
        done = []
        for number, call in enumerate(step, first + 1):
            earlier = [*results[:first], *[None] * (number - first)]
            calls = [ToolCall("", {})] * (number - 1) + [ToolCall(call["name"], call["arguments"])]
            changed, put, left = ground(calls, earlier, text, tools)
            done.append(changed[-1].to_json())
            grounded += put
            ungrounded += left
        steps.append(done)
        first += len(step)
    record["answers"] = steps
    facts: Record = {"grounded": [r.to_json() for r in grounded]} if grounded else {}
    return facts | ({"ungrounded": ungrounded} if ungrounded else {})
