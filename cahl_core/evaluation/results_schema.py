"""The form of results.json, by version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahl_core.errors import DataError

VERSION = 1
_INTERVAL = {
    "type": "object",
    "required": ["value", "low", "high", "method"],
    "properties": {k: {"type": ["number", "null"]} for k in ("value", "low", "high")},
}
_PART: dict[str, Any] = {
    "type": "object",
    "required": [
        "n",
        "attempts",
        "accuracy",
        "wilson",
        "pass_at",
        "measures",
        "scores",
        "outcomes",
    ],
    "properties": {
        "n": {"type": "integer"},
        "accuracy": _INTERVAL,
        **{
            k: {"type": "object", "additionalProperties": _INTERVAL}
            for k in ("pass_at", "measures", "scores")
        },
    },
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["version", "config", "git", "versions", "seeds", "models", "benchmarks", "prompts",
                 "results", "paired", "definitions"],
    "properties": {
        "config": {"type": "object"},
        "versions": {"type": "object"},
        "seeds": {"type": "object"},
        "models": {"type": "object", "additionalProperties": {
            "type": "object", "required": ["folder"], "properties": {"folder": {"type": "string"}}}},
        "benchmarks": {"type": "object", "additionalProperties": {
            "type": "object",
            "required": ["title", "protocol", "notes", "data", "counts", "evaluated", "items_digest"],
            "properties": {"notes": {"type": "array", "items": {"type": "string"}}}}},
        "prompts": {"type": "object"},
        "results": {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": {
            **_PART, "required": [*_PART["required"], "by_category", "own"],
            "properties": {**_PART["properties"],
                           "by_category": {"type": "object", "additionalProperties": _PART}}}}},
        "paired": {"type": "object"},
    },
}  # fmt: skip


def validate(results: Any, where: str) -> None:
    """Refuses what is not of this version's form.

    Raises:
        DataError: names the place within the file.
    """
    import jsonschema

    version = results.get("version") if isinstance(results, Mapping) else None
    if version != VERSION:
        raise DataError(
            f"{where}: results of version {version!r}; this program reads version {VERSION}",
            "evaluate again; records that are still in the cache are not generated anew",
        )
    errors = jsonschema.Draft202012Validator(SCHEMA).iter_errors(results)
    for error in sorted(errors, key=lambda e: list(map(str, e.absolute_path))):
        place = "/".join(map(str, error.absolute_path)) or "the whole"
        raise DataError(
            f"{where}: {place}: {error.message[:300]}", "the file is damaged: evaluate again"
        )
