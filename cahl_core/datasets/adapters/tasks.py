"""Records that have the form of `ToolTask` already (`format: tool-tasks`), ours and the mirror's.

What other writers of this form call by another name is translated, nothing else is touched:

    meta.results_pruned    -> meta.results (cut to prepare.max_result_chars)
    meta.answers_resolved  -> meta.resolved: one object of arguments per call, in call order
    meta.ungrounded_args   -> meta.ungrounded: "call.argument"
    plan of {intent, text} -> meta.plan_texts: sub-task texts, not a plan with arguments
    meta.reference_response without gold calls -> also meta.answer
    meta.answer without tools and calls        -> also meta.derivation "qa"
    results as Python literals                 -> JSON values
    tools' keys beyond the form                -> meta.tool_extra
    source                 -> this source's name; the record's own goes to meta.origin
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahl_core.datasets.adapters.base import Record, malformed
from cahl_core.datasets.adapters.text import json_or_text, literal

TOOL_KEYS = ("name", "description", "parameters", "returns")


def convert(value: Any, source: str, record_id: str) -> Record:
    """The record under this source's name, its meta in this project's terms."""
    if not isinstance(value, dict):
        return malformed(source, record_id, f"is {type(value).__name__}, must be a JSON object")
    for key in ("messages", "tools", "answers"):
        if not isinstance(value.get(key, []), list):
            kind = type(value[key]).__name__
            own = value.get("id")
            own = own if isinstance(own, str) else record_id
            return malformed(source, own, f"field '{key}' is {kind}, must be a list")
    given = value.get("id", record_id)
    record = {**value, "id": given if isinstance(given, str) else str(given), "source": source}
    meta = value.get("meta")
    if meta is not None and not isinstance(meta, Mapping):
        return record  # `ToolTask.from_json` says what is wrong with it
    meta = dict(meta or {})
    named = value.get("source", source)
    if named != source:
        meta["origin_source" if "origin" in meta else "origin"] = named
    if "malformed" in record:  # the key that marks a record that could not be read
        meta["source_malformed"] = record.pop("malformed")
    record["meta"] = _translated(meta)
    _move_plan(record)
    _add_answer(record)
    _keep_tool_keys(record)
    return record


def _translated(meta: Record) -> Record:
    """Meta under our names; what we have already wins, and the other stays where it was."""
    if "results_pruned" in meta and "results" not in meta:
        meta["results"] = meta.pop("results_pruned")
    if "answers_resolved" in meta and "resolved" not in meta:
        steps = meta.pop("answers_resolved")
        meta["resolved"] = [call["arguments"] for step in steps for call in step]
    if "ungrounded_args" in meta and "ungrounded" not in meta:
        meta["ungrounded"] = [f"{call}.{name}" for call, name in meta.pop("ungrounded_args")]
    if isinstance(meta.get("results"), list):
        meta["results"] = [_result(result) for result in meta["results"]]
    return meta


def _result(value: Any) -> Any:
    """A recorded result as a JSON value; a text that is none stays as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("{", "[")):
        return value
    found = json_or_text(value)
    if not isinstance(found, str):
        return found
    try:
        return literal(value)
    except ValueError:
        return value


def _move_plan(record: Record) -> None:
    plan = record.get("plan")
    if isinstance(plan, list) and plan and all(_is_text(entry) for entry in plan):
        record["meta"]["plan_texts"] = record.pop("plan")


def _is_text(entry: Any) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("text"), str) and "task" not in entry


def _add_answer(record: Record) -> None:
    meta = record["meta"]
    if record.get("answers") != []:
        return
    if meta.get("reference_response") and "answer" not in meta:
        meta["answer"] = meta["reference_response"]
    if meta.get("answer") is not None and record.get("tools") == []:
        meta.setdefault("derivation", "qa")


def _keep_tool_keys(record: Record) -> None:
    """Keys of a tool that `ToolSpec` has no field for; malformed tools are left to the rules."""
    left: Record = {}
    tools = record.get("tools")
    for tool in tools if isinstance(tools, list) else []:
        function = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            continue
        extra = {k: v for k, v in function.items() if k not in TOOL_KEYS}
        if function is not tool:
            extra |= {k: v for k, v in tool.items() if k not in ("type", "function")}
        extra.pop("type", None)
        if extra:
            left[str(function.get("name"))] = extra
    if left:
        record["meta"].setdefault("tool_extra", left)
