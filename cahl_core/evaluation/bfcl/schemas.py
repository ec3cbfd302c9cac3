"""BFCL's function documents as tools with JSON Schema, for prompts and validity; not for checkers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahl_core.records import ToolSpec

JSON_TYPES = {
    "dict": "object",
    "float": "number",
    "tuple": "array",
    **{t: t for t in ("string", "integer", "number", "boolean", "array", "object", "null")},
}


def tool(function: Mapping[str, Any]) -> ToolSpec:
    """One function document as a tool; its ``response``, where it has one, is what the tool returns."""
    returns = json_schema(function["response"]) if "response" in function else None
    parameters = json_schema(function["parameters"])
    return ToolSpec(function["name"], function["description"], parameters, returns)


def json_schema(schema: Any) -> dict[str, Any]:
    """``dict`` is object, ``float`` number, ``tuple`` array; ``any`` and unknown names have no type.

    >>> json_schema({"type": "tuple", "items": {"type": "float"}, "optional": True})
    {'type': 'array', 'items': {'type': 'number'}}
    """
    if not isinstance(schema, Mapping):
        return {}
    result: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "type":
            if value in JSON_TYPES:
                result["type"] = JSON_TYPES[value]
        elif key == "properties" and isinstance(value, Mapping):
            result["properties"] = {name: json_schema(field) for name, field in value.items()}
        elif key == "items":
            result["items"] = json_schema(value)
        elif key == "required":
            if isinstance(value, list):
                result["required"] = value
        elif key != "optional":
            result[key] = value
    return result
