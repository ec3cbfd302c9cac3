"""References between calls (``$varN.path$``): find, resolve, and cut results around them.

A path walks objects by key and lists by ``[index]``; where a list is met without an index, its
first item is taken.
"""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cahl_core.files import dump_json
from cahl_core.records import ToolCall

REFERENCE = re.compile(r"\$var(\d+)(?:\.?([^$]*))?\$")
STEP = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
MISSING = object()
CUTS = ((4, 3, 80), (3, 2, 60), (3, 1, 40), (2, 1, 30), (1, 1, 20))  # depth, list items, text


@dataclass(frozen=True, slots=True)
class Reference:
    """Argument ``arg`` of call ``call`` is the value at ``path`` in the result of ``source``."""

    call: int
    arg: str
    source: int
    path: str

    def to_json(self) -> dict[str, Any]:
        return {"call": self.call, "arg": self.arg, "from": self.source, "path": self.path}


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """All scalar leaves with their paths, depth first."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]")
    else:
        yield path, value


def whole_reference(value: Any) -> tuple[int, str] | None:
    """``(call number, path)`` if ``value`` is one reference and nothing else.

    >>> whole_reference("$var2.items[0].id$"), whole_reference("5 * $var1.rate$")
    ((2, 'items[0].id'), None)
    """
    match = REFERENCE.fullmatch(value) if isinstance(value, str) else None
    return (number_of(match[1]), match[2] or "") if match else None


def number_of(digits: str) -> int:
    """Of digits that a model may have written: more of them than any index has are one large number."""
    return int(digits) if len(digits) < 10 else 10**9


def has_reference(value: Any) -> bool:
    """Whether a text holds a reference anywhere, or something cut from one (``$var1.x``)."""
    return isinstance(value, str) and re.search(r"\$var\d", value) is not None


def dependencies(calls: Sequence[ToolCall]) -> list[Reference]:
    """Every whole-value reference of the calls, numbered from 1."""
    return [
        Reference(number, arg, *found)
        for number, call in enumerate(calls, 1)
        for arg, value in leaves(call.arguments)
        if (found := whole_reference(value)) is not None
    ]


def levels(count: int, references: Sequence[Reference]) -> list[int]:
    """Depth of each call in the dependency graph; calls of one level are independent."""
    depth = [0] * count
    for number in range(1, count + 1):
        sources = [r.source for r in references if r.call == number and 0 < r.source < number]
        depth[number - 1] = 1 + max((depth[s - 1] for s in sources), default=-1)
    return depth


def walk(value: Any, path: str) -> Any:
    """The value at ``path``, or `MISSING`.

    >>> walk([{"a": [{"b": 1}, {"b": 2}]}], "a.b"), walk({"a": [{"b": 1}, {"b": 2}]}, "a[1].b")
    (1, 2)
    """
    for match in STEP.finditer(path):
        index, key = match[1], match[2]
        if index is not None:
            items = value if isinstance(value, list) else []
            value = items[number_of(index)] if number_of(index) < len(items) else MISSING
        else:
            while isinstance(value, list):
                value = value[0] if value else MISSING
            value = value.get(key, MISSING) if isinstance(value, Mapping) else MISSING
        if value is MISSING:
            return MISSING
    return value


def resolve(call: ToolCall, results: Sequence[Any], schema: Mapping[str, Any]) -> Any:
    """The call's arguments with values for references, or ``None`` if one cannot be resolved.

    Values take the JSON type that ``schema`` (the tool's parameters) wants where that is exact.
    """
    properties = schema.get("properties") or {}
    resolved: dict[str, Any] = {}
    for name, value in call.arguments.items():
        filled = _fill(value, results)
        if filled is MISSING:
            return None
        wanted = properties.get(name)
        kind = wanted.get("type") if isinstance(wanted, Mapping) else None
        resolved[name] = filled if filled == value else as_type(filled, kind)
    return resolved


def _fill(value: Any, results: Sequence[Any]) -> Any:
    if isinstance(value, Mapping):
        items = {k: _fill(v, results) for k, v in value.items()}
        return MISSING if any(v is MISSING for v in items.values()) else items
    if isinstance(value, list):
        filled = [_fill(v, results) for v in value]
        return MISSING if any(v is MISSING for v in filled) else filled
    found = whole_reference(value)
    if found is None:
        return MISSING if has_reference(value) else value
    number, path = found
    if not 0 < number <= len(results) or results[number - 1] is None:
        return MISSING
    return walk(results[number - 1], path)


def as_type(value: Any, kind: Any) -> Any:
    """``value`` as the JSON type ``kind`` if the conversion is exact, else ``value``.

    >>> as_type(12, "string"), as_type("2.5", "number"), as_type("x", "number")
    ('12', 2.5, 'x')
    """
    if kind == "string" and isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if kind in ("number", "integer") and isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        if not math.isfinite(number):  # "nan" and "infinity" are words
            return value
        if number.is_integer():
            return int(number)
        return number if kind == "number" else value
    return value


def first_path(value: Any, wanted: str, path: str = "") -> str | None:
    """The path of the first leaf equal to ``wanted`` as text, walking only first list items."""
    while isinstance(value, list):
        value = value[0] if value else None
    if isinstance(value, Mapping):
        for key, item in value.items():
            if STEP.fullmatch(str(key)) is None or "$" in str(key):
                continue
            found = first_path(item, wanted, f"{path}.{key}" if path else str(key))
            if found is not None:
                return found
        return None
    return path if path and _same(value, wanted) else None


def occurs(value: Any, wanted: str) -> bool:
    """Whether any leaf of ``value`` equals ``wanted`` as text."""
    if isinstance(value, Mapping):
        return any(occurs(item, wanted) for item in value.values())
    if isinstance(value, list):
        return any(occurs(item, wanted) for item in value)
    return _same(value, wanted)


def _same(value: Any, wanted: str) -> bool:
    return value is not None and not isinstance(value, bool) and str(value) == wanted


def put(container: Any, path: str, value: Any) -> Any:
    """A copy of ``container`` with ``value`` at an existing ``path`` as `leaves` gives it.

    >>> put({"a": [{"b": 1}]}, "a[0].b", 2)
    {'a': [{'b': 2}]}
    """
    copied = copy.deepcopy(container)
    steps = [number_of(m[1]) if m[1] is not None else m[2] for m in STEP.finditer(path)]
    target = copied
    for step in steps[:-1]:
        target = target[step]
    target[steps[-1]] = value
    return copied


def prune(value: Any, paths: Sequence[str], limit: int) -> Any:
    """``value`` cut to about ``limit`` characters of JSON; what is at ``paths`` is always kept.

    Lists keep at most three items (more only up to a referenced index), long texts and deep parts
    go first. The result may exceed ``limit`` only by what ``paths`` need.
    """
    keep = [p for p in paths if walk(value, p) is not MISSING]
    for depth, items, text in CUTS:
        cut = _graft(_trim(value, depth, items, text), value, keep)
        if len(dump_json(cut)) <= limit:
            return cut
    return _graft(_empty(value), value, keep)


def _trim(value: Any, depth: int, items: int, text: int) -> Any:
    if isinstance(value, Mapping):
        if depth <= 0:
            return {}
        kept = {k: _trim(v, depth - 1, items, text) for k, v in value.items()}
        return {k: v for k, v in kept.items() if v not in ({}, [], None, "")}
    if isinstance(value, list):
        return [_trim(v, depth, items, text) for v in value[:items]] if depth > 0 else []
    if isinstance(value, str) and len(value) > text:
        return ""
    return value


def _empty(value: Any) -> Any:
    return [] if isinstance(value, list) else {} if isinstance(value, Mapping) else value


def _graft(cut: Any, full: Any, paths: Sequence[str]) -> Any:
    """Puts the values at ``paths`` of ``full`` back into ``cut``."""
    for path in paths:
        if not path:
            return full
        cut = _put(cut, full, [(m[1], m[2]) for m in STEP.finditer(path)])
    return cut


def _put(cut: Any, full: Any, steps: list[tuple[str | None, str | None]]) -> Any:
    if not steps:
        return full
    index, key = steps[0]
    if isinstance(full, list):
        position = number_of(index) if index is not None else 0
        rest = steps[1:] if index is not None else steps
        items = list(cut) if isinstance(cut, list) else []
        items += [_empty(item) for item in full[len(items) : position + 1]]
        items[position] = _put(items[position], full[position], rest)
        return items
    fields = dict(cut) if isinstance(cut, Mapping) else {}
    fields[key] = _put(fields.get(key), full[key], steps[1:])
    # the order of the source, so that pruning does not depend on the order of the paths
    return {k: fields[k] for k in full if k in fields}
