"""One call with the words that ask for it: what derived tasks are put together from."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, timedelta
from typing import Any

from cahl_core.datasets import wording
from cahl_core.datasets.amounts import is_share
from cahl_core.datasets.catalogue import Catalogue
from cahl_core.datasets.mentions import Mention, mention, natural
from cahl_core.datasets.names import words
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.values import category, sample, sayable_text
from cahl_core.datasets.variation import Slot, Variant, vary
from cahl_core.records import Message, ToolCall, ToolTask

RENAMED_SHARE = 0.7
GOLD_VALUE_SHARE = 0.5
OPTIONAL_SHARE = 0.5
# what may stand where an action speaks of "a city": not addresses, ids and whole texts
WOVEN = {"place", "country", "language", "unit", "currency", "company", "title", "person", "query",
         "cuisine", "food", "sport", "shape", "venue", "genre", "enum", "other"}  # fmt: skip
ORDERED = (("start", "end"), ("from", "to"), ("in", "out"), ("depart", "return"),
           ("departure", "return"), ("min", "max"), ("minimum", "maximum"),
           ("pick", "drop"), ("pickup", "dropoff"))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Asked:
    """One call with the words that ask for it; ``mentions`` by argument."""

    variant: Variant
    call: ToolCall
    act: str
    mentions: dict[str, Mention]
    parent: ToolTask

    def clause(self, generator: random.Random) -> str:
        return wording.clause(self.act, list(self.mentions.values()), generator)


def ask(
    catalogue: Catalogue, name: str, generator: random.Random, variant: Variant | None = None
) -> Asked | None:
    """A call of the tool ``name`` with values from a gold call or drawn, and its words."""
    tool = catalogue.tools[name]
    if variant is None:
        variant = vary(tool, generator.random() < RENAMED_SHARE, generator)
    gold = catalogue.calls.get(name)
    parent = generator.choice(catalogue.parents[name])
    values: dict[str, Any] = {}
    if gold:
        parent, values = generator.choice(gold)
    share = 0.9 if generator.random() < GOLD_VALUE_SHARE else 0.2
    arguments: dict[str, Any] = {}
    for slot in variant.slots:
        if not slot.required and generator.random() > OPTIONAL_SHARE and len(variant.slots) > 1:
            continue
        value = _value(catalogue, name, slot, values, share, generator)
        if value is None and slot.required:
            return None
        if value is not None:
            arguments[slot.name] = value
    _put_in_order(variant, arguments, generator)
    act = wording.action(tool.name, tool.description, generator)
    return _say(variant, arguments, act, parent, generator)


def _put_in_order(variant: Variant, arguments: dict[str, Any], generator: random.Random) -> None:
    """Exchanges a start and an end, a smallest and a largest value that are the wrong way round.

    Dates that would be the same day or months apart get an end some days after the start.
    """
    slots = {" ".join(words(s.original)): s for s in variant.slots if s.name in arguments}
    for spoken, slot in slots.items():
        for first, last in ORDERED:
            parts = spoken.split()
            if first not in parts:
                continue
            other = slots.get(" ".join(last if p == first else p for p in parts))
            if other is None or category(slot.original, slot.schema) == "place":
                continue
            low, high = arguments[slot.name], arguments[other.name]
            if type(low) is not type(high) or not isinstance(low, str | int | float):
                continue
            low, high = min(low, high), max(low, high)
            if (
                category(slot.original, slot.schema)
                == "date"
                == category(other.original, other.schema)
            ):
                high = _end(str(low), str(high), generator)
            arguments[slot.name], arguments[other.name] = low, high


def _end(start: str, end: str, generator: random.Random) -> str:
    """``end``, or a day one to fourteen days after ``start`` where they are not a likely pair."""
    try:
        first, last = date.fromisoformat(start), date.fromisoformat(end)
    except ValueError:
        return end
    near = 0 < (last - first).days <= 60
    return end if near else (first + timedelta(days=generator.randint(1, 14))).isoformat()


def _say(
    variant: Variant,
    arguments: dict[str, Any],
    act: str,
    parent: ToolTask,
    generator: random.Random,
) -> Asked:
    """The words for a call: some values inside the action, the others mentioned after it."""
    slots = [s for s in variant.slots if s.name in arguments]
    texts = {
        s.original: natural(arguments[s.name], s.schema)
        for s in slots
        if isinstance(arguments[s.name], str) and category(s.original, s.schema) in WOVEN
    }
    act, woven = wording.weave(act, texts, generator)
    left = [s for s in slots if s.original not in woven]
    timed = any(category(s.original, s.schema) in ("date", "time") for s in left)
    if not timed and generator.random() < 0.3:
        generator.shuffle(left)
    mentions = {s.name: mention(s.original, s.schema, arguments[s.name], generator) for s in left}
    return Asked(variant, ToolCall(variant.name, arguments), act, mentions, parent)


def _value(
    catalogue: Catalogue,
    tool: str,
    slot: Slot,
    gold: Mapping[str, Any],
    share: float,
    generator: random.Random,
) -> Any:
    value = gold.get(slot.original)
    if generator.random() < share and _fits(value, slot):
        return int(value) if isinstance(value, float) and value.is_integer() else value
    return sample(slot.original, slot.schema, catalogue.seen[tool, slot.original], generator)


def _fits(value: Any, slot: Slot) -> bool:
    """Whether a gold value can stay: the variant's type, and short enough to be said."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool,
    }  # fmt: skip
    schema = slot.schema
    kind = kinds.get(str(schema.get("type")))
    if kind is None or not isinstance(value, kind) or is_share(slot.original):
        return False
    if isinstance(value, bool) != (schema.get("type") == "boolean"):
        return False
    if isinstance(value, str) and not sayable_text(value):
        return False
    return len(str(value)) <= 40 and value in (schema.get("enum") or [value])


def task_of(
    asked: Sequence[Asked],
    request: str,
    others: Sequence[Variant],
    kind: str,
    number: str,
    generator: random.Random,
) -> ToolTask:
    specs = {a.variant.name: a.variant.spec() for a in asked}
    tools = [*specs.values(), *(o.spec() for o in others if o.name not in specs)]
    generator.shuffle(tools)
    calls = [a.call for a in asked]
    parent = asked[0].parent
    task = ToolTask(
        id=f"{parent.id}--{kind}-{number}",
        source=parent.source,
        messages=(Message("user", request),),
        tools=tuple(tools),
        steps=tuple((call,) for call in calls),
        meta={
            "derived_from": parent.id,
            "derivation": kind,
            "deps": [],
            "levels": [0] * len(calls),
            "resolved": [call.arguments for call in calls],
        },
    )
    return with_plan(task)


def with_plan(task: ToolTask) -> ToolTask:
    """The task with the plan that its gold calls give."""
    return replace(task, plan=plan_from_gold(task))


def distractors(
    catalogue: Catalogue, names: set[str], count: int, generator: random.Random
) -> list[Variant]:
    """Other tools; the first two share a word with the wanted ones where there are such: hard choices."""
    wanted = {w for n in names for w in catalogue.topics[n]}
    near = catalogue.related(wanted, names)
    size = len(catalogue.names)
    drawn = [catalogue.names[generator.randrange(size)] for _ in range(4 * count)]
    pool = [*generator.sample(near, min(2, len(near))), *(n for n in drawn if n not in names)]
    variants: list[Variant] = []
    for name in dict.fromkeys(pool):
        if len(variants) == count:
            break
        variant = vary(catalogue.tools[name], generator.random() < RENAMED_SHARE, generator)
        if variant.name not in {v.name for v in variants}:
            variants.append(variant)
    return variants
