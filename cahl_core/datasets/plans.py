"""Plan targets by rule: one sub-task per gold call, in order, with the gold arguments.

Sub-tasks are in words: what the tool does, with the values that tell the call from others. They are
short (a small model has to write them), and their phrasing varies with the task's id and the call's
number; nothing is in them that the call, the tool or the record's own plan texts do not say.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.datasets.mentions import Mention, mention, natural
from cahl_core.datasets.names import title, words
from cahl_core.datasets.references import has_reference, leaves, whole_reference
from cahl_core.datasets.wording import action, clause, weave
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec, ToolTask

MAX_WORDS = 16
VALUE_WORDS = 4
VALUE_CHARS = 32
LABELS = {
    "q": "query", "where to": "destination", "to": "destination", "from": "starting point",
    "sort by": "sort order", "depart date": "departure date", "from ID": "ID of the start",
    "to ID": "ID of the destination", "username or ID or url": "username or ID",
}  # fmt: skip
ANSWER = (
    "Answer the question", "Answer the question in words", "Give the answer to the question",
    "Answer from what is known", "Reply with the answer",
)  # fmt: skip
ASK = ("Ask for the {}", "Ask the user for the {}", "Ask what the {} should be", "Find out the {}")
QUESTIONS = (
    "Could you tell me the {}?", "What {} should I use?", "What should the {} be?",
    "To go on I need the {}. Can you tell me?", "May I have the {}?",
)  # fmt: skip


def plan_from_gold(task: ToolTask) -> Plan:
    """The plan of a task's gold.

    One sub-task per gold call; for a question without tools one that answers; for a request that
    lacks an argument (``meta.missing``) one that asks for it; otherwise empty.
    """
    if task.calls:
        return Plan(tuple(_sub_tasks(task)))
    generator = random.Random(f"{task.id} answer")
    missing = task.meta.get("missing")
    if task.meta.get("derivation") == "missing_argument" and isinstance(missing, Mapping):
        return Plan((ask_for(missing.get("arguments") or (), generator),))
    if task.meta.get("derivation") == "qa":
        return Plan((SubTask(generator.choice(ANSWER), None, {}),))
    return Plan(())


def ask_for(arguments: Sequence[str], generator: random.Random) -> SubTask:
    """The sub-task, without a tool, that asks for missing arguments."""
    labels = [argument_label(a) for a in arguments][:3] or ["missing details"]
    return SubTask(generator.choice(ASK[: 4 if len(labels) == 1 else 2]).format(_and(labels)), None)


def question_for(labels: Sequence[str], generator: random.Random) -> str:
    """A question to the user for what is missing; it ends with a question mark."""
    return generator.choice(QUESTIONS).format(_and(labels))


def argument_label(name: str) -> str:
    """An argument's name in words: ``party_size`` is the ``party size``."""
    label = " ".join({"id": "ID", "num": "number of"}.get(w, w) for w in words(name))
    return LABELS.get(label, label) or "value"


def _and(texts: Sequence[str]) -> str:
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _sub_tasks(task: ToolTask) -> list[SubTask]:
    tools = {tool.name: tool for tool in task.tools}
    texts = {
        f"{t['service']}_{t['intent']}": str(t["text"])
        for t in task.meta.get("plan_texts") or ()
        if isinstance(t, Mapping) and {"service", "intent", "text"} <= set(t)
    }
    found = []
    for number, call in enumerate(task.calls, 1):
        tool = tools.get(call.name, ToolSpec(call.name, "", {}))
        others = [c for i, c in enumerate(task.calls, 1) if c.name == call.name and i != number]
        generator = random.Random(f"{task.id} {number}")
        text = sub_task_text(call, tool, others, texts.get(call.name), generator)
        found.append(SubTask(text, call.name, call.arguments))
    return found


def sub_task_text(
    call: ToolCall,
    tool: ToolSpec,
    others: Sequence[ToolCall],
    given: str | None,
    generator: random.Random,
) -> str:
    """What the call is for, in at most `MAX_WORDS` words.

    Args:
        others: the task's other calls of this tool; values that differ from theirs are named first.
        given: the record's own text for the call, which is then kept word for word.
    """
    act = given or action(tool.name, tool.description, generator)
    woven: set[str] = set()
    act = re.sub(r"^(give|show|tell) me\b", "get", act)
    if given is None:
        texts = {
            name: natural(value, tool.properties.get(name) or {})
            for name, value in call.arguments.items()
            if isinstance(value, str)
            and _short(value)
            and isinstance(tool.properties.get(name), dict)
        }
        act, woven = weave(act, texts, generator)
    mentions = _mentions(call, tool, others, woven, generator)
    limit = generator.choice((1, 1, 1, 2) if others else (0, 0, 1, 1, 2))
    mentions = mentions[: limit if given is None else min(limit, 1)]
    text = clause(act, mentions, generator)
    while mentions and len(text.split()) > MAX_WORDS:
        mentions = mentions[:-1]
        text = clause(act, mentions, generator)
    text = " ".join(text.split()[:MAX_WORDS]) or title(tool.name)
    return text[0].upper() + text[1:]


def _mentions(
    call: ToolCall,
    tool: ToolSpec,
    others: Sequence[ToolCall],
    woven: set[str],
    generator: random.Random,
) -> list[Mention]:
    """Phrases for the call's values: what differs from other calls first, required before optional."""
    names = [n for n in call.arguments if n not in woven]
    differs = {n for n in names if any(o.arguments.get(n) != call.arguments[n] for o in others)}
    names.sort(key=lambda n: (n not in differs, n not in tool.required))
    found = []
    steps: set[int] = set()
    for name in names:
        value = call.arguments[name]
        number = next((r[0] for _, v in leaves(value) if (r := whole_reference(v))), None)
        if number is not None and number not in steps:
            steps.add(number)
            found.append(_referred(call, number))
        elif number is None and (said := _said(name, tool, value, generator)) is not None:
            found.append(said)
    return found


def _said(name: str, tool: ToolSpec, value: Any, generator: random.Random) -> Mention | None:
    """A literal value in words, if it is short; numbers in plain digits."""
    schema = tool.properties.get(name)
    if not isinstance(schema, Mapping):
        schema = {}
    if isinstance(value, bool):
        return mention(name, schema, value, generator)
    if isinstance(value, list) and 0 < len(value) <= 3 and all(_short(v) for v in value):
        return mention(name, schema, value, generator, _and([str(v) for v in value]))
    if not _short(value):
        return None
    text = natural(value, schema) if isinstance(value, str) else str(value)
    return mention(name, schema, value, generator, text)


def _short(value: Any) -> bool:
    """Whether a sub-task can name the value: a number, or a few words without a reference."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return False
    text = str(value)
    fits = 0 < len(text.split()) <= VALUE_WORDS and len(text) <= VALUE_CHARS
    return fits and not has_reference(text) and "\n" not in text


def _referred(call: ToolCall, number: int) -> Mention:
    """``with the latitude and longitude from step 1``: all that is taken from one result."""
    fields = []
    for _, value in leaves(call.arguments):
        found = whole_reference(value)
        if found is not None and found[0] == number:
            keys = [k for k in re.split(r"[.\[\]]+", found[1]) if k and not k.isdigit()]
            fields.append(argument_label(keys[-1]) if keys else "result")
    unique = list(dict.fromkeys(fields))[:2]
    return Mention(f"with the {_and(unique)} from step {number}", True)
