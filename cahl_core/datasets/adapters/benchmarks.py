"""Adapters: two published environments. API-Bank's own samples and tau-bench's task files.

tau-bench is Python source: it is read with `ast`, literals only, and never imported.
"""

from __future__ import annotations

import ast
import csv
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from cahl_core.datasets.adapters.base import FAULTS, ReadLimits, malformed
from cahl_core.datasets.adapters.build import Record, complete, tool_of, tools_of
from cahl_core.datasets.adapters.conversation import Messages, task_of
from cahl_core.datasets.adapters.text import arguments_of, plain
from cahl_core.datasets.raw import RawRecord, read_raw
from cahl_core.files import dump_json

SAMPLES = "lv1-lv2-samples"
APIS = "all_apis.csv"
SPEAKERS = {"User": "user", "AI": "assistant"}
SEARCHER = {
    "name": "ToolSearcher",
    "description": "Finds a tool that fits the keywords.",
    "input_parameters": {"keywords": {"type": "str", "description": "What the tool should do."}},
}
MAX_SOURCE = 20_000_000  # characters of one Python file


def read_api_bank(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """One dialogue per file of ``lv1-lv2-samples/``, ids ``<source>-<folder>-<file>``.

    Offered are the tools that the file's name lists, those it calls, and those its ToolSearcher
    found. Schemas, without required flags, come from what the ToolSearcher of any dialogue returned
    (the tools as they were called), else from ``data/all_apis.csv`` (of another version).
    """
    known = _csv_tools(folder) | {"ToolSearcher": _api_tool(SEARCHER)}
    for raw in read_raw(folder, limits.record_chars, (f"{SAMPLES}/*/*.jsonl",)):
        for tool in _searched(raw.value):
            known[tool["function"]["name"]] = tool
    for path in sorted(folder.rglob(f"{SAMPLES}/*/*.jsonl")):
        record_id = f"{source}-{path.parent.name}-{path.stem}"
        turns = list(read_raw(path.parent, limits.record_chars, (path.name,)))
        broken = next((turn for turn in turns if turn.problem is not None), None)
        if broken is not None and broken.problem is not None:
            rule, detail = broken.problem
            yield malformed(source, record_id, f"{broken.where}: {detail}", rule)
            continue
        try:
            yield complete(_dialogue(turns, path, source, record_id, known), limits.result_chars)
        except FAULTS as error:
            yield malformed(source, record_id, f"{path.name}: {type(error).__name__}: {error}")


def _csv_tools(folder: Path) -> dict[str, Record]:
    """The tools of all_apis.csv by class name; an empty map where the file is not there.

    A row that cannot be read leaves its tool out: its calls are then calls of an unknown tool.
    """
    tools: dict[str, Record] = {}
    for path in sorted(folder.rglob(APIS)):
        with path.open(encoding="utf-8", newline="") as stream:
            for row in csv.DictReader(stream):
                with suppress(SyntaxError, *FAULTS):
                    info = _assignments(row["api_info"])
                    tools[row["类名"]] = _api_tool({"name": row["类名"], **info})
    return tools


def _assignments(text: str) -> Record:
    """``name = literal`` lines of Python text as a map; nothing is run."""
    found: Record = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = plain(ast.literal_eval(node.value))
    return found


def _api_tool(entry: Mapping[str, Any]) -> Record:
    tool, _ = tool_of(
        {
            "name": entry["name"],
            "description": entry.get("description", ""),
            "parameters": {"type": "object", "properties": entry.get("input_parameters") or {}},
            "returns": {"type": "object", "properties": entry.get("output_parameters") or {}},
        }
    )
    return tool


def _dialogue(
    turns: list[RawRecord], path: Path, source: str, record_id: str, known: Mapping[str, Record]
) -> Record:
    messages: Messages = []
    found: dict[str, Record] = {}
    names, _, level = path.stem.partition("-level-")
    for turn in (raw.value for raw in turns):
        if turn["role"] in SPEAKERS:
            messages.append({"role": SPEAKERS[turn["role"]], "content": turn["text"]})
            continue
        name, result = turn["api_name"], turn.get("result") or {}
        call = {"name": name, "arguments": arguments_of(turn["param_dict"])}
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "name": name, "content": _output(result)})
        names += f"-{name}"
        found |= {tool["function"]["name"]: tool for tool in _searched(turn)}
    offered = dict.fromkeys([*filter(None, names.split("-")), *found])
    tools = [known.get(name) or found.get(name) for name in offered]
    meta: Record = {
        "required_known": False,
        "level": int(level.partition("-")[0]),
        "origin": {"file": path.name, "folder": path.parent.name},
    }
    return task_of(record_id, source, messages, [t for t in tools if t], meta, dialogue=True)


