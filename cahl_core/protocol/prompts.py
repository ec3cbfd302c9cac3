"""What planner and executor read, as text and as token ids, in every form of the model.

All prompts put the tools into the system message, so all sub-tasks of one tool set share a token
prefix, which the engine and the packed forward encode once. The backbone's own chat template is used
where it has one (`templates`); text from data can open or close neither a role nor a tag of ours.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from cahl_core.protocol.markers import neutralise
from cahl_core.protocol.parsing import RESULT_CLOSE, RESULT_OPEN
from cahl_core.protocol.rendering import Rendering, render_tools
from cahl_core.protocol.templates import Turn, clean, templated, token_ids
from cahl_core.protocol.texts import execution_text, plan_text, single_text
from cahl_core.records import Message, SubTask, ToolSpec
from cahl_core.train_config import Form

__all__ = ["execution_text", "neutralise", "plan_text", "single_text"]

PLANNER_SYSTEM = (
    "You plan tool use. Write <plan>[...]</plan>: a JSON list of sub-tasks in order, each "
    '{"task", "tool", "arguments"}, one per needed call. $varN.path$ stands for a value in the '
    "result of sub-task N. If no tool fits the request, write <plan>[]</plan>."
)
EXECUTOR_SYSTEM = (
    "You carry out one sub-task. Write the call as "
    '<tool_call>{"name": ..., "arguments": {...}}</tool_call> with values taken from the sub-task '
    "and the results, or <response>...</response> if no tool is needed."
)
LOW_ONLY_SYSTEM = (
    "You carry out a request. Write every needed call, in order, as "
    '<tool_call>{"name": ..., "arguments": {...}}</tool_call>. $varN.path$ stands for a value in '
    "the result of call N. If no tool fits the request, write <response>...</response>."
)
SINGLE_SYSTEM = (
    "You plan and carry out a request. First write <plan>[...]</plan>: a JSON list of sub-tasks in "
    'order, each {"task", "tool", "arguments"}, one per needed call. Then write every call, in '
    'order, as <tool_call>{"name": ..., "arguments": {...}}</tool_call>. $varN.path$ stands for a '
    "value in the result of sub-task N. If no tool fits the request, write <plan>[]</plan> and "
    "<response>...</response>."
)

# what opens the prompt that holds the whole request, by form
REQUEST_SYSTEM: dict[Form, str] = {
    "hierarchical": PLANNER_SYSTEM,
    "low_only": LOW_ONLY_SYSTEM,
    "single_level": SINGLE_SYSTEM,
}

Clean = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt as a conversation, before any template: system text, then user and assistant turns."""

    system: str
    turns: tuple[Turn, ...]


def planner_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
) -> list[int]:
    """Token ids of `planner_prompt_text`."""
    return token_ids(tokenizer, planner_prompt_text(tokenizer, messages, tools, rendering))


def low_only_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
) -> list[int]:
    """Token ids of the prompt of an executor whose only sub-task is the whole request."""
    return token_ids(tokenizer, _request(tokenizer, LOW_ONLY_SYSTEM, messages, tools, rendering))


def single_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
) -> list[int]:
    """Token ids of the prompt that asks for the plan and the calls in one text."""
    return token_ids(tokenizer, _request(tokenizer, SINGLE_SYSTEM, messages, tools, rendering))


def planner_prompt_text(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
    listing: str | None = None,
) -> str:
    """The prompt that ends where the plan begins, in the backbone's own chat template.

    System messages of the conversation follow our own instruction in the one system message; a tool's
    result becomes a user turn in ``<tool_response>`` tags, which no user can write, and calls a line
    of text, since many templates know neither.

    Args:
        listing: the tools as `tool_listing` writes them, where the caller has it.
    """
    return _request(tokenizer, PLANNER_SYSTEM, messages, tools, rendering, listing)


def _request(
    tokenizer: Any,
    instruction: str,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
    listing: str | None = None,
) -> str:
    cleaned = partial(clean, tokenizer)
    chat = request_chat(
        instruction, messages, listing or listed(tools, rendering, cleaned), cleaned
    )
    return templated(tokenizer, chat.system, chat.turns)


