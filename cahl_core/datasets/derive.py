"""One-call, parallel and declined requests derived from kept records by rule.

The sources hold long chains over few tools. Derived tasks add what is asked most often of a tool
caller: one call from a plain request (`single_step`), several independent calls (`parallel`), and a
request that none of the offered tools fits (`irrelevance`). Each names the record it was derived
from (``meta.derived_from``) and how (``meta.derivation``).
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.datasets import wording
from cahl_core.datasets.catalogue import Catalogue
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.values import sample
from cahl_core.datasets.variation import Slot, Variant, vary
from cahl_core.records import Message, ToolCall, ToolTask

KINDS = ("single_step", "parallel", "irrelevance")
RENAMED_SHARE = 0.7
GOLD_VALUE_SHARE = 0.3
OPTIONAL_SHARE = 0.5
MAX_DISTRACTORS = 3
ATTEMPTS = 20


@dataclass(frozen=True, slots=True)
class Asked:
    """One call with the words that ask for it."""

    variant: Variant
    call: ToolCall
    act: str
    mentions: dict[str, str]
    parent: ToolTask

    def clause(self, generator: random.Random) -> str:
        return wording.clause(self.act, list(self.mentions.values()), generator)


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
    makers = {"single_step": _single, "parallel": _parallel, "irrelevance": _irrelevance}
    derived = []
    texts: set[str] = set()
    for kind in KINDS:
        for number in range(counts.get(kind, 0)):
            generator = random.Random(f"{seed} {label} {kind} {number}")
            for _ in range(ATTEMPTS):
                task = makers[kind](catalogue, f"{label}-{number}", generator)
                if task is not None and task.messages[0].content not in texts:
                    texts.add(task.messages[0].content)
                    derived.append(task)
                    break
    return derived


def _ask(
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
    arguments: dict[str, Any] = {}
    for slot in variant.slots:
        if not slot.required and generator.random() > OPTIONAL_SHARE and len(variant.slots) > 1:
            continue
        value = _value(catalogue, name, slot, values, generator)
        if value is None and slot.required:
            return None
        if value is not None:
            arguments[slot.name] = value
    act = wording.action(tool.name, tool.description, generator)
    return _say(variant, arguments, act, parent, generator)


def _say(
    variant: Variant,
    arguments: dict[str, Any],
    act: str,
    parent: ToolTask,
    generator: random.Random,
) -> Asked:
    """The words for a call: some values inside the action, the others mentioned after it."""
    slots = [s for s in variant.slots if s.name in arguments]
    texts = {s.original: arguments[s.name] for s in slots if isinstance(arguments[s.name], str)}
    act, woven = wording.weave(act, texts, generator)
    left = [s for s in slots if s.original not in woven]
    if generator.random() < 0.3:
        generator.shuffle(left)
    mentions = {
        s.name: wording.mention(s.original, s.schema, arguments[s.name], generator) for s in left
    }
    return Asked(variant, ToolCall(variant.name, arguments), act, mentions, parent)


def _value(
    catalogue: Catalogue,
    tool: str,
    slot: Slot,
    gold: Mapping[str, Any],
    generator: random.Random,
) -> Any:
    value = gold.get(slot.original)
    if generator.random() < GOLD_VALUE_SHARE and _fits(value, slot.schema):
        return value
    return sample(slot.original, slot.schema, catalogue.seen[tool, slot.original], generator)


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether a gold value can stay: the variant's type, and short enough to be said."""
    kinds: dict[str, type | tuple[type, ...]] = {
        "string": str, "integer": int, "number": (int, float), "boolean": bool,
    }  # fmt: skip
    kind = kinds.get(str(schema.get("type")))
    if kind is None or not isinstance(value, kind):
        return False
    if isinstance(value, bool) != (schema.get("type") == "boolean"):
        return False
    opaque = isinstance(value, str) and len(value) > 16 and " " not in value
    return not opaque and len(str(value)) <= 40 and value in (schema.get("enum") or [value])


