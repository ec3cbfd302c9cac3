"""Variants of a tool: other names, fewer optional arguments, varied types.

There are only some 170 tools in the sources. With names that change from task to task, a model has
to read the tool list instead of learning the tools by heart.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.datasets.amounts import is_decimal, is_share, share_note, unit_note
from cahl_core.datasets.names import words
from cahl_core.datasets.values import COUNTS, category
from cahl_core.records import ToolSpec

VERBS: dict[str, tuple[str, ...]] = {
    "get": ("get", "fetch", "retrieve", "lookup"),
    "find": ("find", "search", "locate", "lookup"),
    "search": ("search", "find", "query", "lookup"),
    "calculate": ("calculate", "compute", "calc", "get"),
    "create": ("create", "add", "make", "new"),
    "generate": ("generate", "create", "make"),
    "convert": ("convert", "convert", "change"),
    "book": ("book", "reserve"),
    "reserve": ("reserve", "book"),
    "buy": ("buy", "purchase", "order"),
    "analyze": ("analyze", "analyse", "inspect"),
    "send": ("send", "send", "post"),
    "check": ("check", "verify", "get"),
    "play": ("play", "start"),
    "schedule": ("schedule", "plan", "book"),
}
NOUNS: dict[str, tuple[str, ...]] = {
    "query": ("query", "search_term", "keyword", "text", "q"),
    "city": ("city", "location", "place", "town"),
    "location": ("location", "city", "place", "area"),
    "amount": ("amount", "value", "sum", "quantity"),
    "date": ("date", "day", "on_date"),
    "title": ("title", "name"),
    "text": ("text", "content", "input_text"),
    "number": ("number", "num", "n", "value"),
    "destination": ("destination", "to_city", "target"),
    "origin": ("origin", "from_city", "start"),
    "message": ("message", "body", "text"),
    "keyword": ("keyword", "term", "search_term"),
    "genre": ("genre", "category", "style"),
    "limit": ("limit", "max_results", "count"),
    "radius": ("radius", "distance", "within"),
    "language": ("language", "lang"),
    "target": ("target", "to", "dest"),
    "rate": ("rate", "ratio", "percent"),
    "weight": ("weight", "mass"),
    "height": ("height", "size"),
    "price": ("price", "cost", "amount"),
    "duration": ("duration", "length", "period"),
}
MAX_OPTIONAL = 3
MAX_NAME_WORDS = 6
NOTE_CHARS = 90
OPAQUE = {"key", "token", "slug", "entity", "sky", "dest", "function", "cursor", "pagination"}
RETRIEVED = re.compile(r"retrieved from|can be extracted|endpoint|`", re.I)


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument of a variant: its new name, its schema, and the name it has in the source."""

    name: str
    schema: dict[str, Any]
    required: bool
    original: str


@dataclass(frozen=True, slots=True)
class Variant:
    """A tool that a derived task may use; ``original`` is its name in the source."""

    name: str
    description: str
    slots: tuple[Slot, ...]
    original: str

    def spec(self) -> ToolSpec:
        return ToolSpec(
            self.name,
            self.description,
            {
                "type": "object",
                "properties": {s.name: s.schema for s in self.slots},
                "required": [s.name for s in self.slots if s.required],
            },
        )


def usable(tool: ToolSpec) -> bool:
    """Whether requests for the tool can be written: every required argument can be put in words."""
    return all(
        _sayable(tool.properties[name]) and not set(words(name)) & OPAQUE
        for name in tool.required
        if name in tool.properties
    )


def _sayable(schema: Any) -> bool:
    if not isinstance(schema, Mapping):
        return False
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items")
        return isinstance(items, Mapping) and items.get("type") in ("string", "integer", "number")
    return kind in (None, "string", "integer", "number", "boolean") and "anyOf" not in schema


def vary(tool: ToolSpec, rename: bool, generator: random.Random) -> Variant:
    """A variant of a usable tool; ``rename`` changes style and words of all its names."""
    style = generator.choice(STYLES) if rename else None
    slots: list[Slot] = []
    taken: set[str] = set()
    for name in _kept(tool, generator):
        new = argument_name(name, style, generator) if style else name
        if new in taken or new in tool.properties:
            new = name
        taken.add(new)
        schema = tidy(name, tool.properties[name], generator)
        slots.append(Slot(new, schema, name in tool.required, name))
    title = tool_name(tool.name, style, generator) if style else tool.name
    return Variant(title, _plain(tool.description, 160), tuple(slots), tool.name)


