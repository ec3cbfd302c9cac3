"""Whether texts, schemas, values and reference graphs can be used at all; pure functions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any

# NUL and other control characters (not tab, newline, return), bidirectional overrides and isolates
# (U+202A-202E, U+2066-2069), and halves of surrogate pairs, which UTF-8 cannot hold
FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# the same in JSON text, where control characters are written as escapes
SUSPICIOUS = re.compile("[\x7f\u202a-\u202e\u2066-\u2069\ud800-\udfff]|\\\\u00[01]|\\\\[bf]")
REASON = 160


def texts(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every string of a JSON value with its path, keys included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield f"{path} (key)", str(key)
            yield from texts(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from texts(item, f"{path}[{index}]")


def control_characters(value: Any) -> str | None:
    """Where a JSON value holds a character that can hide or break text, or ``None``.

    >>> control_characters({"a": ["x", "b\\u202ec"]})
    'a[1]: U+202E at position 1'
    """
    if SUSPICIOUS.search(json.dumps(value, ensure_ascii=False)) is None:
        return None
    for path, text in texts(value):
        if (found := FORBIDDEN.search(text)) is not None:
            return f"{plain(path)}: U+{ord(found[0]):04X} at position {found.start()}"
    return None


def without_control_characters(value: Any) -> tuple[Any, int]:
    """A JSON value without such characters, and how many there were.

    >>> without_control_characters([{"a": "x\u202cy"}])
    ([{'a': 'xy'}], 1)
    """
    if isinstance(value, str):
        cleaned, count = FORBIDDEN.subn("", value)
        return cleaned, count
    if isinstance(value, Mapping):
        pairs = {k: without_control_characters(v) for k, v in value.items()}
        return {k: v for k, (v, _) in pairs.items()}, sum(n for _, n in pairs.values())
    if isinstance(value, list):
        items = [without_control_characters(v) for v in value]
        return [v for v, _ in items], sum(n for _, n in items)
    return value, 0


def _list_of(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(type(v) in kinds for v in value)


# fields of meta that preparation reads, and what each must be; all others are free
META: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "results": ("a list", lambda v: isinstance(v, list)),
    "resolved": ("a list of objects or null", _list_of(dict, type(None))),
    "levels": ("a list of whole numbers", _list_of(int)),
    "deps": ("a list of objects", _list_of(dict)),
    "ungrounded": ("a list of texts", _list_of(str)),
    "plan_texts": ("a list of objects", _list_of(dict)),
    "distractors": ("a list", lambda v: isinstance(v, list)),
    "missing": ("an object", lambda v: isinstance(v, dict)),
    "answer": ("a text", lambda v: isinstance(v, str)),
    "derivation": ("a text", lambda v: isinstance(v, str)),
    "weight": ("a number from 0 on", lambda v: type(v) in (int, float) and v >= 0),
}
PER_CALL = ("results", "resolved", "levels")


def meta_problem(meta: Mapping[str, Any], calls: int) -> str | None:
    """What field of ``meta`` does not have its form, or ``None``.

    >>> meta_problem({"levels": [0, "x"]}, 2), meta_problem({"levels": [0]}, 0)
    ('meta.levels must be a list of whole numbers', 'meta.levels has 1 entries for 0 calls')
    """
    for name, (form, holds) in META.items():
        value = meta.get(name)
        if value is None:
            continue
        if not holds(value):
            return f"meta.{name} must be {form}"
        if name in PER_CALL and len(value) > calls:  # the last ones may be missing
            return f"meta.{name} has {len(value)} entries for {calls} calls"
    return None


def plain(text: str) -> str:
    """``text`` with forbidden characters written as ``\\\\uXXXX``, so that a report can show it."""
    return FORBIDDEN.sub(lambda m: f"\\u{ord(m[0]):04x}", text)


@lru_cache(maxsize=16384)
def schema_problem(schema: str) -> tuple[str, str] | None:
    """The rule that a parameter schema (JSON text) breaks and how, or ``None``.

    A usable schema describes an object, is valid under JSON Schema 2020-12, and refers only to
    definitions of its own that do not lead back to themselves.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    value = json.loads(schema)
    if value.get("type", "object") != "object":
        return "tool_without_schema", f"the type is {value['type']!r}, must be 'object'"
    if not isinstance(value.get("properties", {}), dict):
        return "tool_without_schema", "'properties' is not an object"
    if plainly_valid(value):
        return None
    try:
        Draft202012Validator.check_schema(value)
    except (SchemaError, RecursionError) as error:
        return "tool_without_schema", str(getattr(error, "message", error))[:REASON]
    return reference_problem(value)


