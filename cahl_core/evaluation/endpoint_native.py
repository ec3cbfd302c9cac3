"""A server's own tool calling: OpenAI's ``tools`` go out, ``tool_calls`` come back.

What comes back is written down in the grammar of the form ``low_only``, so that records, measures and
checkers are those of every other model. Calls that the grammar cannot hold (arguments that are no JSON
object) are written such that they do not parse: an execution failure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.datasets.schemas import normalise_parameters
from cahl_core.errors import PromptTooLongError
from cahl_core.evaluation.endpoint import Endpoint, Reply, writable
from cahl_core.protocol.json_text import load
from cahl_core.protocol.markers import neutralise
from cahl_core.protocol.parsing import (
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    RESULT_CLOSE,
    RESULT_OPEN,
    TAGS,
    THINK_CLOSE,
    THINK_OPEN,
)
from cahl_core.protocol.texts import execution_text
from cahl_core.records import Message, ToolCall, ToolSpec
from cahl_core.roles import Role
from cahl_core.serving.writers import Ask, Written

NAME_LENGTH = 64  # longest name of a function that OpenAI takes


class NativeWriter:
    """Writes the one text of a request from a server's tool calls."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint

    def write(self, asks: Sequence[Ask], role: Role, max_tokens: int) -> list[Written]:
        """One text per ask, one after the other."""
        return [self._written(ask, max_tokens) for ask in asks]

    def _written(self, ask: Ask, max_tokens: int) -> Written:
        names = wire_names(ask.request.tools)
        messages = wire_messages(ask.request.messages, names)
        tools = [_tool(tool, names) for tool in ask.request.tools]
        try:
            reply = self.endpoint.chat(messages, max_tokens, ask.seed, tools=tools)
        except PromptTooLongError as error:
            return Written("", too_long=error.what)
        text = reply_text(reply, {wire: name for name, wire in names.items()})
        return Written(text, reply.prompt_tokens, reply.completion_tokens)


def wire_names(tools: Sequence[ToolSpec]) -> dict[str, str]:
    """Each tool's name as it is sent: letters, digits, ``_`` and ``-`` only, at most 64, all distinct."""
    names: dict[str, str] = {}
    for tool in tools:
        wire = base = re.sub(r"[^A-Za-z0-9_-]", "_", tool.name)[:NAME_LENGTH] or "_"
        number = 2
        while wire in names.values():
            suffix = f"_{number}"
            wire, number = base[: NAME_LENGTH - len(suffix)] + suffix, number + 1
        names[tool.name] = wire
    return names


def _tool(tool: ToolSpec, names: Mapping[str, str]) -> dict[str, Any]:
    function = {
        "name": names[tool.name],
        "description": tool.description,
        "parameters": normalise_parameters(tool.parameters),
    }
    return {"type": "function", "function": function}


def wire_messages(messages: Sequence[Message], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """A conversation in OpenAI's form: calls get ids, and results refer to them in their order.

    A result that no call asked for is a user's turn in ``<tool_response>`` tags.
    """
    sent: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    count = 0
    for message in messages:
        if message.role == "assistant" and message.tool_calls:
            made = []
            for call in message.tool_calls:
                count += 1
                made.append(_sent_call(call, names, f"call_{count}"))
                open_calls.append((f"call_{count}", call.name))
            sent.append(
                {"role": "assistant", "content": message.content or None, "tool_calls": made}
            )
        elif message.role == "tool" and open_calls:
            identity = _answered(open_calls, message.name)
            sent.append({"role": "tool", "tool_call_id": identity, "content": message.content})
        elif message.role == "tool":
            content = f"{RESULT_OPEN}\n{message.content}\n{RESULT_CLOSE}"
            sent.append({"role": "user", "content": content})
        else:
            sent.append({"role": message.role, "content": message.content})
    return sent


def _sent_call(call: ToolCall, names: Mapping[str, str], identity: str) -> dict[str, Any]:
    arguments = json.dumps(call.arguments, ensure_ascii=False)
    name = names.get(call.name, re.sub(r"[^A-Za-z0-9_-]", "_", call.name)[:NAME_LENGTH] or "_")
    return {
        "id": identity,
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _answered(open_calls: list[tuple[str, str]], name: str | None) -> str:
    """The id of the call that a result is of: the first open one, of its name where it has one."""
    places = [i for i, (_, called) in enumerate(open_calls) if called == name]
    return open_calls.pop(places[0] if places else 0)[0]


def reply_text(reply: Reply, names: Mapping[str, str]) -> str:
    """A reply as an executor's text of the form ``low_only``.

    Text beside calls, and reasoning that the server keeps apart, is thinking. Neither calls nor text is
    a response without words. A text that the bound on tokens cut is not closed.

    Args:
        names: a tool's own name by the name that was sent.
    """
    thought = [reply.reasoning, *([reply.content] if reply.tool_calls else [])]
    said = "\n".join(filter(None, map(str.strip, thought)))
    think = f"{THINK_OPEN}{neutralise(said, TAGS)}{THINK_CLOSE}" if said else ""
    if reply.tool_calls:
        return writable(think + "\n".join(_call_text(call, names) for call in reply.tool_calls))
    words, end = neutralise(reply.content, TAGS), "" if reply.finish == "length" else RESPONSE_CLOSE
    return writable(f"{think}{RESPONSE_OPEN}{words}{end}")


def _call_text(call: Any, names: Mapping[str, str]) -> str:
    """One call; whatever has not its form is kept as a text that is none."""
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    given = function.get("arguments") if isinstance(function, Mapping) else None
    text = given if isinstance(given, str) else json.dumps(given)
    arguments: Any = load(text, 0, len(text))
    if not isinstance(name, str):
        name, arguments = "", json.dumps(call)
    elif not isinstance(arguments, dict):
        arguments = text  # text is no object: this does not parse
    return execution_text([ToolCall(names.get(name, name), arguments)])
