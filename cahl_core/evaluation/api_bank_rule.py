"""ToolRL's rule for API-Bank (arXiv 2504.13958, its published evaluation), written from its behaviour.

A text is read line by line: what stands after the last ``<tool_call>`` and before the next closing tag,
or all of it where there is no tag; lines that are no JSON are passed over. Three rules judge the values
that are left against the one gold call, whose values are all texts:

- soft (what ToolRL reports): any value is the gold call, ``{"name", "parameters"}`` equal to it as Python
  objects. An object without one of the two keys is compared as the parameters alone. At a number,
  truth value or null the original stops with a TypeError: nothing after it counts.
- strict: exactly one value, and it is the gold call with both keys.
- norm: strict after scalars were made texts, trimmed and case-folded; the name stays exact.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cahl_core.protocol.parsing import CALL_CLOSE, CALL_OPEN
from cahl_core.records import ToolCall

KEYS = ("name", "parameters")


def text_of(calls: Sequence[ToolCall]) -> str:
    """Calls as ToolRL's models write them, one JSON object a line; no call is the empty text.

    >>> text_of([ToolCall("f", {"a": "1"})])
    '<tool_call>\\n{"name": "f", "parameters": {"a": "1"}}\\n</tool_call>'
    """
    if not calls:
        return ""
    lines = (
        json.dumps({"name": c.name, "parameters": c.arguments}, ensure_ascii=False) for c in calls
    )
    return "\n".join([CALL_OPEN, *lines, CALL_CLOSE])


def values_of(text: str) -> list[Any]:
    """The JSON values of the lines that count, in order."""
    inner = text.rpartition(CALL_OPEN)[2].partition(CALL_CLOSE)[0]
    found = []
    for line in inner.split("\n"):
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):  # also digits beyond what an int may be read from
            continue
    return found


def soft(text: str, gold: ToolCall) -> bool:
    """Whether any value before the first one that stops the original is the gold call."""
    for value in values_of(text):
        verdict = _is_gold(value, gold)
        if verdict is None:
            return False
        if verdict:
            return True
    return False


def strict(text: str, gold: ToolCall) -> bool:
    """Whether the text holds exactly one value, the gold call."""
    call = _only_call(text)
    return call is not None and call == (gold.name, gold.arguments)


def norm(text: str, gold: ToolCall) -> bool:
    """`strict` with scalars compared as texts, trimmed and without case.

    >>> gold = ToolCall("f", {"n": "3", "city": "Rome"})
    >>> norm('{"name": "f", "parameters": {"n": 3, "city": " rome"}}', gold)
    True
    """
    call = _only_call(text)
    return (
        call is not None
        and call[0] == gold.name
        and _normal(call[1]) == _normal(dict(gold.arguments))
    )


def _is_gold(value: Any, gold: ToolCall) -> bool | None:
    """``None`` where the original cannot go on."""
    if isinstance(value, dict):
        if all(key in value for key in KEYS):
            return bool(value["name"] == gold.name and value["parameters"] == gold.arguments)
        return bool(value == gold.arguments)
    if isinstance(value, str | list) and not all(key in value for key in KEYS):
        return False
    return None


def _only_call(text: str) -> tuple[Any, Any] | None:
    values = values_of(text)
    if len(values) != 1 or not isinstance(values[0], dict) or any(k not in values[0] for k in KEYS):
        return None
    return values[0]["name"], values[0]["parameters"]


def _normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _normal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_normal(item) for item in value]
    return str(value).strip().casefold()