def _searched(turn: Any) -> list[Record]:
    """The tools that a ToolSearcher's turn returned; other turns return none."""
    if not isinstance(turn, dict) or turn.get("api_name") != "ToolSearcher":
        return []
    output = (turn.get("result") or {}).get("output")
    found = output if isinstance(output, list) else [output]
    return [_api_tool(tool) for tool in found if isinstance(tool, dict) and "name" in tool]


def _output(result: Mapping[str, Any]) -> str:
    """What the caller sees of a result: its output, or the exception where there was one."""
    if result.get("exception") is not None:
        return dump_json({"exception": result["exception"]})
    output = result.get("output")
    return output if isinstance(output, str) else dump_json(output)


def read_tau_bench(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
    """The ``Task(…)`` entries of ``tasks_*.py``, ids ``tau_<environment>_<split>-<index>``.

    Gold holds the calls that change the database; look-ups that reveal their ids are not in it.
    """
    for path in sorted(folder.rglob("tasks*.py")):
        environment = "airline" if "airline" in path.parts else "retail"
        split = path.stem.partition("_")[2] or "all"
        prefix = f"tau_{environment}_{split}"
        try:
            tools = list(_tau_tools(path.parent))
            tasks = list(_tau_tasks(_python(path)))
        except (SyntaxError, *FAULTS) as error:
            yield malformed(source, prefix, f"{path.name}: {type(error).__name__}: {error}")
            continue
        for index, node in enumerate(tasks):
            try:
                record = _tau_task(_keywords(node, "Task"), source, f"{prefix}-{index}", tools)
                yield complete(record, limits.result_chars)
            except FAULTS as error:
                where = f"{path.name}:{node.lineno}"
                reason = f"{where}: {type(error).__name__}: {error}"
                yield malformed(source, f"{prefix}-{index}", reason)


def _python(path: Path) -> ast.Module:
    text = path.read_text(encoding="utf-8")
    if len(text) > MAX_SOURCE:
        raise ValueError(f"{len(text)} characters, {MAX_SOURCE} allowed")
    return ast.parse(text)


def _tau_tasks(module: ast.Module) -> Iterator[ast.expr]:
    """The elements of every list that a module assigns to a name starting with TASKS."""
    for node in module.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign):
            targets = [node.target]
        named = any(isinstance(t, ast.Name) and re.match("TASKS|tasks", t.id) for t in targets)
        if (
            named
            and isinstance(node, ast.Assign | ast.AnnAssign)
            and isinstance(node.value, ast.List)
        ):
            yield from node.value.elts


def _keywords(node: ast.expr, name: str) -> dict[str, ast.expr]:
    """The keyword arguments of ``name(…)`` as they are written."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or node.args:
        raise ValueError(f"not {name}(key=…)")
    if node.func.id != name or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError(f"not {name}(key=…)")
    return {str(keyword.arg): keyword.value for keyword in node.keywords}


def _tau_task(
    fields: dict[str, ast.expr], source: str, record_id: str, tools: list[Record]
) -> Record:
    actions = fields.pop("actions")
    if not isinstance(actions, ast.List):
        raise ValueError("actions is not a list")
    calls = [_action(node) for node in actions.elts]
    values = {name: ast.literal_eval(node) for name, node in fields.items()}
    return {
        "id": record_id,
        "source": source,
        "messages": [{"role": "user", "content": values.pop("instruction")}],
        "tools": tools,
        "answers": [[call] for call in calls],
        "meta": {**values, "note": "the request is a user simulator's; gold leaves look-ups out"},
    }


def _action(node: ast.expr) -> Record:
    fields = _keywords(node, "Action")
    arguments = ast.literal_eval(fields["kwargs"]) if "kwargs" in fields else {}
    return {"name": ast.literal_eval(fields["name"]), "arguments": arguments_of(arguments)}


def _tau_tools(folder: Path) -> Iterator[Record]:
    """What each ``get_info`` beside the tasks returns, by file name."""
    for path in sorted(folder.glob("tools/*.py")):
        for node in ast.walk(_python(path)):
            if isinstance(node, ast.FunctionDef) and node.name == "get_info":
                returned = next(n.value for n in ast.walk(node) if isinstance(n, ast.Return))
                assert returned is not None
                yield from tools_of(ast.literal_eval(returned))[0]
