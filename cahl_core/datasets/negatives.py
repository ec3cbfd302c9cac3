"""Negatives from real records: requests without the tools they need, and questions people asked back.

Training on them teaches restraint: to call nothing where no tool fits, and to ask before a call that
lacks a required argument.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from cahl_core.datasets.augment import draw_tools, other_tools
from cahl_core.datasets.catalogue import content_words, topic_of
from cahl_core.datasets.names import words
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.records import Message, ToolCall, ToolSpec, ToolTask

MAX_ADDED = 3
MAX_SHARED = 1  # words of the request that a distractor may be about
DIGITS = {
    "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip


def without_gold_tools(
    task: ToolTask, pool: Sequence[ToolSpec], generator: random.Random
) -> ToolTask | None:
    """The same request without the tools it needs: nothing is to be called.

    Its distractors stay unless they share a topic word with a gold tool or several with the request
    (they might do instead); up to `MAX_ADDED` tools of the pool join them, which share none with either.

    Returns:
        ``None`` if the task has no gold call, if calls are in its history, or if no tool is left.
    """
    if not task.calls or any(m.tool_calls for m in task.messages) or _is_dialogue(task):
        return None
    gone = {call.name for call in task.calls}
    wanted = {w for t in task.tools if t.name in gone for w in topic_of(t.name, t.description)}
    wanted |= {w for name in gone for w in topic_of(name, "")}
    said = {w for m in task.messages if m.role == "user" for w in content_words(m.content)}
    topics = ((t, topic_of(t.name, t.description)) for t in task.tools)
    kept = [t for t, own in topics if not wanted & own and len(own & said) <= MAX_SHARED]
    near = wanted | said
    far = (
        t for t in draw_tools(pool, generator) if near.isdisjoint(topic_of(t.name, t.description))
    )
    count = generator.randint(0 if kept else 1, MAX_ADDED)
    tools = kept + list(islice(other_tools(task.tools, far), count))
    if not tools:
        return None
    meta = {"derived_from": task.id, "derivation": "irrelevance", "deps": [], "levels": []}
    return replace(
        task,
        id=f"{task.id}--irrelevance-gold",
        tools=tuple(generator.sample(tools, len(tools))),
        steps=(),
        plan=plan_from_gold(replace(task, steps=(), meta=meta)),
        meta={**meta, "resolved": [], "results": []},
    )


def ask_in_dialogue(task: ToolTask) -> list[ToolTask]:
    """The points of a whole dialogue where the assistant rightly asked before calling.

    Such a turn ends with a question mark; the call that comes next needs an argument whose value
    nobody has said yet, and the user's reply says it. Each gives a task that ends before that turn:
    no call, a plan of one sub-task that asks, ``meta.answer`` the question that was asked.
    """
    if not _is_dialogue(task):
        return []
    return [_asked(task, index, call, names) for index, call, names in _questions(task)]


def _is_dialogue(task: ToolTask) -> bool:
    return task.meta.get("form") == "dialogue"


def _questions(task: ToolTask) -> Iterator[tuple[int, ToolCall, list[str]]]:
    """``(index of the assistant's question, call that comes next, arguments it is about)``."""
    places = [int(i) for i in task.meta.get("answer_at") or ()]
    ahead = list(zip(places, task.steps, strict=False))
    for index, message in enumerate(task.messages[:-1]):
        before, after = task.messages[index - 1], task.messages[index + 1]
        asks = message.role == "assistant" and message.content.strip().endswith("?")
        if (
            not asks
            or message.tool_calls
            or index == 0
            or (before.role, after.role) != ("user",) * 2
        ):
            continue
        place, step = next(((p, s) for p, s in ahead if p > index), (0, ()))
        if len(step) != 1 or any(m.tool_calls for m in task.messages[index:place]):
            continue
        if _confirms(step[0], message.content):
            continue
        missing = _missing(task, step[0], index)
        names = _about(missing, message.content)
        if names:
            yield index, step[0], names


def _confirms(call: ToolCall, question: str) -> bool:
    """Whether the question repeats what is known, to have it confirmed or corrected."""
    repeats = any(said(value, question) for value in call.arguments.values())
    return repeats or re.search(r"\b(correct|right|confirm)", question, re.I) is not None


def _missing(task: ToolTask, call: ToolCall, index: int) -> list[str]:
    """Required arguments of the call whose value is first said in the reply to the question."""
    tool = next((t for t in task.tools if t.name == call.name), None)
    if tool is None:
        return []
    earlier = [m.content for m in task.messages[: index + 1]]
    earlier += [str(c.arguments) for m in task.messages[:index] for c in m.tool_calls]
    reply = task.messages[index + 1].content
    return [
        name
        for name in tool.required
        if name in call.arguments
        and "default" not in (tool.properties.get(name) or {})
        and said(call.arguments[name], reply)
        and not any(said(call.arguments[name], text) for text in earlier)
    ]


def said(value: Any, text: str) -> bool:
    """Whether a text says a value: as a whole word, in any case, small numbers also in words.

    >>> said("2", "A table for two, please"), said("Oslo", "in Osloer street")
    (True, False)
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, str | int | float)
        or not str(value).strip()
    ):
        return False
    wanted = [DIGITS.get(w, w) for w in _tokens(str(value))]
    found = [DIGITS.get(w, w) for w in _tokens(text)]
    size = len(wanted)
    return size > 0 and any(found[i : i + size] == wanted for i in range(len(found) - size + 1))


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def _asked(task: ToolTask, index: int, call: ToolCall, names: list[str]) -> ToolTask:
    question: Message = task.messages[index]
    meta = {
        "derived_from": task.id,
        "derivation": "missing_argument",
        "deps": [],
        "levels": [],
        "resolved": [],
        "results": [],
        "missing": {"tool": call.name, "arguments": names},
        "answer": question.content.strip(),
    }
    asked = replace(
        task,
        id=f"{task.id}--missing_argument-{index}",
        messages=task.messages[:index],
        steps=(),
        plan=None,
        meta=meta,
    )
    return replace(asked, plan=plan_from_gold(asked))


def _about(names: list[str], question: str) -> list[str]:
    """Those of the arguments that the question names, or the only one there is."""
    tokens = set(_tokens(question)) - {"of", "the", "is"}
    return [n for n in names if tokens & set(words(n))] or names[: len(names) == 1]
