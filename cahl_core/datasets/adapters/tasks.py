"""Records that have the form of `ToolTask` already (`format: tool-tasks`)."""

from __future__ import annotations

from typing import Any

from cahl_core.datasets.adapters.base import Record, malformed


def convert(value: Any, source: str, record_id: str) -> Record:
    """The record under this source's name; what its own ``source`` said goes to ``meta.origin``."""
    if not isinstance(value, dict):
        return malformed(source, record_id, f"is {type(value).__name__}, must be a JSON object")
    meta = value.get("meta")
    named = value.get("source", source)
    if named != source and isinstance(meta, dict | None):
        meta = {"origin": named, **(meta or {})}
    given = value.get("id", record_id)
    record_id = given if isinstance(given, str) else str(given)
    return {**value, "id": record_id, "source": source, "meta": {} if meta is None else meta}
