"""Writers of what the parsers read: targets of supervised training, and history in prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cahl_core.protocol.markers import neutralise
from cahl_core.protocol.parsing import (
    CALL_CLOSE,
    CALL_OPEN,
    PLAN_CLOSE,
    PLAN_OPEN,
    RESPONSE_CLOSE,
    RESPONSE_OPEN,
    TAGS,
)
from cahl_core.records import Plan, ToolCall

NO_TOOL = "No tool fits."


def plan_text(plan: Plan, forbidden: Sequence[str] = ()) -> str:
    """The text `parse_plan` reads back to the same plan.

    Args:
        forbidden: texts that values may not hold as they are, such as the tokenizer's special tokens
            (`templates.Dialect.special`); like tags they are written with a JSON escape.
    """
    return f"{PLAN_OPEN}{_closed(json.dumps(plan.to_json(), ensure_ascii=False), forbidden)}{PLAN_CLOSE}"


def execution_text(
    calls: Sequence[ToolCall], response: str | None = None, forbidden: Sequence[str] = ()
) -> str:
    """The text `parse_execution` reads back: the calls, or a response where there are none.

    Words know no escape: a tag or a forbidden text in a response is written with a space in it.
    """
    if not calls:
        said = neutralise(response or NO_TOOL, (*TAGS, *forbidden))
        return f"{RESPONSE_OPEN}{said}{RESPONSE_CLOSE}"
    blocks = (_closed(json.dumps(c.to_json(), ensure_ascii=False), forbidden) for c in calls)
    return "\n".join(f"{CALL_OPEN}{block}{CALL_CLOSE}" for block in blocks)


def single_text(
    plan: Plan,
    calls: Sequence[ToolCall],
    response: str | None = None,
    forbidden: Sequence[str] = (),
) -> str:
    """The text `parse_single` reads back to the plan and to the calls or the response."""
    return plan_text(plan, forbidden) + "\n" + execution_text(calls, response, forbidden)


def _closed(body: str, forbidden: Sequence[str]) -> str:
    """JSON with the first character of every tag as an escape, so that it closes nothing.

    ``<`` stands in JSON only inside strings; a forbidden text might be JSON's own syntax, and is
    then left alone.
    """
    for marker in (*TAGS, *forbidden):
        if marker in body:
            escaped = body.replace(marker, _escape(marker[0]) + marker[1:])
            body = escaped if marker in TAGS or _same(escaped, body) else body
    return body


def _escape(character: str) -> str:
    units = character.encode("utf-16-be")
    return "".join(f"\\u{units[i] << 8 | units[i + 1]:04x}" for i in range(0, len(units), 2))


def _same(left: str, right: str) -> bool:
    try:
        return bool(json.loads(left) == json.loads(right))
    except ValueError:
        return False
