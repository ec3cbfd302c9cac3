"""Derived requests that no call answers: no tool fits, nothing is asked, or something is missing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from cahl_core.datasets import smalltalk, wording
from cahl_core.datasets.asking import RENAMED_SHARE, ask, distractors, task_of, with_plan
from cahl_core.datasets.catalogue import Catalogue, content_words
from cahl_core.datasets.names import words
from cahl_core.datasets.plans import argument_label, question_for
from cahl_core.datasets.values import category
from cahl_core.datasets.variation import Slot, Variant, vary
from cahl_core.records import Message, ToolTask

# what an irrelevant request is: no task at all, near to the offered tools, a parent's whole request
CHAT_SHARE, NEAR_SHARE, WHOLE_SHARE = 0.25, 0.35, 0.1
MAX_WHOLE = 400  # characters
# tools that might answer any question
ANSWERERS = {"web", "internet", "question", "wikipedia", "chat", "answer", "google", "translation"}
GUESSED = {"limit", "max", "page", "size", "results", "count", "num", "radius", "offset"}


def irrelevance(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    """A request whose fitting tools were taken away, near to the offered ones, or small talk."""
    drawn = generator.random()
    if drawn < CHAT_SHARE:
        return _small_talk(catalogue, number, generator)
    name = generator.choice(catalogue.names)
    asked = ask(catalogue, name, generator)
    if asked is None:
        return None
    request = wording.request(asked.act, list(asked.mentions.values()), generator)
    gone = {name}
    near = drawn < CHAT_SHARE + NEAR_SHARE
    users = [m for m in asked.parent.messages if m.role == "user"]
    if drawn > 1 - WHOLE_SHARE and len(users) == 1 and len(users[0].content) < MAX_WHOLE:
        request = users[0].content
        gone |= {call.name for call in asked.parent.calls}
    chosen = unfitting(catalogue, gone, request, near, generator)
    others = [
        vary(catalogue.tools[n], generator.random() < RENAMED_SHARE, generator) for n in chosen
    ]
    if not others or len({o.name for o in others}) != len(others):
        return None
    return _declined(asked.parent, request, others, number, generator)


def unfitting(
    catalogue: Catalogue,
    gone: set[str],
    request: str,
    near: bool,
    generator: random.Random,
) -> list[str]:
    """Tools that cannot do what is asked.

    Far ones share no topic word with the request or the tools it was for. Near ones share exactly
    one with it, about something else: most of their topic is not asked for.
    """
    wanted = {w for n in gone if n in catalogue.tools for w in catalogue.topics[n]}
    said = content_words(request)
    count = generator.choice((1, 1, 2, 3))
    chosen: list[str] = []
    if near:
        pool = catalogue.related(wanted, gone)
        generator.shuffle(pool)
        chosen = [n for n in pool if _only_near(catalogue.topics[n], wanted | said)][:1]
        if not chosen:
            return []
    for _ in range(8 * count):
        name = generator.choice(catalogue.names)
        far = not catalogue.topics[name] & (wanted | said)
        if len(chosen) < count and far and name not in {*gone, *chosen}:
            chosen.append(name)
    return chosen


def _only_near(own: frozenset[str], wanted: set[str]) -> bool:
    return len(own & wanted) == 1 and len(own) >= 4


def _small_talk(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    """General knowledge, opinions and chat, with tools that have nothing to do with it."""
    request = smalltalk.request(generator)
    said = content_words(request)
    names = [generator.choice(catalogue.names) for _ in range(generator.choice((1, 1, 2, 3)))]
    if any(catalogue.topics[n] & (said | ANSWERERS) for n in names):
        return None
    others = [
        vary(catalogue.tools[n], generator.random() < RENAMED_SHARE, generator) for n in names
    ]
    if len({o.name for o in others}) != len(others):
        return None
    parent = generator.choice(catalogue.parents[names[0]])
    return _declined(parent, request, others, number, generator)


def _declined(
    parent: ToolTask,
    request: str,
    others: Sequence[Variant],
    number: str,
    generator: random.Random,
) -> ToolTask:
    meta = {"derived_from": parent.id, "derivation": "irrelevance", "deps": [], "levels": []}
    tools = [o.spec() for o in others]
    generator.shuffle(tools)
    return with_plan(
        ToolTask(
            id=f"{parent.id}--irrelevance-{number}",
            source=parent.source,
            messages=(Message("user", request),),
            tools=tuple(tools),
            steps=(),
            meta={**meta, "resolved": []},
        )
    )


def missing_argument(
    catalogue: Catalogue, number: str, generator: random.Random
) -> ToolTask | None:
    """A request for one call that leaves out a required argument; the right answer is a question."""
    name = generator.choice(catalogue.names)
    asked = ask(catalogue, name, generator)
    if asked is None:
        return None
    slots = [s for s in asked.variant.slots if s.required and _must_be_told(s)]
    slots = [s for s in slots if s.name in asked.mentions]
    if not slots:
        return None
    slot = generator.choice(slots)
    mentions = [m for n, m in asked.mentions.items() if n != slot.name]
    request = wording.request(asked.act, mentions, generator)
    if str(asked.call.arguments[slot.name]).lower() in request.lower():
        return None
    count = generator.choice((0, 0, 1, 2))
    others = distractors(catalogue, {name}, count, generator)
    others = [o for o in others if o.name != asked.variant.name]
    task = task_of([asked], request, others, "missing_argument", number, generator)
    missing = {"tool": asked.variant.name, "arguments": [slot.name]}
    meta = {
        **task.meta,
        "levels": [],
        "resolved": [],
        "missing": missing,
        "answer": question_for([argument_label(slot.name)], generator),
    }
    return with_plan(replace(task, steps=(), meta=meta))


def _must_be_told(slot: Slot) -> bool:
    """Whether nobody could guess the value: no default, no short list of choices, no usual number."""
    if "default" in slot.schema or slot.schema.get("type") == "array":
        return False
    known = category(slot.original, slot.schema) in ("boolean", "enum")
    return not known and not set(words(slot.original)) & GUESSED
