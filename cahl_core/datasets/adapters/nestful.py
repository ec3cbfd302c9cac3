"""Adapters: ComplexFuncBench and NESTFUL v1 (their common form) to `ToolTask` records.

Gold calls stay as the source has them, one per step, except that an identifier which the request
cannot give, but an earlier recorded response does, becomes a reference (`ground`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.datasets.adapters.base import ReadLimits, Record, malformed
from cahl_core.datasets.references import (
    MISSING,
    Reference,
    dependencies,
    first_path,
    has_reference,
    leaves,
    levels,
    occurs,
    prune,
    put,
    resolve,
    walk,
)
from cahl_core.errors import DataError
from cahl_core.files import read_json
from cahl_core.records import ToolCall

FINAL = "var_result"  # NESTFUL's last entry: what the answer is made of, not a call
FEW, SOME = 2, 5  # distractors: ComplexFuncBench's tools are long
TYPES = {
    "str": "string", "String": "string", "string": "string", "Date (yyyy-mm-dd)": "string",
    "int": "integer", "integer": "integer", "float": "number", "double": "number",
    "number": "number", "bool": "boolean", "boolean": "boolean", "dict": "object",
    "map": "object", "object": "object", "list": "array", "tuple": "array", "array": "array",
}  # fmt: skip
KEPT_KEYS = ("description", "items", "properties", "required", "format", "minimum", "maximum")
CLOCK = re.compile(r"\d{4}-\d\d-\d\d|\d{1,2}:\d\d(:\d\d)?")
MAX_RETURN_DEPTH = 2


def read_complexfuncbench(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """Yields the records of ComplexFuncBench in source order, ids ``<source>-<index>``."""
    tools = read_tools(folder / "complexfuncbench-spec.json")
    for index, raw in enumerate(_records(folder / "complexfuncbench-data.json")):
        yield convert(raw, source, f"{source}-{index}", tools, limits.result_chars, FEW)


def read_nestful(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """Yields the records of NESTFUL v1, ids ``<source>-<part>-<index>``."""
    parts = {"executable": "", "glaive": "non-executable-", "sgd": "non-executable-"}
    for part, prefix in parts.items():
        tools = read_tools(folder / f"{prefix}{part}-spec.json")
        for index, raw in enumerate(_records(folder / f"{prefix}{part}-data.json")):
            yield convert(raw, source, f"{source}-{part}-{index}", tools, limits.result_chars, SOME)


def _records(path: Path) -> list[Any]:
    records = read_json(path)
    if not isinstance(records, list):
        raise DataError(f"{path}: top level is {type(records).__name__}, must be a list of records")
    return records


def read_tools(path: Path) -> dict[str, Record]:
    """The OpenAI tool of every entry of a spec file, by name, in file order."""
    return {entry["name"]: _tool(entry) for entry in _records(path)}


def _tool(entry: Mapping[str, Any]) -> Record:
    raw = {**(entry.get("path_parameters") or {}), **(entry.get("query_parameters") or {})}
    function: Record = {
        "name": entry["name"],
        "description": (entry.get("description") or "").strip(),
        "parameters": {
            "type": "object",
            "properties": {name: _schema(schema) for name, schema in raw.items()},
            "required": [name for name, schema in raw.items() if schema.get("required") is True],
        },
    }
    if outputs := entry.get("output_parameters"):
        properties = {name: _returned(schema, 1) for name, schema in outputs.items()}
        function["returns"] = {"type": "object", "properties": properties}
    return {"type": "function", "function": function}


def _schema(raw: Mapping[str, Any]) -> Record:
    """JSON Schema of one parameter, with the source's type names normalised."""
    schema: Record = {}
    kind = raw.get("type")
    if kind in TYPES:
        schema["type"] = TYPES[kind]
    elif kind is not None:
        schema["x-original-type"] = kind
    for key in KEPT_KEYS:
        value = raw.get(key)
        if value in (None, [], {}, "") or (key == "required" and not isinstance(value, list)):
            continue
        schema[key] = _nested(key, value)
    if choices := raw.get("enum") or raw.get("allowed_values"):
        schema["enum"] = choices
    default = raw.get("default", raw.get("default_value"))
    if default is not None:
        schema["default"] = default
    return schema


def _nested(key: str, value: Any) -> Any:
    if key == "items" and isinstance(value, Mapping):
        return _schema(value)
    if key == "properties":
        return {name: _schema(s) for name, s in value.items() if isinstance(s, Mapping)}
    return value