def request_chat(
    instruction: str, messages: Sequence[Message], listing: str, cleaned: Clean
) -> Chat:
    """The conversation of a prompt that holds the whole request.

    Args:
        instruction: one of `REQUEST_SYSTEM`.
        listing: the tools as they are shown.
        cleaned: takes markers out of text from data (`templates.clean`).
    """
    system = [_system(instruction, listing)]
    turns: list[Turn] = []
    for message in messages:
        content = cleaned(spoken_text(message))
        if message.role == "system":
            system.append(content)
        elif message.role == "tool":
            result = f"{RESULT_OPEN}\n{content}\n{RESULT_CLOSE}"
            turns.append({"role": "user", "content": result})
        else:
            turns.append({"role": message.role, "content": content})
    return Chat("\n\n".join(system), tuple(turns))


def calls_line(calls: Sequence[Mapping[str, Any]]) -> str:
    """How calls of earlier turns are shown to the planner."""
    return "Calls: " + json.dumps(calls, ensure_ascii=False)


def spoken_text(message: Message) -> str:
    """A turn in words; the calls it made are a line of it."""
    made = [calls_line([c.to_json() for c in message.tool_calls])] if message.tool_calls else []
    return "\n".join(filter(None, [message.content, *made]))


def executor_prompt(
    tokenizer: Any,
    sub_task: SubTask,
    tools: Sequence[ToolSpec],
    feedback: Sequence[tuple[SubTask, Any]],
    rendering: Rendering,
) -> list[int]:
    """Token ids of `executor_prompt_text`."""
    text = executor_prompt_text(tokenizer, sub_task, tools, feedback, rendering)
    return token_ids(tokenizer, text)


def executor_prompt_text(
    tokenizer: Any,
    sub_task: SubTask,
    tools: Sequence[ToolSpec],
    feedback: Sequence[tuple[SubTask, Any]],
    rendering: Rendering,
    listing: str | None = None,
) -> str:
    """The prompt that ends where the executor's text begins.

    Every line of it is ours: results and sub-task are JSON, in which a line break is an escape.

    Args:
        listing: the tools as `tool_listing` writes them, where the caller has it.
        feedback: the earlier sub-tasks of the plan with their results; those whose result is
            ``None`` (unknown) keep their number but are not shown.
    """
    cleaned = partial(clean, tokenizer)
    chat = executor_chat(sub_task, feedback, listing or listed(tools, rendering, cleaned), cleaned)
    return templated(tokenizer, chat.system, chat.turns)


def executor_chat(
    sub_task: SubTask, feedback: Sequence[tuple[SubTask, Any]], listing: str, cleaned: Clean
) -> Chat:
    """The conversation of `executor_prompt_text`; arguments as of `request_chat`."""
    lines = [
        f"Result {number} ({_one_line(earlier.tool)}): {json.dumps(result, ensure_ascii=False)}"
        for number, (earlier, result) in enumerate(feedback, 1)
        if result is not None
    ]
    lines.append("Sub-task: " + json.dumps(sub_task.to_json(), ensure_ascii=False))
    content = cleaned("\n".join(lines))
    return Chat(_system(EXECUTOR_SYSTEM, listing), ({"role": "user", "content": content},))


def _one_line(name: str | None) -> str:
    return " ".join(str(name).split())


def tool_listing(tokenizer: Any, tools: Sequence[ToolSpec], rendering: Rendering) -> str:
    """The tools as all prompts show them."""
    return listed(tools, rendering, partial(clean, tokenizer))


def listed(tools: Sequence[ToolSpec], rendering: Rendering, cleaned: Clean) -> str:
    """`tool_listing` where there is no tokenizer."""
    return cleaned(render_tools(tools, rendering)) if tools else "(none)"


def _system(instruction: str, listing: str) -> str:
    return f"{instruction}\n\nTools:\n{listing}"
