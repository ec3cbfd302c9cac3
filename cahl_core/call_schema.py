"""Whether a call fits its tool's JSON Schema, and why not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from cahl_core.canonical import leaves
from cahl_core.datasets.references import REFERENCE
from cahl_core.records import ToolCall, ToolSpec

LONGEST = 200  # of a fault's sentence, in characters


def fits_schema(call: ToolCall, tools: Sequence[ToolSpec]) -> bool:
    """Known tool, no unknown argument, none missing, JSON types right (references have any type)."""
    spec = next((t for t in tools if t.name == call.name), None)
    if spec is None or _name_fault(call, spec) is not None:
        return False
    return _faults(_schema(spec), _concrete(call), False) is None


def schema_fault(call: ToolCall, tools: Sequence[ToolSpec]) -> str | None:
    """What `fits_schema` objects to, as a sentence, or ``None``.

    >>> tool = ToolSpec("f", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
    >>> schema_fault(ToolCall("f", {"a": "1"}), [tool])
    "argument 'a': '1' is not of type 'integer'"
    >>> schema_fault(ToolCall("g", {}), [tool])
    "tool 'g' does not exist"
    """
    spec = next((t for t in tools if t.name == call.name), None)
    if spec is None:
        return f"tool '{call.name}' does not exist"[:LONGEST]
    return _name_fault(call, spec) or _faults(_schema(spec), _concrete(call), True)


def _name_fault(call: ToolCall, spec: ToolSpec) -> str | None:
    if unknown := sorted(call.arguments.keys() - spec.properties.keys()):
        return f"unknown argument {', '.join(map(repr, unknown))}"[:LONGEST]
    if missing := sorted(set(spec.required) - call.arguments.keys()):
        return f"required argument {', '.join(map(repr, missing))} is missing"[:LONGEST]
    return None


def _concrete(call: ToolCall) -> dict[str, Any]:
    """The arguments that hold no reference: only their types are known."""
    return {
        name: value
        for name, value in call.arguments.items()
        if not any(isinstance(v, str) and REFERENCE.fullmatch(v) for v in leaves(value))
    }


def _schema(spec: ToolSpec) -> str:
    return json.dumps({"type": "object", "properties": spec.properties}, sort_keys=True)


def _faults(schema: str, value: dict[str, Any], describe: bool) -> str | None:
    """The first fault of ``value``, only "fault" unless it is to be described, or ``None``."""
    from referencing.exceptions import Unresolvable

    validator = _validator(schema)
    try:
        if validator.is_valid(value):
            return None
        error = next(validator.iter_errors(value)) if describe else None
    except Unresolvable as unresolvable:
        return f"the tool's schema refers to what is not in it: {unresolvable}"[:LONGEST]
    except OverflowError:  # jsonschema divides: an integer of 400 digits by 0.01
        return "a number is too large to be judged"
    if error is None:
        return "fault"
    name = error.absolute_path[0] if error.absolute_path else ""
    return f"argument '{name}': {error.message}"[:LONGEST]


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from referencing import Registry

    # an empty registry: a $ref in somebody's tool must not make us fetch what it points to
    return Draft202012Validator(json.loads(schema), registry=Registry())