def _kept(tool: ToolSpec, generator: random.Random) -> list[str]:
    """Required arguments and a few optional ones, in the tool's order."""
    optional = [n for n, s in tool.properties.items() if n not in tool.required and _sayable(s)]
    if not tool.required and optional:  # a tool that is called with something
        generator.shuffle(optional)
    count = min(len(optional), generator.randint(0 if tool.required else 1, MAX_OPTIONAL))
    chosen = set(generator.sample(optional, count)) | set(tool.required)
    return [name for name in tool.properties if name in chosen]


def tidy(name: str, raw: Mapping[str, Any], generator: random.Random) -> dict[str, Any]:
    """The argument's schema with real types: numbers and booleans that the source has as text."""
    untyped = "integer" if "number" in words(name) and "phone" not in words(name) else "string"
    schema: dict[str, Any] = {"type": raw.get("type") or untyped}
    choices = list(raw.get("enum") or ())
    if choices and all(isinstance(c, str) and c.isdigit() for c in choices):
        schema["type"] = "integer"
    elif {str(c) for c in choices} == {"True", "False"}:
        schema["type"] = "boolean"
    elif choices:
        schema["enum"] = choices
    counted = set(words(name)) & COUNTS or words(name)[-1].endswith("s")
    if schema["type"] == "number" and generator.random() < (0.9 if counted else 0.3):
        schema["type"] = "integer"
    for key in ("items", "minimum", "maximum"):
        if key in raw:
            schema[key] = raw[key]
    if generator.random() < 0.9:
        note = str(raw.get("description") or "")
        own = " ".join(words(name))
        schema["description"] = (
            f"The {own}." if RETRIEVED.search(note) or not note else _plain(note, NOTE_CHARS)
        )
    if category(name, schema) == "date":
        schema["description"] = f"The {' '.join(words(name))} in YYYY-MM-DD format."
    elif schema["type"] in ("integer", "number"):
        note = schema.get("description", f"The {' '.join(words(name))}.")
        noted = share_note(note, generator) if is_share(name) else unit_note(name, note, generator)
        if noted != note:
            schema["description"] = noted
    if is_decimal(name, {**schema, "type": "number"}):
        schema["type"] = "number"
    return schema


def _plain(text: str, limit: int) -> str:
    text = " ".join(re.sub(r"[`*]", "", text).split())
    first = re.split(r"(?<=[.;])\s", text, maxsplit=1)[0]
    return first if len(first) <= limit else first[:limit].rsplit(" ", 1)[0]


def snake(parts: Sequence[str]) -> str:
    return "_".join(parts)


def camel(parts: Sequence[str]) -> str:
    return parts[0] + "".join(p.capitalize() for p in parts[1:])


def pascal_snake(parts: Sequence[str]) -> str:
    return "_".join(p.capitalize() for p in parts)


def dotted(parts: Sequence[str]) -> str:
    """``calculate loan payment`` → ``loan_payment.calculate``."""
    if len(parts) < 2:
        return snake(parts)
    head, tail = (parts[1:], parts[:1]) if parts[0] in VERBS else (parts[:1], parts[1:])
    return f"{snake(head)}.{snake(tail)}"


def module(parts: Sequence[str]) -> str:
    """``find hotel rooms`` → ``hotel_rooms_api.find_hotel_rooms``: long names have to be copied whole."""
    nouns = parts[1:] if parts[0] in VERBS and len(parts) > 1 else parts
    return f"{snake(nouns[:2])}_api.{snake(parts)}"


def nested(parts: Sequence[str]) -> str:
    """``find hotel rooms`` → ``hotel.rooms.find``."""
    head, tail = (parts[1:], parts[:1]) if parts[0] in VERBS else (parts[:-1], parts[-1:])
    return ".".join([*head, *tail]) if len(parts) < 4 else dotted(parts)


Style = Callable[[Sequence[str]], str]
STYLES: tuple[Style, ...] = (
    snake,
    snake,
    snake,
    camel,
    dotted,
    dotted,
    pascal_snake,
    nested,
    module,
)


def tool_name(name: str, style: Style, generator: random.Random) -> str:
    """The name in another style, with a synonym for its verb."""
    parts = [w for w in words(name) if w not in ("api", "com", "v1", "v2")] or ["tool"]
    parts = [generator.choice(VERBS[p]) if p in VERBS else p for p in parts]
    return style(parts[:MAX_NAME_WORDS])


def argument_name(name: str, style: Style, generator: random.Random) -> str:
    """The argument's name in a matching style, sometimes with a synonym for one of its words."""
    parts = words(name) or [name]
    if generator.random() < 0.5:
        chosen = generator.randrange(len(parts))
        parts[chosen : chosen + 1] = words(
            generator.choice(NOUNS.get(parts[chosen], (parts[chosen],)))
        )
    return camel(parts) if style is camel else snake(parts)