def _task(
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
    return ToolTask(
        task.id, task.source, task.messages, task.tools, task.steps, plan_from_gold(task), task.meta
    )


def _distractors(
    catalogue: Catalogue, names: set[str], count: int, generator: random.Random, related: bool
) -> list[Variant]:
    """Other tools: with ``related`` the first shares a word with the wanted ones, a hard choice."""
    pool = [n for n in catalogue.names if n not in names]
    generator.shuffle(pool)
    wanted = {w for n in names for w in catalogue.topics[n]}
    if related:
        pool.sort(key=lambda n: not wanted & catalogue.topics[n])
        pool = pool[:2] + generator.sample(pool[2:], len(pool) - 2) if len(pool) > 2 else pool
    variants: list[Variant] = []
    for name in pool:
        if len(variants) == count:
            break
        variant = vary(catalogue.tools[name], generator.random() < RENAMED_SHARE, generator)
        if variant.name not in {v.name for v in variants}:
            variants.append(variant)
    return variants


def _single(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    name = generator.choice(catalogue.names)
    asked = _ask(catalogue, name, generator)
    if asked is None:
        return None
    others = _distractors(
        catalogue, {name}, generator.choice((0, 0, 1, 2, 2, MAX_DISTRACTORS)), generator, True
    )
    others = [o for o in others if o.name != asked.variant.name]
    request = wording.sentence(asked.clause(generator), generator)
    return _task([asked], request, others, "single_step", number, generator)


def _parallel(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    count = generator.choice((2, 2, 2, 3, 3, 4))
    style = generator.choice(("listed", "listed", "same", "different", "different"))
    chosen = generator.sample(catalogue.names, min(count, len(catalogue.names)))
    if style == "different":
        found = [_ask(catalogue, name, generator) for name in chosen]
    else:
        tool = catalogue.tools[chosen[0]]
        variant = vary(tool, generator.random() < RENAMED_SHARE, generator)
        found = [_ask(catalogue, tool.name, generator, variant) for _ in range(count)]
    asked = [a for a in found if a is not None]
    if len(asked) < max(2, len(found)) or _clash(asked):
        return None
    request = None
    if style == "listed":
        asked, request = _listed(asked, generator)
    if any(
        asked[:i].count(a) or a.call in [b.call for b in asked[:i]] for i, a in enumerate(asked)
    ):
        return None
    request = request or wording.several([a.clause(generator) for a in asked], generator)
    names = {a.variant.original for a in asked}
    others = _distractors(catalogue, names, generator.choice((0, 0, 1, 2)), generator, True)
    others = [o for o in others if o.name not in {a.variant.name for a in asked}]
    return _task(asked, request, others, "parallel", number, generator)


def _clash(asked: Sequence[Asked]) -> bool:
    """Whether two different tools got one name."""
    by_name: dict[str, str] = {}
    return any(
        by_name.setdefault(a.variant.name, a.variant.original) != a.variant.original for a in asked
    )


def _listed(asked: list[Asked], generator: random.Random) -> tuple[list[Asked], str | None]:
    """Calls that differ in one argument, asked for at once: ``… in Oslo, Lima and Perth``."""
    first = asked[0]
    slots = [s for s in first.variant.slots if s.name in first.mentions]
    for slot in generator.sample(slots, len(slots)):
        values = [a.call.arguments[slot.name] for a in asked if slot.name in a.call.arguments]
        plain = all(isinstance(v, str | int | float) and not isinstance(v, bool) for v in values)
        if not plain or len({str(v) for v in values}) < len(asked):
            continue
        calls = [
            ToolCall(first.call.name, {**first.call.arguments, slot.name: value})
            for value in values
        ]
        text = wording.mention(
            slot.original, {"type": "string"}, wording.listing(values, generator), generator
        )
        mentions = {**first.mentions, slot.name: text}
        clause = wording.clause(first.act, list(mentions.values()), generator)
        same = [Asked(first.variant, call, first.act, mentions, first.parent) for call in calls]
        return same, wording.sentence(clause, generator)
    return asked, None


def _irrelevance(catalogue: Catalogue, number: str, generator: random.Random) -> ToolTask | None:
    """A request whose fitting tools were taken away; only tools of other topics are offered."""
    name = generator.choice(catalogue.names)
    asked = _ask(catalogue, name, generator)
    if asked is None:
        return None
    request = wording.sentence(asked.clause(generator), generator)
    gone = {name}
    if generator.random() < 0.3:
        request = asked.parent.messages[-1].content
        gone |= {call.name for call in asked.parent.calls}
    wanted = {w for n in gone if n in catalogue.tools for w in catalogue.topics[n]}
    wanted |= {w.strip(".,?!'").lower().rstrip("s") for w in request.split() if len(w) > 3}
    far = [n for n in catalogue.names if n not in gone and not catalogue.topics[n] & wanted]
    if not far:
        return None
    chosen = generator.sample(far, min(len(far), generator.choice((1, 1, 2, 3))))
    others = [
        vary(catalogue.tools[n], generator.random() < RENAMED_SHARE, generator) for n in chosen
    ]
    if len({o.name for o in others}) != len(others):
        return None
    return _declined(asked.parent, request, others, number)


def _declined(parent: ToolTask, request: str, others: Sequence[Variant], number: str) -> ToolTask:
    meta = {"derived_from": parent.id, "derivation": "irrelevance", "deps": [], "levels": []}
    return with_plan(
        ToolTask(
            id=f"{parent.id}--irrelevance-{number}",
            source=parent.source,
            messages=(Message("user", request),),
            tools=tuple(o.spec() for o in others),
            steps=(),
            meta={**meta, "resolved": []},
        )
    )
