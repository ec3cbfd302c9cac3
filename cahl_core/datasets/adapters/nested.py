"""Adapters: nested calls. NesTools, Seal-Tools (``API_call_k``) and MTU-Bench (``Tool.field``).

``API_call_k`` is the k-th response field, counted from 0 over all calls of a record; it becomes
``$varN.field$`` of the call that returns it. Gold stays one call per step, in the source's order.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cahl_core.datasets.adapters.base import ReadLimits, converted
from cahl_core.datasets.adapters.build import Record, extras, tools_of
from cahl_core.datasets.adapters.chat import DATES
from cahl_core.datasets.adapters.conversation import Messages
from cahl_core.datasets.adapters.text import arguments_of, balanced, literal
from cahl_core.datasets.raw import read_raw
from cahl_core.datasets.references import has_reference

RESPONSE = re.compile(r"\bAPI_call_(\d+)\b")
WORD = re.compile(r"[a-z0-9]{3,}")
INSTRUCTION = re.compile(r'task_instruction = "(.*)"\s*\n\s*Output:\s*$', re.DOTALL)
SEAL_FILES = ("dev.jsonl", "train.jsonl", "test_*.jsonl")
TURN = re.compile(r"(?:^|\n)[ \t]*(User|Assistant|Action|Thought|Observation)\s*:", re.IGNORECASE)
NAMED_INPUT = re.compile(r"([^\n{]+)\n\s*Action Input:\s*(\{.*\})", re.DOTALL)
LISTED = "you can use:"
FIELD = re.compile(r"(\S[^.$]*?)\.([\w/\- ]+)")


def nestools(value: Any, source: str, record_id: str) -> Record:
    """``{"test_id", "api", "task", "call", "field"}``."""
    tools, meta = tools_of(value["api"])
    if value.get("test_id") is not None:
        record_id = f"{source}-{value['test_id']}"
    meta |= extras(value, ("test_id", "api", "task", "call", "id"))
    return {
        "id": record_id,
        "source": source,
        "messages": [{"role": "user", "content": value["task"]}],
        "tools": tools,
        "answers": [[call] for call in nested_calls(value["call"], tools)],
        "meta": meta,
    }


def nested_calls(entries: Sequence[Mapping[str, Any]], tools: Sequence[Record]) -> list[Record]:
    """The calls with ``$varN.field$`` for ``API_call_k``; ValueError where no call gives the k-th."""
    returned = {
        tool["function"]["name"]: list(
            (tool["function"].get("returns") or {}).get("properties", {})
        )
        for tool in tools
    }
    places: dict[str, str] = {}
    for number, entry in enumerate(entries, 1):
        names = entry.get("responses") or []
        fields = returned.get(_api(entry), [])
        for position, name in enumerate(names):
            field = fields[position] if position < len(fields) else None
            if field is not None:
                places[name] = f"$var{number}.{field}$"
    return [
        {"name": _api(e), "arguments": _mapped(arguments_of(e.get("parameters")), places)}
        for e in entries
    ]


def _api(entry: Mapping[str, Any]) -> str:
    name = entry["api_name"] if "api_name" in entry else entry["api"]
    if not isinstance(name, str):
        raise ValueError(f"a call's name is {type(name).__name__}, must be text")
    return name


def _mapped(value: Any, places: Mapping[str, str]) -> Any:
    """``value`` with references for the names of responses, at any depth."""
    if isinstance(value, dict):
        return {key: _mapped(item, places) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, places) for item in value]
    return RESPONSE.sub(lambda m: _place(m[0], places), value) if isinstance(value, str) else value


def _place(name: str, places: Mapping[str, str]) -> str:
    if name not in places:
        raise ValueError(f"{name} is the response of no call")
    return places[name]


def read_seal_tools(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """Records of Seal-Tools, ids ``<source>-<id>``.

    ``dataset_for_finetune/*.json`` holds the five candidate tools of each request in its prompt and
    is read if it is there; else ``{dev,train,test_*}.jsonl``, whose calls have no candidates. A gold
    tool that was no candidate comes from ``tool.jsonl`` (``meta.gold_tool_added_to_candidates``).
    """
    known = _known_tools(folder, limits)
    offered = sorted(folder.rglob("dataset_for_finetune/*.json"))
    files = [f"{p.parent.name}/{p.name}" for p in offered]
    patterns = tuple(files) or SEAL_FILES

    def convert(value: Any, source: str, record_id: str) -> Record:
        return seal_tools(value, source, record_id, known)

    for number, raw in enumerate(read_raw(folder, limits.record_chars, patterns)):
        yield from converted(convert, raw, source, f"{source}-{number}", limits)


def _known_tools(folder: Path, limits: ReadLimits) -> dict[str, Record]:
    """The entries of ``tool.jsonl`` by name; empty where there is no such file."""
    values = [raw.value for raw in read_raw(folder, limits.record_chars, ("tool.jsonl",))]
    return {v["api_name"]: v for v in values if isinstance(v, dict) and "api_name" in v}


def seal_tools(value: Any, source: str, record_id: str, known: Mapping[str, Record]) -> Record:
    """A fine-tuning conversation, or ``{"id", "query", "calling"}`` with the tools of ``known``."""
    if "conversations" in value:
        prompt, gold = (turn["value"] for turn in value["conversations"][:2])
        request = INSTRUCTION.search(prompt)
        start = prompt.index("api_list = ") + len("api_list = ")
        candidates = literal(prompt[start : balanced(prompt, start)])
        query, calling = (request[1] if request else prompt), literal(gold)
    else:
        query, calling, candidates = value["query"], value["calling"], []
    names = {entry["api_name"] for entry in candidates}
    missing = [name for name in dict.fromkeys(_api(c) for c in calling) if name not in names]
    added = [known[name] for name in missing if name in known]
    tools, meta = tools_of([*candidates, *added])
    calls = nested_calls(calling, tools)
    if candidates and added:
        meta["gold_tool_added_to_candidates"] = True
    if ungrounded := unsaid(calls, query):
        meta["ungrounded"] = ungrounded
    if isinstance(value.get("id"), str):
        record_id = f"{source}-{value['id']}"
        meta["split"] = re.split(r"-(?:easy|difficult)", value["id"])[0]
    meta |= extras(value, ("id", "conversations", "query", "calling"))
    return {
        "id": record_id,
        "source": source,
        "messages": [{"role": "user", "content": query}],
        "tools": tools,
        "answers": [[call] for call in calls],
        "meta": meta,
    }


def unsaid(calls: Sequence[Record], request: str) -> list[str]:
    """Arguments ("call.argument") with a word of three or more characters that nobody wrote."""
    text = request.lower()
    return [
        f"{number}.{name}"
        for number, call in enumerate(calls, 1)
        for name, value in call["arguments"].items()
        if not has_reference(value) and any(w not in text for w in WORD.findall(str(value).lower()))
    ]


def mtu_bench(value: Any, source: str, record_id: str) -> Record:
    """``{"id", "question", "answer": {tool: arguments}}``; tools and history are in the question."""
    question = value["question"]
    start = question.index(LISTED) + len(LISTED)
    start += len(question[start:]) - len(question[start:].lstrip())
    end = balanced(question, start)
    tools, meta = tools_of(_mtu_tools(literal(question[start:end])))
    date = DATES.search(question[:start])
    messages: Messages = [{"role": "system", "content": date.group().strip()}] if date else []
    rest = question[end:].replace("History Dialog:", "", 1)
    messages += [m for m in _mtu_turns(rest) if m is not None]
    if isinstance(value.get("id"), str):
        split = value["id"].partition("_")[0]
        record_id, meta["split"] = f"{source}-{split}-{value['id']}", split
    meta |= extras(value, ("id", "question", "answer"))
    return {
        "id": record_id,
        "source": source,
        "messages": messages,
        "tools": tools,
        "answers": [[call] for call in _mtu_calls(value["answer"])],
        "meta": meta,
    }


def _mtu_tools(listed: Any) -> list[Record]:
    """The source's tool entries in the OpenAI form; some lists share one set of parameters."""
    shared = listed.get("available_parameters", []) if isinstance(listed, dict) else []
    entries = listed["apis"] if isinstance(listed, dict) else listed
    return [_mtu_tool(entry, shared) for entry in entries]


def _mtu_tool(entry: Mapping[str, Any], shared: Any) -> Record:
    required = _fields(entry.get("required_parameters") or [])
    optional = _fields(entry.get("optional_parameters") or shared)
    return {
        "name": entry["name"].strip().rstrip("."),
        "description": entry.get("description", ""),
        "parameters": {
            "type": "object",
            "properties": required | optional,
            "required": list(required),
        },
        "returns": {
            "type": "object",
            "properties": _fields(entry.get("result_parameters") or []),
        },
    } | extras(entry, ("name", "description", "required_parameters", "optional_parameters",
                       "result_parameters"))  # fmt: skip


def _fields(given: Any) -> dict[str, Record]:
    """Parameters as a list of names, a list of schemas with names, or a map of names to defaults."""
    if isinstance(given, Mapping):
        return {name: {"default": default} for name, default in given.items()}
    found: dict[str, Record] = {}
    for entry in given:
        named = {"name": entry} if isinstance(entry, str) else entry
        found[named["name"]] = {k: v for k, v in named.items() if k != "name"}
    return found


def _mtu_turns(text: str) -> Iterator[Record | None]:
    parts = TURN.split(text)
    for kind, said in zip(parts[1::2], parts[2::2], strict=True):
        turn: Callable[[str], Record | None] = TURNS[kind.lower()]
        yield turn(said.strip())


def _action(text: str) -> Record | None:
    """The calls of an earlier turn; text that holds none is kept beside an empty message."""
    if not text:
        return None
    if match := NAMED_INPUT.fullmatch(text):
        text = f'{{"{match[1].strip()}": {match[2]}}}'
    try:
        calls = literal(text)
        if calls == {}:
            return None
        found = [{"name": n.strip(), "arguments": arguments_of(a)} for n, a in calls.items()]
    except (ValueError, AttributeError):
        return {"role": "assistant", "content": "", "tool_call_text": text}
    return {"role": "assistant", "content": "", "tool_calls": found}


TURNS: dict[str, Callable[[str], Record | None]] = {
    "user": lambda text: {"role": "user", "content": text},
    "assistant": lambda text: {"role": "assistant", "content": text},
    "thought": lambda text: {"role": "assistant", "content": "", "reasoning": text},
    "observation": lambda text: {"role": "tool", "content": text},
    "action": _action,
}


def _mtu_calls(answer: Any) -> list[Record]:
    """Gold calls in order; ``Tool.field`` of an earlier call of the answer becomes a reference."""
    calls: list[Record] = []
    for name, given in answer.items():
        numbers = {call["name"]: n for n, call in enumerate(calls, 1)}
        arguments = {key: _field(v, numbers) for key, v in arguments_of(given).items()}
        calls.append({"name": name.strip().rstrip("."), "arguments": arguments})
    return calls


def _field(value: Any, numbers: Mapping[str, int]) -> Any:
    match = FIELD.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None or match[1] not in numbers:
        return value
    return f"$var{numbers[match[1]]}.{match[2]}$"
