"""Requests derived from kept records by rule: one call, several calls, declined, incomplete.

The sources hold long chains over few tools. Derived tasks add what is asked most often of a tool
caller: one call from a plain request (`single_step`), several independent calls (`parallel`), a
request that none of the offered tools fits (`irrelevance`), and one that leaves out what a tool needs
(`missing_argument`: the plan asks for it). Each names the record it was derived from
(``meta.derived_from``) and how (``meta.derivation``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from cahl_core.datasets import wording
from cahl_core.datasets.amounts import is_share
from cahl_core.datasets.asking import (
    RENAMED_SHARE,
    Asked,
    ask,
    distractors,
    task_of,
    with_plan,
)
from cahl_core.datasets.catalogue import Catalogue
from cahl_core.datasets.declining import irrelevance, missing_argument
from cahl_core.datasets.mentions import Mention, listing, mention, natural
from cahl_core.datasets.values import category
from cahl_core.datasets.variation import Slot, vary
from cahl_core.records import ToolCall, ToolTask

__all__ = ["KINDS", "derive", "with_plan"]

KINDS = ("single_step", "parallel", "irrelevance", "missing_argument")
MAX_DISTRACTORS = 3
RESPECTIVELY_SHARE = 0.3
PLACE = "\0"  # where several values go in a phrase
ATTEMPTS = 20


def derive(
    tasks: Sequence[ToolTask], counts: Mapping[str, int], seed: int, label: str
) -> list[ToolTask]:
    """``counts[kind]`` derived tasks of each kind, deterministic by seed and number.

    Args:
        tasks: the parents; derived tasks use only their tools and values.
        label: part of the ids (``train``, ``dev``), so that the two splits draw differently.
    """
    catalogue = Catalogue.of(tasks)
    if not catalogue.names:
        return []
    makers = {
        "single_step": _single,
        "parallel": _parallel,
        "irrelevance": irrelevance,
        "missing_argument": missing_argument,
    }
    derived = []
    texts: set[str] = set()
    for kind in KINDS:
        for number in range(counts.get(kind, 0)):
            generator = random.Random(f"{seed} {label} {kind} {number}")
            for _ in range(ATTEMPTS):
                task = makers[kind](catalogue, f"{label}-{number}", generator)
                if task is not None and (text := task.messages[-1].content) not in texts:
                    texts.add(text)
                    derived.append(task)
                    break
    return derived


def _single(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    name = generator.choice(catalogue.names)
    asked = ask(catalogue, name, generator)
    if asked is None:
        return None
    count = generator.choice((0, 0, 1, 2, 2, MAX_DISTRACTORS))
    others = distractors(catalogue, {name}, count, generator)
    others = [o for o in others if o.name != asked.variant.name]
    request = wording.request(asked.act, list(asked.mentions.values()), generator)
    return task_of([asked], request, others, "single_step", number, generator)


def _parallel(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    count = generator.choice((2, 2, 2, 3, 3, 4, 5))
    style = generator.choice(("listed", "listed", "same", "different", "different", "mixed"))
    found = _found(catalogue, style, count, generator)
    asked = [a for a in found if a is not None]
    if len(asked) < max(2, len(found)) or _clash(asked):
        return None
    request = None
    if style == "listed":
        asked, request = _listed(asked, generator)
    if any(a.call in [b.call for b in asked[:i]] for i, a in enumerate(asked)):
        return None
    if style != "different" and not all(a.mentions for a in asked[:-1]):
        return None
    if request is None:
        same = style in ("listed", "same")
        clauses = [a.clause(generator) for a in asked]
        again = _again(asked, generator) if same and generator.random() < 0.6 else None
        request = again or wording.several(clauses, generator)
    names = {a.variant.original for a in asked}
    others = distractors(catalogue, names, generator.choice((0, 0, 1, 2)), generator)
    others = [o for o in others if o.name not in {a.variant.name for a in asked}]
    return task_of(asked, request, others, "parallel", number, generator)


def _found(
    catalogue: Catalogue, style: str, count: int, generator: random.Random
) -> list[Asked | None]:
    """Calls of different tools, of one tool, or (``mixed``) several of one and one of another."""
    chosen = generator.sample(catalogue.names, min(count, len(catalogue.names)))
    if style == "different":
        return [ask(catalogue, name, generator) for name in chosen]
    tool = catalogue.tools[chosen[0]]
    variant = vary(tool, generator.random() < RENAMED_SHARE, generator)
    alone = 1 if style == "mixed" and len(chosen) > 1 else 0
    found = [ask(catalogue, tool.name, generator, variant) for _ in range(max(count - alone, 2))]
    return found + [ask(catalogue, name, generator) for name in chosen[1 : 1 + alone]]


def _clash(asked: Sequence[Asked]) -> bool:
    """Whether two different tools got one name."""
    by_name: dict[str, str] = {}
    return any(
        by_name.setdefault(a.variant.name, a.variant.original) != a.variant.original for a in asked
    )


def _listed(asked: list[Asked], generator: random.Random) -> tuple[list[Asked], str | None]:
    """Calls that differ in one argument, asked for at once: ``… in Oslo, Lima and Perth``.

    Sometimes they differ in two: ``… in Oslo and Lima for 2 and 3 days, respectively``.
    """
    first = asked[0]
    slots = [s for s in first.variant.slots if s.name in first.mentions and _varies(asked, s)]
    if not slots:
        return asked, None
    count = 2 if len(slots) > 1 and generator.random() < RESPECTIVELY_SHARE else 1
    chosen = generator.sample(slots, count)
    mentions = dict(first.mentions)
    for slot in chosen:
        mentions[slot.name] = _several(
            slot, [a.call.arguments[slot.name] for a in asked], generator
        )
    calls = [
        {**first.call.arguments, **{s.name: a.call.arguments[s.name] for s in chosen}}
        for a in asked
    ]
    same = [
        Asked(first.variant, ToolCall(first.call.name, c), first.act, mentions, first.parent)
        for c in calls
    ]
    said = list(mentions.values())
    if count == 1:
        return same, wording.request(first.act, said, generator)
    clause = wording.clause(first.act, said, generator)
    return same, wording.sentence(f"{clause}, respectively", generator)


def _varies(asked: Sequence[Asked], slot: Slot) -> bool:
    """Whether each call has its own value for the argument, and they can be listed."""
    values = [a.call.arguments[slot.name] for a in asked if slot.name in a.call.arguments]
    plain = all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in values)
    if not plain or len({str(v) for v in values}) < len(asked) or is_share(slot.original):
        return False
    paired = category(slot.original, slot.schema) == "date" and len(_dates(asked[0])) > 1
    return not paired and not any("," in str(v) for v in values)  # each start needs its own end


def _several(slot: Slot, values: Sequence[Any], generator: random.Random) -> Mention:
    texts = [natural(v, slot.schema) if isinstance(v, str) else str(v) for v in values]
    said = mention(slot.original, slot.schema, values[0], generator, PLACE)
    return Mention(_joined(said.phrase, texts, generator), said.bare)


def _dates(asked: Asked) -> list[str]:
    slots = asked.variant.slots
    dated = [s.name for s in slots if category(s.original, s.schema) == "date"]
    return [name for name in dated if name in asked.call.arguments]


def _joined(phrase: str, texts: Sequence[str], generator: random.Random) -> str:
    """The phrase with several values in its place; each is quoted where one would be.

    Values for one call each are never put in brackets, which would make them one list.
    """
    for quote in ("'", '"'):
        if f"{quote}{PLACE}{quote}" in phrase:
            phrase = phrase.replace(f"{quote}{PLACE}{quote}", PLACE)
            texts = [f"{quote}{t}{quote}" for t in texts]
    both = "both " if len(texts) == 2 and generator.random() < 0.3 else ""
    return phrase.replace(PLACE, both + listing(texts, generator))


def _again(asked: Sequence[Asked], generator: random.Random) -> str | None:
    """One request for the first call, ``do the same …`` for the others; all say all their values."""
    if any(a.act != asked[0].act or not a.mentions for a in asked):
        return None
    if len({tuple(a.call.arguments) for a in asked}) > 1:
        return None  # "the same" would include what only the first call has
    first = wording.request(asked[0].act, list(asked[0].mentions.values()), generator)
    first = first if first.endswith((".", "?")) else first + "."
    rest = [
        wording.clause(generator.choice(("do the same", "repeat this")), list(ms), generator)
        for ms in (a.mentions.values() for a in asked[1:])
    ]
    body = rest[0] if len(rest) == 1 else f"{', '.join(rest[:-1])} and {rest[-1]}"
    return f"{first} {generator.choice(('Then', 'Also', 'After that'))} {body}."
