"""How tool descriptions are written into prompts: JSON Schema, or a compact signature form.

The compact form keeps what a caller needs (names, types, what is required, allowed values, defaults,
the first clause of each description) in fewer tokens; `cahl prepare` measures both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from cahl_core.records import ToolSpec

Rendering = Literal["compact", "json"]

NOTE_CHARS = 64
MAX_CHOICES = 8
MAX_RETURNS = 8
MAX_DEPTH = 3


def render_tools(tools: Sequence[ToolSpec], rendering: Rendering) -> str:
    """One block of text that lists ``tools`` in the given rendering, in order."""
    if rendering == "json":
        return "\n".join(json.dumps(t.to_json()["function"], ensure_ascii=False) for t in tools)
    return "\n".join(signature(tool) for tool in tools)


def signature(tool: ToolSpec) -> str:
    """``name(arg: type, other?: type = default) - description`` and one line of parameter notes.

    >>> signature(ToolSpec("f", "Adds.", {"type": "object", "properties": {
    ...     "a": {"type": "integer", "description": "First."}, "b": {"type": "number", "default": 2}},
    ...     "required": ["a"]}))
    'f(a: integer, b?: number = 2) - Adds.\\n  a: First.'
    """
    required = set(tool.required)
    parts = []
    notes = []
    for name, schema in tool.properties.items():
        schema = schema if isinstance(schema, Mapping) else {}
        mark = "" if name in required else "?"
        default = schema.get("default")
        tail = "" if default in (None, "", [], {}) else f" = {json.dumps(default)}"
        shown = _one_line(name)
        parts.append(f"{shown}{mark}: {type_name(schema)}{tail}")
        if note := _first_clause(str(schema.get("description") or "")):
            notes.append(f"{shown}: {note}")
    head = f"{_one_line(tool.name)}({', '.join(parts)}){_returns(tool)}"
    if description := _squeeze(tool.description):
        head += f" - {description}"
    return head + (f"\n  {'; '.join(notes)}" if notes else "")


def type_name(schema: Mapping[str, Any], depth: int = 0) -> str:
    """A short name of a JSON Schema type: ``string``, ``integer[]``, ``{a: string, b?: number}``."""
    choices = schema.get("enum")
    if isinstance(choices, list) and choices:
        shown = "|".join(json.dumps(c, ensure_ascii=False) for c in choices[:MAX_CHOICES])
        return shown + ("|..." if len(choices) > MAX_CHOICES else "")
    for key in ("anyOf", "oneOf"):
        options = schema.get(key)
        if isinstance(options, list) and depth < MAX_DEPTH:
            names = [type_name(o, depth + 1) for o in options if isinstance(o, Mapping)]
            return "|".join(dict.fromkeys(names)) or "any"
    kind = schema.get("type", "any")
    if isinstance(kind, list):
        return "|".join(_one_line(k) for k in kind)
    if kind == "array":
        items = schema.get("items")
        nested = isinstance(items, Mapping) and depth < MAX_DEPTH
        return (type_name(items, depth + 1) if nested and items else "any") + "[]"
    properties = schema.get("properties")
    if kind == "object" and isinstance(properties, Mapping) and properties and depth < MAX_DEPTH:
        required = set(schema.get("required") or ())
        fields = (
            f"{_one_line(n)}{'' if n in required else '?'}: "
            + type_name(s if isinstance(s, Mapping) else {}, depth + 1)
            for n, s in properties.items()
        )
        return "{" + ", ".join(fields) + "}"
    return _one_line(kind)


def _returns(tool: ToolSpec) -> str:
    """Names of the result's fields, which a plan refers to as ``$varN.field$``."""
    names = _field_names(tool.returns or {}, 0)
    return f" -> {names}" if names else ""


def _field_names(schema: Mapping[str, Any], depth: int) -> str:
    if schema.get("type") == "array" and isinstance(schema.get("items"), Mapping):
        schema = schema["items"]
    properties = schema.get("properties")
    if not isinstance(properties, Mapping) or not properties or depth > 1:
        return ""
    fields = []
    for name, field in list(properties.items())[:MAX_RETURNS]:
        nested = _field_names(field, depth + 1) if isinstance(field, Mapping) else ""
        shown = _one_line(name)
        fields.append(f"{shown}: {nested}" if nested else shown)
    more = ", ..." if len(properties) > MAX_RETURNS else ""
    return "{" + ", ".join(fields) + more + "}"


def _one_line(name: Any) -> str:
    """A name as it stands, but for line breaks: each line of a listing is one tool's or its notes."""
    return " ".join(str(name).split())


def _squeeze(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _first_clause(text: str) -> str:
    """The first sentence, cut at a word boundary to NOTE_CHARS characters."""
    clause = re.split(r"(?<=[.;])\s", _squeeze(text), maxsplit=1)[0]
    if len(clause) <= NOTE_CHARS:
        return clause
    return clause[:NOTE_CHARS].rsplit(" ", 1)[0] + "..."
