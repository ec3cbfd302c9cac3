"""The forms of a model: which texts there are, how they begin and end, how the flat ones are read.

``hierarchical``: the planner's plan, then an executor text per sub-task. ``low_only``: the executor
writes the calls of the whole request. ``single_level``: one text holds the plan and the calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cahl_core.protocol.parsing import (
    CALL_CLOSE,
    CALL_OPEN,
    PLAN_CLOSE,
    PLAN_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    THINK_OPEN,
    Execution,
    ParseFailure,
    parse_execution,
    parse_single,
)
from cahl_core.protocol.prompts import low_only_prompt, single_prompt
from cahl_core.protocol.rendering import Rendering
from cahl_core.records import Message, ToolSpec
from cahl_core.roles import Role
from cahl_core.train_config import Form


def stops(form: Form, role: Role) -> tuple[str, ...]:
    """The tags that end a text of this role (kept in it); the end-of-turn token always does.

    The executor of a sub-task writes one call. In the flat forms a call may be followed by another,
    so only a response ends the text by its tag.
    """
    if form != "hierarchical":
        return (RESPONSE_CLOSE,)
    return (PLAN_CLOSE,) if role == "planner" else (CALL_CLOSE, RESPONSE_CLOSE)


def openings(form: Form, role: Role) -> tuple[str, ...]:
    """How a text of this role may begin; one that begins otherwise is outside the grammar already."""
    if role == "planner" or form == "single_level":
        return (PLAN_OPEN,)
    return (THINK_OPEN, CALL_OPEN, RESPONSE_OPEN)


def flat_prompt(
    form: Form,
    tokenizer: Any,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    rendering: Rendering,
) -> list[int]:
    """Token ids of the one prompt that a flat form has per request."""
    prompt = single_prompt if form == "single_level" else low_only_prompt
    return prompt(tokenizer, messages, tools, rendering)


def parse_flat(form: Form, text: str) -> Execution | ParseFailure:
    """The calls or the response of a flat form's text; in ``single_level`` the plan must parse too."""
    if form != "single_level":
        return parse_execution(text)
    single = parse_single(text)
    return single if isinstance(single, ParseFailure) else single.execution
