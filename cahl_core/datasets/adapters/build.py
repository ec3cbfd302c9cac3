"""Putting a record together: tools, what has no field, and the facts that follow from gold calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from cahl_core.datasets.adapters.text import literal
from cahl_core.datasets.references import Reference, dependencies, levels, prune, resolve
from cahl_core.datasets.schemas import normalise, normalise_parameters
from cahl_core.errors import DataError
from cahl_core.files import dump_json
from cahl_core.records import ToolCall

Record = dict[str, Any]

NAMES = ("name", "api_name")
DESCRIPTIONS = ("description", "api_description")
PARAMETERS = ("parameters", "arguments", "input_schema", "inputSchema")
RETURNS = ("returns", "responses")
# what these keys of meta mean is fixed, so a source's own field of that name gets another
RESERVED = (
    "deps", "levels", "results", "resolved", "answer", "derived_from", "derivation", "form",
    "answer_at", "ungrounded", "grounded", "plan_texts", "required_known", "tool_extra", "origin",
)  # fmt: skip


def extras(value: Mapping[str, Any], used: Iterable[str]) -> Record:
    """The keys of a source record that have no field of their own, for ``meta``."""
    left = {k: v for k, v in value.items() if k not in set(used) and v is not None}
    return {f"source_{k}" if k in RESERVED else k: v for k, v in left.items()}


def own_id(value: Mapping[str, Any], source: str, record_id: str) -> str:
    """The record's own id; numbers get the source's name in front."""
    given = value.get("id")
    if isinstance(given, str) and given:
        return given
    number = isinstance(given, int) and not isinstance(given, bool)
    return f"{source}-{given}" if number else record_id


def tools_of(value: Any) -> tuple[list[Record], Record]:
    """The tools a record offers in the OpenAI form, and meta for the keys that have no field."""
    if isinstance(value, str):
        value = literal(value) if value.strip() else []
    if isinstance(value, Mapping):
        value = [value]
    tools, left = [], {}
    for entry in value or []:
        tool, extra = tool_of(entry)
        tools.append(tool)
        if extra:
            left[tool["function"]["name"]] = extra
    return tools, ({"tool_extra": left} if left else {})


def tool_of(entry: Any) -> tuple[Record, Record]:
    """One tool with normalised schemas, and what its entry says beyond the OpenAI form."""
    if isinstance(entry, str):
        entry = literal(entry)
    extra = {k: v for k, v in entry.items() if k not in ("type", "function")}
    function = entry.get("function")
    if not isinstance(function, Mapping):
        function, extra = {k: v for k, v in entry.items() if (k, v) != ("type", "function")}, {}
    name = _first(function, NAMES)
    if not isinstance(name, str):
        raise ValueError(f"a tool has no name: {sorted(map(str, function))}")
    parameters = normalise_parameters(_first(function, PARAMETERS))
    required = function.get("required")
    if isinstance(required, list):
        parameters["required"] = list(dict.fromkeys([*parameters["required"], *map(str, required)]))
    built: Record = {
        "name": name,
        "description": str(_first(function, DESCRIPTIONS) or ""),
        "parameters": parameters,
    }
    if isinstance(returns := _first(function, RETURNS), Mapping):
        built["returns"] = returns_of(returns)
    used = {*NAMES, *DESCRIPTIONS, *PARAMETERS, *RETURNS}
    used |= {"required"} if isinstance(required, list) else set()
    extra |= {k: v for k, v in function.items() if k not in used and v is not None}
    return {"type": "function", "function": built}, extra


def _first(entry: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), None)


def returns_of(value: Mapping[str, Any]) -> Record:
    """The schema of a result, from a schema or a bare map of its fields."""
    found = normalise_parameters(value)
    if not found["required"]:
        del found["required"]
    return normalise(found)


def complete(record: Record, limit: int) -> Record:
    """Adds what follows from the gold calls: ``deps``, ``levels``, ``resolved``, cut ``results``.

    What the record says itself stays. A result longer than ``limit`` characters of JSON is pruned,
    but what a later call refers to is always kept. Calls without the form of a call are left to the
    rules that come later.
    """
    calls = _calls(record)
    if not calls:
        return record
    meta = dict(record.get("meta") or {})
    found = [r.to_json() for r in dependencies(calls)]
    deps = meta.setdefault("deps", found)
    references = [Reference(d["call"], d["arg"], d["from"], d["path"]) for d in deps]
    meta.setdefault("levels", levels(len(calls), references))
    results = list(meta.pop("results", None) or [])
    results += [None] * (len(calls) - len(results))
    if "resolved" not in meta:
        meta["resolved"] = _resolved(calls, results, record["tools"])
    if any(result is not None for result in results):
        paths = [_paths(number, references, meta) for number in range(1, len(results) + 1)]
        meta["results"] = [shorten(r, p, limit) for r, p in zip(results, paths, strict=True)]
    return {**record, "meta": meta}


def _calls(record: Record) -> list[ToolCall]:
    try:
        return [ToolCall.from_json(c) for step in record.get("answers") or [] for c in step]
    except (DataError, TypeError):
        return []


def _resolved(calls: Sequence[ToolCall], results: Sequence[Any], tools: Any) -> list[Any]:
    functions = [tool.get("function", tool) for tool in tools]
    schemas = {f.get("name"): f.get("parameters") for f in functions}
    given = {name: s if isinstance(s, Mapping) else {} for name, s in schemas.items()}
    return [resolve(call, results, given.get(call.name, {})) for call in calls]


def _paths(number: int, references: Sequence[Reference], meta: Record) -> list[str]:
    """What later calls take from result ``number``; ``meta.selected`` holds choices made on it."""
    selected = meta.get("selected")
    chosen = selected.get(str(number)) if isinstance(selected, Mapping) else None
    implicit = [d for d in meta.get("implicit_deps") or [] if d.get("from") == number]
    paths = [r.path for r in references if r.source == number]
    paths += [d["path"] for d in implicit if isinstance(d.get("path"), str)]
    return paths + (list(chosen) if isinstance(chosen, Mapping) else [])


def shorten(result: Any, paths: Sequence[str], limit: int) -> Any:
    """A result of about ``limit`` characters: texts are cut at the end, the rest is pruned."""
    if result is None or len(dump_json(result)) <= limit:
        return result
    if isinstance(result, str):
        return result[: max(limit - 3, 1)] + "…"
    return prune(result, paths, limit)