def plainly_valid(schema: Any) -> bool:
    """Whether a schema uses only `PLAIN` keywords, each as JSON Schema 2020-12 wants it.

    The check against the meta-schema takes milliseconds, and nearly every tool is as plain as this.
    """
    return isinstance(schema, dict) and all(
        key.startswith("x-") or (key in PLAIN and PLAIN[key](value))
        for key, value in schema.items()
    )


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _names(value: Any) -> bool:
    return (
        isinstance(value, list)
        and all(isinstance(v, str) for v in value)
        and len(set(value)) == len(value)
    )


TYPES = ("string", "integer", "number", "boolean", "object", "array", "null")
PLAIN: dict[str, Callable[[Any], bool]] = {
    "type": lambda v: (
        v in TYPES if isinstance(v, str) else bool(v) and _names(v) and set(v) <= {*TYPES}
    ),
    "description": lambda v: isinstance(v, str),
    "title": lambda v: isinstance(v, str),
    "format": lambda v: isinstance(v, str),
    "default": lambda v: True,
    "enum": lambda v: isinstance(v, list),
    "minimum": _number,
    "maximum": _number,
    "required": _names,
    "items": plainly_valid,
    "properties": lambda v: isinstance(v, dict) and all(map(plainly_valid, v.values())),
}


def reference_problem(schema: Any) -> tuple[str, str] | None:
    """The rule that the ``$ref`` of a schema break: remote, dangling or recursive; or ``None``."""
    edges: dict[str, list[str]] = {}
    pending = ["#"]
    while pending:
        pointer = pending.pop()
        if pointer in edges:
            continue
        target = _pointed(schema, pointer)
        if target is None:
            return "tool_without_schema", f"$ref '{pointer}' points to nothing"
        edges[pointer] = list(_refs(target))
        for ref in edges[pointer]:
            if not ref.startswith("#"):
                return "remote_schema", f"$ref '{ref}'"
        pending += edges[pointer]
    numbers = {pointer: n for n, pointer in enumerate(edges)}
    graph = [(numbers[a], numbers[b]) for a, found in edges.items() for b in found]
    nested = [(numbers[a], numbers[b]) for a in edges for b in edges if _inside(a, b)]
    cycle = find_cycle(graph + nested)
    if cycle:
        names = list(edges)
        return "recursive_schema", "$ref " + " -> ".join(names[n] for n in cycle)
    return None


def _inside(pointer: str, other: str) -> bool:
    """Whether what ``pointer`` names contains what ``other`` names, other than the root's definitions."""
    return pointer not in (other, "#") and other.startswith(f"{pointer}/")


def _pointed(schema: Any, pointer: str) -> Any:
    value = schema
    for part in pointer.removeprefix("#").strip("/").split("/"):
        key = part.replace("~1", "/").replace("~0", "~")
        if not key:
            continue
        value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            return None
    return value


def _refs(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if key in ("$ref", "$dynamicRef") and isinstance(item, str):
                yield item
            elif key not in ("$defs", "definitions"):
                yield from _refs(item)
    elif isinstance(value, list):
        for item in value:
            yield from _refs(item)


def value_problem(schema: str, value: str) -> str | None:
    """Why an object does not satisfy its schema (both JSON texts), or ``None``."""
    error = next(_validator(schema).iter_errors(json.loads(value)), None)
    if error is None:
        return None
    path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error.absolute_path)
    return f"{path.lstrip('.')}: {error.message}"[:REASON]


@lru_cache(maxsize=16384)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # an empty registry: what a schema refers to elsewhere is never fetched
    return Draft202012Validator(json.loads(schema), registry=Registry())


def find_cycle(edges: Sequence[tuple[int, int]]) -> list[int]:
    """One cycle of a directed graph as its nodes, first repeated at the end; empty if there is none.

    >>> find_cycle([(2, 1), (3, 2), (1, 3)]), find_cycle([(2, 1), (3, 1)]), find_cycle([(1, 1)])
    ([1, 3, 2, 1], [], [1, 1])
    """
    following: dict[int, list[int]] = {}
    for a, b in edges:
        following.setdefault(a, []).append(b)
    done: set[int] = set()
    for start in sorted(following):
        path = [start]
        ahead = [iter(following.get(start, ()))]
        while path:
            node = next(ahead[-1], None)
            if node is None:
                done.add(path.pop())
                ahead.pop()
            elif node in path:
                return [*path[path.index(node) :], node]
            elif node not in done:
                path.append(node)
                ahead.append(iter(following.get(node, ())))
    return []