def _returned(raw: Any, depth: int) -> Record:
    """Type and fields of a result; descriptions are left out, the names tell enough."""
    if not isinstance(raw, Mapping):  # a few fields are given as a bare type name
        return {"type": TYPES[raw]} if raw in TYPES else {}
    kind = TYPES.get(str(raw.get("type")))
    schema: Record = {"type": kind} if kind else {}
    fields = raw.get("properties")
    if isinstance(fields, Mapping) and fields and depth < MAX_RETURN_DEPTH:
        schema["properties"] = {name: _returned(s, depth + 1) for name, s in fields.items()}
    return schema


def convert(
    raw: Any,
    source: str,
    record_id: str,
    tools: Mapping[str, Record],
    max_result_chars: int,
    distractors: int,
) -> Record:
    """One source record as the JSON form of a `ToolTask`; checks come later, in `prepare`.

    A record without the source's form comes back as ``{"id", "source", "malformed": reason}``.
    """
    try:
        request = raw["input"].strip()
        entries = [c for c in raw["output"] if c["name"] != FINAL]
        calls = [ToolCall(c["name"], dict(c["arguments"])) for c in entries]
        labels = [c.get("label") for c in entries]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        return malformed(source, record_id, reason)
    responses = [c.get("response") for c in entries]
    calls, grounded, ungrounded = ground(calls, responses, request, tools)
    references = dependencies(calls)
    meta: Record = {
        "deps": [r.to_json() for r in references],
        "levels": levels(len(calls), references),
        "results": _pruned(responses, references, max_result_chars),
        "resolved": [resolve(c, responses, _parameters(tools.get(c.name))) for c in calls],
    }
    if grounded:
        meta["grounded"] = [r.to_json() for r in grounded]
    if ungrounded:
        meta["ungrounded"] = ungrounded
    if labels != [f"var{n}" for n in range(1, len(calls) + 1)]:
        meta["labels"] = labels
    return {
        "id": record_id,
        "source": source,
        "messages": [{"role": "user", "content": request}],
        "tools": _offered(calls, tools, record_id, distractors),
        "answers": [[call.to_json()] for call in calls],
        "meta": meta,
    }


def _parameters(tool: Record | None) -> Record:
    return dict(tool["function"]["parameters"]) if tool else {}


def _pruned(responses: Sequence[Any], references: Sequence[Reference], limit: int) -> list[Any]:
    return [
        None
        if response is None
        else prune(response, [r.path for r in references if r.source == number], limit)
        for number, response in enumerate(responses, 1)
    ]


def _offered(
    calls: Sequence[ToolCall], tools: Mapping[str, Record], record_id: str, count: int
) -> list[Record]:
    """The gold tools and ``count`` others of the same source, shuffled."""
    generator = random.Random(f"tools {record_id}")
    gold = sorted({call.name for call in calls} & set(tools))
    others = sorted(set(tools) - set(gold))
    names = gold + generator.sample(others, min(count, len(others)))
    generator.shuffle(names)
    return [tools[name] for name in names]


def ground(
    calls: Sequence[ToolCall],
    responses: Sequence[Any],
    request: str,
    tools: Mapping[str, Record],
) -> tuple[list[ToolCall], list[Reference], list[str]]:
    """Replaces constants that only an earlier response can have given by references to it.

    Returns:
        The calls; the references put in; the arguments ("call.argument") whose value comes from a
        later list item, a choice that no plan can make before it sees the results.
    """
    text = request.lower()
    grounded: list[Reference] = []
    ungrounded: list[str] = []
    result = []
    for number, call in enumerate(calls, 1):
        properties = _parameters(tools.get(call.name)).get("properties", {})
        arguments = dict(call.arguments)
        for name, value in leaves(call.arguments):
            if not _needs_grounding(value, text, properties.get(name) or {}):
                continue
            found = _find(str(value), responses[: number - 1])
            if found is not None:
                grounded.append(Reference(number, name, *found))
                arguments = put(arguments, name, f"$var{found[0]}.{found[1]}$")
            elif any(occurs(r, str(value)) for r in responses[: number - 1]):
                ungrounded.append(f"{number}.{name}")
        result.append(ToolCall(call.name, arguments))
    return result, grounded, ungrounded


def _needs_grounding(value: Any, text: str, schema: Mapping[str, Any]) -> bool:
    if isinstance(value, bool) or not isinstance(value, str | int | float) or has_reference(value):
        return False
    written = str(value)
    known = written.lower() in text or value in (schema.get("enum") or ())
    return len(written) > 2 and not known and CLOCK.fullmatch(written) is None


def _find(wanted: str, responses: Sequence[Any]) -> tuple[int, str] | None:
    """The latest earlier response with ``wanted`` at a path of first items."""
    for number in range(len(responses), 0, -1):
        path = first_path(responses[number - 1], wanted)
        if path is not None and walk(responses[number - 1], path) is not MISSING:
            return number, path
    return None
