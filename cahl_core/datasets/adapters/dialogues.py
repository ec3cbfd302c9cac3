"""Adapters: annotated dialogues. Schema-Guided Dialogue (DSTC8) and Taskmaster-4.

Both give the dialogue form: the whole dialogue with gold calls and results in place and
``meta.answer_at``. Ids, messages and answers are those of ../shared/data; ``meta.deps`` follows the
same rule of string matches without being equal in every record.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cahl_core.datasets.adapters.base import ReadLimits, converted
from cahl_core.datasets.adapters.build import Record, extras
from cahl_core.datasets.adapters.conversation import Messages, task_of
from cahl_core.datasets.adapters.text import arguments_of, json_or_text
from cahl_core.datasets.raw import PATTERNS, RawRecord, read_raw
from cahl_core.errors import DataError
from cahl_core.files import read_json

TODAY = "Today is Friday, 2019-03-01."  # the day all dialogues of SGD take place
MAX_ROWS = 4  # rows of a result that are shown
Services = dict[str, Record]


def read_sgd(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """Dialogues of ``dialogues_*.json``, ids ``<source>-<dialogue_id>``, tools from ``schema.json``.

    Raises DataError when no schema.json lies beside the dialogues or above them.
    """
    schemas: dict[Path, Services] = {}
    for number, raw in enumerate(read_raw(folder, limits.record_chars, ("dialogues_*.json",))):
        file = raw.where.split("[")[0]
        place = (folder / file).parent
        if place not in schemas:
            schemas[place] = _schema_for(place, folder)

        def convert(
            value: Any, source: str, _: str, file: str = file, place: Path = place
        ) -> Record:
            return sgd(value, source, schemas[place], file)

        yield from converted(convert, raw, source, f"{source}-{number}", limits)


def _schema_for(place: Path, folder: Path) -> Services:
    for directory in (place, *place.parents):
        if (directory / "schema.json").is_file():
            return {s["service_name"]: s for s in read_json(directory / "schema.json")}
        if directory == folder:
            break
    raise DataError(
        f"{place}: no schema.json beside the dialogues or above them",
        "the tools of SGD are in schema.json: add it to the source's files",
    )


def sgd(value: Any, source: str, services: Services, file: str) -> Record:
    """One dialogue: a service_call becomes a call of ``<Service>_<Intent>``, all values are texts."""
    messages: Messages = [{"role": "system", "content": TODAY}]
    truncated = 0
    for turn in value["turns"]:
        for frame in turn["frames"]:
            if call := frame.get("service_call"):
                rows = frame.get("service_results") or []
                truncated += len(rows) > MAX_ROWS
                messages += _sgd_call(frame["service"], call, rows)
        role = "user" if turn["speaker"] == "USER" else "assistant"
        messages.append({"role": role, "content": turn["utterance"]})
    plan = list(_intents(value["turns"], services))
    meta: Record = {
        "services": value["services"],
        "tool_results_truncated": truncated,
        "file": file,
    }
    meta |= {"plan_texts": plan} if plan else {}
    meta |= extras(value, ("dialogue_id", "services", "turns"))
    tools = [
        _sgd_tool(services[name], intent)
        for name in value["services"]
        for intent in services[name]["intents"]
    ]
    return task_of(f"{source}-{value['dialogue_id']}", source, messages, tools, meta, dialogue=True)


def _sgd_call(service: str, call: Mapping[str, Any], rows: list[Any]) -> Messages:
    name = f"{service}_{call['method']}"
    arguments = {slot: str(v) for slot, v in (call.get("parameters") or {}).items()}
    return [
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"name": name, "arguments": arguments}],
        },
        {
            "role": "tool",
            "name": name,
            "content": json.dumps(rows[:MAX_ROWS], ensure_ascii=False),
        },
    ]


def _intents(turns: list[Any], services: Services) -> Iterator[Record]:
    """The user's successive active intents, each with the schema's description."""
    last = None
    for turn in turns:
        for frame in turn["frames"] if turn["speaker"] == "USER" else []:
            intent = (frame.get("state") or {}).get("active_intent", "NONE")
            if intent == "NONE" or (frame["service"], intent) == last:
                continue
            last = (frame["service"], intent)
            known = services[frame["service"]]["intents"]
            text = next((i["description"] for i in known if i["name"] == intent), intent)
            yield {"service": frame["service"], "intent": intent, "text": text}


def _sgd_tool(service: Record, intent: Record) -> Record:
    slots = {slot["name"]: slot for slot in service["slots"]}
    optional = intent["optional_slots"]
    defaults = optional if isinstance(optional, Mapping) else dict.fromkeys(optional)
    names = [*intent["required_slots"], *defaults]
    return {
        "type": "function",
        "function": {
            "name": f"{service['service_name']}_{intent['name']}",
            "description": f"{intent['description']} ({service['description']})",
            "parameters": {
                "type": "object",
                "properties": {n: _slot(slots.get(n, {}), defaults.get(n)) for n in names},
                "required": list(intent["required_slots"]),
            },
            "returns": {
                "type": "object",
                "properties": {n: {"type": "string"} for n in intent.get("result_slots", [])},
            },
        },
    }


def _slot(slot: Mapping[str, Any], default: Any) -> Record:
    schema: Record = {"type": "string", "description": slot.get("description", "")}
    values = list(slot.get("possible_values") or []) if slot.get("is_categorical") else []
    if values:
        added = [default] if default is not None and default not in values else []
        schema["enum"] = values + added
    if default is not None:
        schema["default"] = default
    return schema


def read_taskmaster(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """Dialogues of Taskmaster-4, ids ``<source>-<conversation_id>``.

    The source has no tool schemas: a first pass over the files derives them from the calls
    (``meta.tool_schema_derived``).
    """
    seen: dict[str, Seen] = {}
    for raw in _taskmaster_files(folder, limits):
        _observe(raw.value, seen)
    tools = {name: _derived(name, found) for name, found in seen.items()}

    def convert(value: Any, source: str, _: str) -> Record:
        return taskmaster(value, source, tools)

    for number, raw in enumerate(_taskmaster_files(folder, limits)):
        yield from converted(convert, raw, source, f"{source}-{number}", limits)


def _taskmaster_files(folder: Path, limits: ReadLimits) -> Iterator[RawRecord]:
    return read_raw(folder, limits.record_chars, PATTERNS)


def taskmaster(value: Any, source: str, tools: Mapping[str, Record]) -> Record:
    """One conversation: annotations of an utterance are the calls that follow it."""
    messages: Messages = []
    for utterance in value["utterances"]:
        role = "user" if utterance["speaker"] == "user" else "assistant"
        messages.append({"role": role, "content": utterance["text"]})
        for name, request, response in _annotated(utterance):
            call = {"name": name, "arguments": arguments_of(request)}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
            if response is not None:
                messages.append({"role": "tool", "name": name, "content": response})
    meta = extras(value, ("conversation_id", "vertical", "utterances"))
    meta["tool_schema_derived"] = True
    record_id = f"{source}-{value['conversation_id']}"
    return task_of(record_id, source, messages, list(tools.values()), meta, dialogue=True)


def _annotated(utterance: Mapping[str, Any]) -> Iterator[tuple[str, str, str | None]]:
    """Name, request text and response text of each call that an utterance is annotated with."""
    calls: dict[str, dict[str, str]] = {}
    for entry in utterance.get("annotations") or []:
        number = str(entry["context"]).rpartition("_")[2]
        calls.setdefault(number, {})[entry["name"]] = entry["value"]
    for call in calls.values():
        if "api_call" in call:
            if not isinstance(call["api_call"], str):
                raise ValueError(f"an api_call names no tool: {call['api_call']!r}")
            yield call["api_call"], call.get("request", ""), call.get("response")


class Seen:
    """What the calls of one tool show: types of arguments, how often each was given, result keys."""

    def __init__(self) -> None:
        self.calls = 0
        self.types: dict[str, list[str]] = {}
        self.given: dict[str, int] = {}
        self.returned: dict[str, None] = {}


def _observe(value: Any, seen: dict[str, Seen]) -> None:
    """Adds the calls of one conversation; what cannot be read is reported when it is converted."""
    utterances = value.get("utterances") if isinstance(value, dict) else None
    for utterance in utterances if isinstance(utterances, list) else []:
        try:
            for name, request, response in _annotated(utterance):
                _add(seen.setdefault(name, Seen()), arguments_of(request), response)
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _add(found: Seen, arguments: Record, response: str | None) -> None:
    found.calls += 1
    for name, value in arguments.items():
        kinds = found.types.setdefault(name, [])
        if (kind := _kind(value)) not in kinds:
            kinds.append(kind)
        found.given[name] = found.given.get(name, 0) + 1
    result = json_or_text(response) if isinstance(response, str) else None
    if isinstance(result, dict):
        found.returned |= dict.fromkeys(result)


def _kind(value: Any) -> str:
    for python, name in ((bool, "boolean"), (str, "string"), (int, "integer"), (float, "number"),
                         (list, "array"), (dict, "object")):  # fmt: skip
        if isinstance(value, python):
            return name
    return "null"


def _derived(name: str, found: Seen) -> Record:
    properties = {n: {"type": kinds[0] if len(kinds) == 1 else kinds}
                  for n, kinds in found.types.items()}  # fmt: skip
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": name.replace("_", " "),
            "parameters": {
                "type": "object",
                "properties": properties,
                "required": [n for n, count in found.given.items() if count == found.calls],
            },
            "returns": {"type": "object", "properties": {n: {} for n in found.returned}},
        },
    }
