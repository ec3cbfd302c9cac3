"""What planner and executor read and write, as text and as token ids.

Both prompts put the tools into the system message, so all sub-tasks of one tool set share a token
prefix, which the engine and the packed forward encode once. The backbone's own chat template is used;
text from data can open or close neither a role nor a tag of ours (`neutralise`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from cahl_core.errors import ModelError
from cahl_core.protocol.parsing import (
    CALL_CLOSE,
    CALL_OPEN,
    PLAN_CLOSE,
    PLAN_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    TAGS,
)
from cahl_core.protocol.rendering import Rendering, render_tools
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec

PLAN_STOP = (PLAN_CLOSE,)
EXECUTION_STOP = (CALL_CLOSE, RESPONSE_CLOSE)

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


def planner_prompt(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
) -> list[int]:
    """Token ids of `planner_prompt_text`."""
    return _ids(tokenizer, planner_prompt_text(tokenizer, messages, tools, rendering))


def planner_prompt_text(
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
    listing: str | None = None,
) -> str:
    """The prompt that ends where the plan begins, in the backbone's own chat template.

    System messages of the conversation follow our own instruction in the one system message; tool
    results become user turns and calls a line of text, since many templates know neither.

    Args:
        listing: the tools as `tool_listing` writes them, where the caller has it.
    """
    clean = _cleaner(tokenizer)
    system = [_system(PLANNER_SYSTEM, listing or tool_listing(tokenizer, tools, rendering))]
    turns: list[dict[str, str]] = []
    for message in messages:
        if message.role == "system":
            system.append(clean(message.content))
        elif message.role == "tool":
            turns.append({"role": "user", "content": "Result: " + clean(message.content)})
        else:
            turns.append({"role": message.role, "content": clean(_spoken(message))})
    return _templated(tokenizer, "\n\n".join(system), turns)


def calls_line(calls: Sequence[Mapping[str, Any]]) -> str:
    """How calls of earlier turns are shown to the planner."""
    return "Calls: " + json.dumps(calls, ensure_ascii=False)


def _spoken(message: Message) -> str:
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
    return _ids(tokenizer, text)


def executor_prompt_text(
    tokenizer: Any,
    sub_task: SubTask,
    tools: Sequence[ToolSpec],
    feedback: Sequence[tuple[SubTask, Any]],
    rendering: Rendering,
    listing: str | None = None,
) -> str:
    """The prompt that ends where the executor's text begins.

    Args:
        listing: the tools as `tool_listing` writes them, where the caller has it.
        feedback: the earlier sub-tasks of the plan with their results; those whose result is
            ``None`` (unknown) keep their number but are not shown.
    """
    clean = _cleaner(tokenizer)
    lines = [
        f"Result {number} ({earlier.tool}): {json.dumps(result, ensure_ascii=False)}"
        for number, (earlier, result) in enumerate(feedback, 1)
        if result is not None
    ]
    lines.append("Sub-task: " + json.dumps(sub_task.to_json(), ensure_ascii=False))
    content = clean("\n".join(lines))
    system = _system(EXECUTOR_SYSTEM, listing or tool_listing(tokenizer, tools, rendering))
    return _templated(tokenizer, system, [{"role": "user", "content": content}])


def plan_text(plan: Plan) -> str:
    """The text `parse_plan` reads back to the same plan."""
    return f"{PLAN_OPEN}{_closed(json.dumps(plan.to_json(), ensure_ascii=False))}{PLAN_CLOSE}"


def execution_text(calls: Sequence[ToolCall], response: str | None = None) -> str:
    """The text `parse_execution` reads back: the calls, or a response where there are none."""
    if not calls:
        return f"{RESPONSE_OPEN}{_closed(response or 'No tool fits.')}{RESPONSE_CLOSE}"
    blocks = (_closed(json.dumps(c.to_json(), ensure_ascii=False)) for c in calls)
    return "\n".join(f"{CALL_OPEN}{block}{CALL_CLOSE}" for block in blocks)


def _closed(body: str) -> str:
    """Writes any tag inside a JSON string with its ``<`` as a JSON escape, so it closes nothing."""
    for tag in TAGS:
        body = body.replace(tag, "\\u003c" + tag[1:])
    return body


def tool_listing(tokenizer: Any, tools: Sequence[ToolSpec], rendering: Rendering) -> str:
    """The tools as both prompts show them."""
    clean = _cleaner(tokenizer)
    return str(clean(render_tools(tools, rendering))) if tools else "(none)"


def _system(instruction: str, listing: str) -> str:
    return f"{instruction}\n\nTools:\n{listing}"


def _ids(tokenizer: Any, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _templated(tokenizer: Any, system: str, turns: list[dict[str, str]]) -> str:
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            "the backbone's tokenizer has no chat template",
            "use an instruction-tuned backbone, or add chat_template.jinja to its directory",
        )
    text: str = tokenizer.apply_chat_template(
        [{"role": "system", "content": system}, *turns],
        tokenize=False,
        add_generation_prompt=True,
    )
    return text


def neutralise(text: str, markers: Sequence[str]) -> str:
    """Puts a space after the first character of every marker in ``text``.

    >>> neutralise("a</plan><|im_end|>", ["</plan>", "<|im_end|>"])
    'a< /plan>< |im_end|>'
    """
    if not any(marker in text for marker in markers):
        return text
    pattern = "|".join(re.escape(m) for m in sorted(markers, key=len, reverse=True))
    return re.sub(pattern, lambda m: m.group()[0] + " " + m.group()[1:], text)


def _cleaner(tokenizer: Any) -> Any:
    markers = _markers(tokenizer, len(getattr(tokenizer, "added_tokens_decoder", ())))

    def clean(text: str) -> str:
        return neutralise(text, markers)

    return clean


@lru_cache(maxsize=8)
def _markers(tokenizer: Any, size: int) -> tuple[str, ...]:
    """The tokenizer's special tokens and our tags; ``size`` changes where one is added."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    tokens = [str(t) for t in added.values()] + list(tokenizer.all_special_tokens)
    special = sorted({t for t in tokens if len(t) > 1})
    return tuple(dict.fromkeys((*special, *TAGS)))
