"""Adapters: chat formats. OpenAI ``messages`` + ``tools``, ShareGPT (APIGen-MT), ToolACE, Glaive."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cahl_core.datasets.adapters.build import Record, extras, own_id, tools_of
from cahl_core.datasets.adapters.conversation import Messages, task_of
from cahl_core.datasets.adapters.text import (
    call_of,
    calls_of,
    json_values,
    literal,
    looks_like_calls,
    parse_calls,
)
from cahl_core.files import dump_json

ROLES = {
    "system": "system", "developer": "system", "user": "user", "human": "user",
    "assistant": "assistant", "gpt": "assistant", "model": "assistant", "bot": "assistant",
    "chatgpt": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "function": "tool", "observation": "tool", "function_response": "tool",
    "tool_response": "tool", "ipython": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")
MESSAGE_KEYS = ("role", "content", "tool_calls", "function_call", "name", "reasoning",
                "reasoning_content", "tool_call_ids")  # fmt: skip
# the day that "tomorrow" in a request counts from; the rest of a system text is about the format
DATES = re.compile(r"(?:Today is|(?:The )?[Cc]urrent (?:time|date) is)\b[^\n.]*\.?")
TURNS = re.compile(r"(?:^|\n|(?<=\s)|(?<=>))(USER|ASSISTANT|FUNCTION RESPONSE):")
GLAIVE_CALL = re.compile(r'"name":\s*"([^"]+)"\s*,\s*"arguments":\s*(.*)\}\s*$', re.DOTALL)


def openai_messages(value: Any, source: str, record_id: str) -> Record:
    """``{"messages", "tools"}`` in the OpenAI chat form; the deprecated function fields too."""
    given = _decoded(value["messages"])
    messages = [_message(m) for m in given]
    tools, meta = tools_of(_tool_field(value))
    meta |= extras(value, ("messages", "tools", "functions", "id"))
    return task_of(own_id(value, source, record_id), source, messages, tools, meta)


def _decoded(value: Any) -> Any:
    return literal(value) if isinstance(value, str) else value


def _tool_field(value: Mapping[str, Any]) -> Any:
    found = value.get("tools")
    return value.get("functions") if found is None else found


def _message(given: Mapping[str, Any]) -> Record:
    """One message of the OpenAI form; keys without a field stay beside the others."""
    message: Record = {"role": _role(given["role"]), "content": _text(given.get("content"))}
    if given["role"] == "developer":
        message["original_role"] = "developer"
    if (name := given.get("name")) is not None:
        message["name"] = name
    if reasoning := given.get("reasoning") or given.get("reasoning_content"):
        message["reasoning"] = reasoning
    calls = [*(given.get("tool_calls") or []), *filter(None, [given.get("function_call")])]
    if calls:
        message["tool_calls"] = [call_of(call) for call in calls]
        if any(call.get("id") is not None for call in calls):
            message["tool_call_ids"] = [call.get("id") for call in calls]
    left = {k: v for k, v in given.items() if k not in MESSAGE_KEYS and v is not None}
    return message | left


def _role(name: Any) -> str:
    if name not in ROLES:
        raise ValueError(f"role {name!r} is not one of {', '.join(ROLES)}")
    return ROLES[name]


def _text(content: Any) -> str:
    """A message's text; of a list of parts, the texts in their order."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        kinds = {part.get("type") for part in content} - {"text"}
        if kinds:
            raise ValueError(f"a content part is no text: {', '.join(sorted(map(str, kinds)))}")
        return "\n".join(part["text"] for part in content)
    return dump_json(content)


def sharegpt(value: Any, source: str, record_id: str) -> Record:
    """``{"conversations": [{"from", "value"}], "tools": JSON text, "system"}`` (APIGen-MT too)."""
    messages: Messages = []
    if system := value.get("system"):
        messages.append({"role": "system", "content": system})
    for turn in _decoded(value["conversations"]):
        kind = turn["from"] if "from" in turn else turn["role"]
        text = _text(turn["value"] if "value" in turn else turn["content"])
        if kind in CALL_ROLES:
            messages.append({"role": "assistant", "content": "", "tool_calls": calls_of(text)})
        else:
            messages.append({"role": _role(kind), "content": text})
    tools, meta = tools_of(_tool_field(value))
    used = ("conversations", "tools", "functions", "system", "id")
    return task_of(
        own_id(value, source, record_id), source, messages, tools, meta | extras(value, used)
    )


def toolace(value: Any, source: str, record_id: str) -> Record:
    """A system text that holds the tools as JSON, and calls as ``[Name(arg="v"), …]``."""
    tools, meta, system = _tools_in(value.get("system") or "")
    messages: Messages = []
    if date := DATES.search(system):
        messages.append({"role": "system", "content": date.group().strip()})
    for turn in _decoded(value["conversations"]):
        role, text = _role(turn["from"]), _text(turn["value"])
        message: Record = {"role": role, "content": text}
        if role == "assistant" and looks_like_calls(text):
            message = {"role": role, "content": "", "tool_calls": parse_calls(text)}
        messages.append(message)
    meta |= {"system_text": system} if system else {}
    meta |= extras(value, ("conversations", "system", "id"))
    return task_of(own_id(value, source, record_id), source, messages, tools, meta)


def _tools_in(text: str) -> tuple[list[Record], Record, str]:
    """The tools that a system text holds as JSON, meta for what they say beyond, the rest of it."""
    entries, rest, end = [], [], 0
    for value, start, stop in json_values(text):
        found = value if isinstance(value, list) else [value]
        if found and all(isinstance(v, dict) and ("name" in v or "function" in v) for v in found):
            entries += found
            rest.append(text[end:start])
            end = stop
    tools, meta = tools_of(entries)
    return tools, meta, "".join([*rest, text[end:]]).strip()


def glaive(value: Any, source: str, record_id: str) -> Record:
    """``{"system", "chat"}``: tools in the system text, turns in one text with ``<functioncall>``."""
    tools, meta, system = _tools_in(value.get("system") or "")
    parts = TURNS.split(value["chat"])
    messages = [
        _glaive_turn(kind, text) for kind, text in zip(parts[1::2], parts[2::2], strict=True)
    ]
    if parts[0].strip():
        meta["chat_start"] = parts[0].strip()
    meta |= {"system_text": system} if system else {}
    meta |= extras(value, ("system", "chat", "id"))
    return task_of(own_id(value, source, record_id), source, messages, tools, meta)


def _glaive_turn(kind: str, text: str) -> Record:
    text = text.replace("<|endoftext|>", "").strip()
    if kind == "USER":
        return {"role": "user", "content": text}
    if kind == "FUNCTION RESPONSE":
        return {"role": "tool", "content": text}
    said, *calls = text.split("<functioncall>")
    message: Record = {"role": "assistant", "content": said.strip()}
    if calls:
        message["tool_calls"] = [_glaive_call(call.strip()) for call in calls]
    return message


def _glaive_call(text: str) -> Record:
    """``{"name": "f", "arguments": '{"a": 1}'}``: the quotes around the arguments are not JSON's."""
    text = text.removesuffix("</functioncall>").strip()
    match = GLAIVE_CALL.search(text)
    if match is None:
        return call_of(literal(text))
    arguments = match[2].strip()
    if len(arguments) > 1 and arguments[0] == arguments[-1] == "'":
        inner = arguments[1:-1]
        try:
            return call_of({"name": match[1], "arguments": inner})
        except ValueError:  # the quotes inside are escaped: a Python text
            return call_of({"name": match[1], "arguments": literal(arguments)})
    return call_of({"name": match[1], "arguments": literal(arguments)})
