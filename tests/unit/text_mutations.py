"""Broken plans and executions: valid texts, mutated as models and attackers would."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from cahl_core.protocol.parsing import TAGS
from cahl_core.protocol.texts import execution_text, plan_text, single_text
from cahl_core.records import Plan, SubTask, ToolCall

WORDS = (
    "", "a", "city", "$var1.id$", "Oslo, Norway", "naïve", "東京", "\U0001f600", "e\u0301", "\u202e",
    "\x00", "\x1b[31m", "\n", "\t", "\\", '"', "</plan>", "<plan>", "<|im_end|>",
    "{", "]", "null", "\u2028", "\ufeff", "\u200b",
)  # fmt: skip
JUNK = (
    *TAGS, "[", "]", "{", "}", '"', ",", ":", "\\", "\\u", "\\ud800", "\\u0000", "null", "true", "NaN",
    "-Infinity", "1e999", "-0", "0.1e-5", "9" * 400, "9" * 5000, "1." + "0" * 400, "[" * 80,
    '{"a":' * 70, "]" * 80, '"' * 3, " ", "\n", "\r", "\x0b", "\x00", "\u00a0", "\ufeff", "\ud83d",
    "\ude00", "\U0001f600", "```json\n", "```", "<tool_call", "/think>", "< plan>", "<PLAN>", "Sure!",
    '"task"', '"arguments":{}', '"tool":"tool":', "// no", "'", "None",
)  # fmt: skip


def mutated(seed: int) -> Iterator[str]:
    """Endless texts, the same for the same seed."""
    rng = random.Random(seed)
    while True:
        text = _valid(rng)
        for _ in range(rng.choice((0, 1, 1, 1, 2, 3, 6))):
            text = rng.choice(MUTATIONS)(rng, text)
        yield text


def _valid(rng: random.Random) -> str:
    calls = [ToolCall(rng.choice(WORDS), _object(rng, 2)) for _ in range(rng.randrange(1, 4))]
    plan = Plan(tuple(SubTask(rng.choice(WORDS), c.name, c.arguments) for c in calls))
    words = rng.choice(WORDS)
    kind = rng.randrange(6)
    if kind == 0:
        return plan_text(plan)
    if kind == 1:
        return execution_text(calls)
    if kind == 2:
        return execution_text([], words)
    if kind == 3:
        return f"<think>{words}</think>\n" + execution_text(calls)
    if kind == 4:
        return single_text(plan, calls)
    return single_text(Plan(()), [], words)


def _value(rng: random.Random, depth: int) -> Any:
    kind = rng.randrange(8)
    if kind < 2 or depth == 0:
        return rng.choice(WORDS)
    if kind == 2:
        return rng.choice((0, -1, 7, 10**20, -(10**300), 10**310))
    if kind == 3:
        return rng.choice((0.5, -1e-7, 1e300, float("inf"), float("nan")))
    if kind == 4:
        return rng.choice((None, True, False))
    if kind == 5:
        return [_value(rng, depth - 1) for _ in range(rng.randrange(3))]
    return _object(rng, depth - 1)


def _object(rng: random.Random, depth: int) -> dict[str, Any]:
    return {rng.choice(WORDS): _value(rng, depth) for _ in range(rng.randrange(3))}


def _cut(rng: random.Random, text: str) -> str:
    return text[: rng.randrange(len(text) + 1)]


def _drop(rng: random.Random, text: str) -> str:
    start = rng.randrange(len(text) + 1)
    return text[:start] + text[start + rng.randrange(1, 9) :]


def _insert(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + rng.choice(JUNK) + text[place:]


def _replace_character(rng: random.Random, text: str) -> str:
    place = rng.randrange(len(text) + 1)
    return text[:place] + chr(rng.randrange(0x110000)) + text[place + 1 :]


def _tag_surgery(rng: random.Random, text: str) -> str:
    tag = rng.choice(TAGS)
    return text.replace(tag, rng.choice(("", tag * 2, tag[:-1], tag.upper(), rng.choice(TAGS))), 1)


def _double(rng: random.Random, text: str) -> str:
    start = rng.randrange(len(text) + 1)
    return text + text[start : start + 200]


def _swap_values(rng: random.Random, text: str) -> str:
    old, new = rng.choice(('"', "{", "}", ":", "null", '"tool"', '"name"')), rng.choice(JUNK)
    return text.replace(old, new, rng.randrange(1, 3))


def _deepen(rng: random.Random, text: str) -> str:
    depth = rng.choice((3, 60, 64, 65, 70, 500))
    opening, closing = rng.choice((("[", "]"), ('{"a":', "}")))
    nested = opening * depth + rng.choice(("", "1", '"["')) + closing * depth
    return text.replace("{}", nested, 1) if "{}" in text else _insert(rng, text) + nested


def _reescape(rng: random.Random, text: str) -> str:
    start = rng.randrange(len(text) + 1)
    return text[:start] + json.dumps(text[start:])[1:-1]


MUTATIONS: tuple[Callable[[random.Random, str], str], ...] = (
    _cut, _drop, _insert, _insert, _replace_character, _tag_surgery, _tag_surgery, _double,
    _swap_values, _deepen, _reescape,
)  # fmt: skip
