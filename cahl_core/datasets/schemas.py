"""JSON Schema of tools as sources write it, to JSON Schema 2020-12 with one set of type names.

    str, String -> string      int -> integer      float, double -> number      bool -> boolean
    dict, map   -> object      list, tuple, set, List[x] -> array (+ items)
    Union[a, b], Optional[a], "a or b" -> anyOf    "a, optional" -> a + x-optional
    any other type name        -> no type + x-original-type

What is no valid keyword value is kept under ``x-<keyword>``; ``$ref`` stays as it is. Every function
is idempotent, and its result satisfies the meta-schema of draft 2020-12.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

Schema = dict[str, Any]

MAX_DEPTH = 24  # the validator itself needs about ten frames a level
TYPES = {
    "str": "string", "string": "string", "text": "string", "char": "string",
    "int": "integer", "integer": "integer", "long": "integer", "int32": "integer",
    "int64": "integer", "float": "number", "double": "number", "number": "number",
    "bool": "boolean", "boolean": "boolean", "dict": "object", "map": "object",
    "object": "object", "hashmap": "object", "dictionary": "object", "list": "array",
    "tuple": "array", "set": "array", "array": "array", "arraylist": "array",
    "sequence": "array", "none": "null", "null": "null",
}  # fmt: skip
OPTIONAL = re.compile(r"\s*,\s*optional\b.*$", re.IGNORECASE | re.DOTALL)
GENERIC = re.compile(r"(?:typing\.)?(\w+)\s*(?:\[(.*)\]|\((.*)\)|<(.*)>)", re.DOTALL)
ONE_SCHEMA = (
    "items", "additionalProperties", "not", "if", "then", "else", "contains", "propertyNames",
    "unevaluatedItems", "unevaluatedProperties",
)  # fmt: skip
SCHEMA_LISTS = ("anyOf", "allOf", "oneOf", "prefixItems")
SCHEMA_MAPS = ("$defs", "definitions", "patternProperties", "dependentSchemas")
# keywords whose value is only valid in some form; annotations that take any value are not here
CHECKED = (
    "$id", "$schema", "$ref", "$anchor", "$dynamicRef", "$dynamicAnchor", "$vocabulary",
    "$comment", "title", "description", "readOnly", "writeOnly", "deprecated", "format",
    "contentEncoding", "contentMediaType", "contentSchema", "multipleOf", "maximum", "minimum",
    "exclusiveMaximum", "exclusiveMinimum", "maxLength", "minLength", "pattern", "maxItems",
    "minItems", "uniqueItems", "maxContains", "minContains", "maxProperties", "minProperties",
    "dependentRequired", "dependencies", "enum", "examples", "$recursiveRef", "$recursiveAnchor",
)  # fmt: skip


def normalise_parameters(schema: Any) -> Schema:
    """The schema of a tool's parameters: an object with ``properties`` and ``required``.

    Takes a JSON Schema, a bare map ``{name: schema}``, a list of ``{"name", "type", …}``, or nothing.
    Raises ValueError when it is none of these or nested more than `MAX_DEPTH` deep.
    """
    if schema in (None, "", [], {}):
        return {"type": "object", "properties": {}, "required": []}
    if isinstance(schema, list):
        schema = {entry["name"]: _without(entry, "name") for entry in schema}
    if not isinstance(schema, Mapping):
        raise ValueError(f"parameters are {type(schema).__name__}, must be an object")
    if not _is_schema(schema):
        schema = {"type": "object", "properties": dict(schema)}
    found = normalise(schema)
    found.setdefault("properties", {})
    found.setdefault("required", [])
    return {"type": "object"} | found


def _without(entry: Mapping[str, Any], key: str) -> Schema:
    return {k: v for k, v in entry.items() if k != key}


def _is_schema(value: Mapping[str, Any]) -> bool:
    """Whether ``value`` is one schema rather than a map of parameter names to schemas.

    A parameter may be called "type" or "properties": then its value is one schema, not the name of a
    type or a map of schemas.
    """
    kind = value.get("type")
    if isinstance(kind, list) or (isinstance(kind, str) and "type" in normalise_type(kind)):
        return True
    properties = value.get("properties")
    fields = isinstance(properties, Mapping) and all(
        isinstance(field, Mapping | bool) for field in properties.values()
    )
    if fields and not isinstance(kind, Mapping):
        return True
    return isinstance(value.get("$ref"), str) or isinstance(value.get("anyOf"), list)


def normalise(schema: Any, depth: int = 0) -> Schema:
    """One schema with normalised types, its nested schemas included."""
    if depth > MAX_DEPTH:
        raise ValueError(f"a schema is nested more than {MAX_DEPTH} deep")
    if isinstance(schema, str):
        found = normalise_type(schema)
        return found if "x-original-type" not in found else {"description": schema}
    if schema is None or schema is True:
        return {}
    if schema is False:
        return {"not": {}}
    if not isinstance(schema, Mapping):
        raise ValueError(f"a schema is {type(schema).__name__}, must be an object")
    result: Schema = {}
    for key, value in schema.items():
        _put(result, str(key), value, depth)
    required = _required(schema, result)
    if required or isinstance(schema.get("required"), list):
        result["required"] = required
    return result


def _put(result: Schema, key: str, value: Any, depth: int) -> None:
    """Writes one keyword of a schema in its normalised form."""
    if key == "type":
        for name, found in _type(value, depth).items():
            result[name if name not in result else f"x-type-{name}"] = found
    elif key == "properties" and isinstance(value, Mapping):
        result[key] = {str(name): normalise(s, depth + 1) for name, s in value.items()}
    elif key == "required":
        if not isinstance(value, list | bool):
            result["x-required"] = value
    elif key == "optional" and isinstance(value, bool):
        if value:
            result["x-optional"] = True
    elif key in ONE_SCHEMA and isinstance(value, Mapping | str | bool):
        result[key] = value if isinstance(value, bool) else normalise(value, depth + 1)
    elif key == "items" and isinstance(value, list) and value:
        result["prefixItems"] = [normalise(s, depth + 1) for s in value]
    elif key in SCHEMA_LISTS and isinstance(value, list) and value:
        result[key] = [normalise(s, depth + 1) for s in value]
    elif key in SCHEMA_MAPS and isinstance(value, Mapping):
        result[key] = {str(name): normalise(s, depth + 1) for name, s in value.items()}
    else:
        result[key if _valid(key, value) else f"x-{key}"] = value


def _required(schema: Mapping[str, Any], result: Schema) -> list[str]:
    """The names that must be given: the schema's own list and its properties' own flags."""
    named = schema.get("required")
    names = [str(name) for name in named] if isinstance(named, list) else []
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and "properties" in result:
        flags = {str(k): s.get("required") for k, s in properties.items() if isinstance(s, Mapping)}
        names += [name for name, flag in flags.items() if flag is True]
    return list(dict.fromkeys(names))


def _type(value: Any, depth: int) -> Schema:
    """``type`` as keywords: a name, a list of names, or anything a source put there."""
    if isinstance(value, str):
        return normalise_type(value)
    if isinstance(value, list) and value:
        kinds = [_type(kind, depth + 1) for kind in value]
        names = [kind.get("type") for kind in kinds]
        if all(len(k) == 1 and isinstance(n, str) for k, n in zip(kinds, names, strict=True)):
            unique = list(dict.fromkeys(names))
            return {"type": unique[0] if len(unique) == 1 else unique}
        return {"anyOf": kinds}
    return {} if value in (None, []) else {"x-original-type": value}


def normalise_type(text: str, depth: int = 0) -> Schema:
    """The keywords that a type's name stands for.

    >>> normalise_type("List[str], optional")
    {'type': 'array', 'items': {'type': 'string'}, 'x-optional': True}
    >>> normalise_type("Union[int, float]"), normalise_type("Callable[[float], float]")
    ({'anyOf': [{'type': 'integer'}, {'type': 'number'}]}, {'x-original-type': 'Callable[[float], float]'})
    """
    if text in TYPES:
        return {"type": TYPES[text]}
    return copy.deepcopy(_parsed_type(text, depth))


@lru_cache(maxsize=4096)
def _parsed_type(text: str, depth: int) -> Schema:
    name, optional = OPTIONAL.subn("", text.strip())
    found = _named(name.strip(), depth) if depth <= MAX_DEPTH else None
    if found is None:
        return {"x-original-type": text}
    return found | ({"x-optional": True} if optional else {})


def _named(name: str, depth: int) -> Schema | None:
    plain = name.removeprefix("typing.").lower()
    if plain in TYPES:
        return {"type": TYPES[plain]}
    alternatives = [part for part in _split(name, "|") if part]
    if len(alternatives) < 2:
        alternatives = re.split(r"\s+or\s+", name) if "[" not in name else []
    if len(alternatives) > 1:
        return _any_of(alternatives, depth)
    match = GENERIC.fullmatch(name)
    return (
        _generic(match[1].lower(), match[2] or match[3] or match[4] or "", depth) if match else None
    )


def _generic(outer: str, inner: str, depth: int) -> Schema | None:
    parts = [part for part in _split(inner, ",") if part not in ("", "...")]
    if outer == "optional" and len(parts) == 1:
        return _any_of([parts[0], "null"], depth)
    if outer == "union" and parts:
        return _any_of(parts, depth)
    kind = TYPES.get(outer)
    if kind == "array":
        items = _any_of(parts, depth) if parts else None
        return {"type": "array", **({"items": items} if items else {})}
    return {"type": kind} if kind == "object" else None


def _any_of(names: list[str], depth: int) -> Schema | None:
    found = [normalise_type(name, depth + 1) for name in names]
    unique = [kind for index, kind in enumerate(found) if kind not in found[:index]]
    if all("x-original-type" in kind for kind in unique):
        return None if len(unique) > 1 else unique[0]
    return unique[0] if len(unique) == 1 else {"anyOf": unique}


def _split(text: str, separator: str) -> list[str]:
    """Parts of ``text`` at a separator outside brackets, stripped."""
    return [part.strip() for part in _parts(text, separator)]


def _parts(text: str, separator: str) -> Iterator[str]:
    level, start = 0, 0
    for position, char in enumerate(text):
        level += (char in "[(<{") - (char in "])>}")
        if char == separator and level == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _valid(key: str, value: Any) -> bool:
    """Whether ``value`` may stand under ``key`` in a schema; unknown keywords may hold anything."""
    if key == "enum":
        return isinstance(value, list) and bool(value)
    if key in ("title", "description", "$comment"):
        return isinstance(value, str)
    if key not in (*CHECKED, *ONE_SCHEMA, *SCHEMA_LISTS, *SCHEMA_MAPS, "properties", "const"):
        return True
    return key == "const" or _valid_text(key, json.dumps(value, sort_keys=True))


@lru_cache(maxsize=4096)
def _valid_text(key: str, value: str) -> bool:
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError

    try:
        Draft202012Validator.check_schema({key: json.loads(value)})
    except SchemaError:
        return False
    return True
