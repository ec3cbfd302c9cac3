"""Records of a source as text that a person reads: request, tools, gold steps, plan."""

from __future__ import annotations

import json
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.fetchers import Context, fetch_into
from cahl_core.datasets.fetchers.inventory import Holding
from cahl_core.datasets.raw import read_raw
from cahl_core.datasets.sources import read_origin
from cahl_core.errors import DataError

LINE = 160
VALUE = 60
LABEL = 9


def read_records(
    held: Holding, context: Context, settings: PrepareSettings, wanted: str | None, count: int
) -> Iterator[dict[str, Any]]:
    """The first ``count`` records, or the one with the id ``wanted``; none of a source not at hand.

    Raises:
        DataError: no record has that id.
    """
    if held.where == "network" or held.source.kind in ("model", "benchmark"):
        return
    number = 0
    for record in islice(_records(held, context, settings), None if wanted else count):
        number += 1
        if wanted is None or record.get("id") == wanted:
            yield record
            if wanted:
                return
    if wanted is not None:
        raise DataError(f"source '{held.source.name}' has no record '{wanted}' ({number} read)")


def _records(
    held: Holding, context: Context, settings: PrepareSettings
) -> Iterator[dict[str, Any]]:
    source = held.source
    limits = ReadLimits(settings.max_result_chars, settings.max_text_chars)
    if held.where == "fetched":
        yield from _read(context.root / "data" / "raw" / source.name, held, limits)
        return
    with tempfile.TemporaryDirectory() as scratch:
        quiet = Context(context.root, context.mirrors, 0, lambda line: None)
        fetch_into(source, Path(scratch), quiet)
        yield from _read(Path(scratch), held, limits)


def _read(folder: Path, held: Holding, limits: ReadLimits) -> Iterator[dict[str, Any]]:
    origin = read_origin(folder, held.source)
    if origin.format in READERS:
        yield from READERS[origin.format](folder, held.source.name, limits)
        return
    for raw in read_raw(folder, limits.record_chars):
        yield raw.value if isinstance(raw.value, dict) else {"id": raw.where, "text": str(raw)}


def render(record: Mapping[str, Any]) -> str:
    """One record, a label and a line for each part; control characters are left out."""
    lines = [plain(str(record.get("id", "?")))]
    if "malformed" in record:
        return "\n".join([*lines, _line("malformed", str(record["malformed"]))])
    if "messages" not in record:  # a passage of a corpus
        shown = {k: v for k, v in record.items() if k != "id"}
        return "\n".join([*lines, *(_line(k, _value(v, LINE)) for k, v in shown.items())])
    meta = record.get("meta") or {}
    lines += [_message(message) for message in record["messages"]]
    lines.append(_line("tools", _tools(record.get("tools") or [])))
    if meta.get("form") == "dialogue":
        places = ", ".join(str(place) for place in meta.get("answer_at") or [])
        lines.append(_line("dialogue", f"gold steps are the messages {places}"))
    for number, step in enumerate(record.get("answers") or [], 1):
        lines += [_line(f"step {number}", _call(call)) for call in step]
    for number, sub_task in enumerate(record.get("plan") or [], 1):
        lines.append(_line(f"plan {number}", _sub_task(sub_task)))
    if "answer" in meta:
        lines.append(_line("answer", _value(meta["answer"], LINE)))
    return "\n".join(lines)


def _sub_task(sub_task: Any) -> str:
    if not isinstance(sub_task, Mapping) or "task" not in sub_task:
        return _value(sub_task, LINE)  # a plan in the source's own form
    return f"{sub_task['task']}" + (f" [{sub_task['tool']}]" if sub_task.get("tool") else "")


def _message(message: Mapping[str, Any]) -> str:
    calls = [_call(call) for call in message.get("tool_calls") or []]
    content = [message["content"]] if message.get("content") else []
    return _line(str(message.get("role", "?")), " ".join([*content, *calls]))


def _tools(tools: list[Any]) -> str:
    named = []
    for tool in tools:
        function = tool.get("function", tool)
        properties = (function.get("parameters") or {}).get("properties") or {}
        named.append(f"{function.get('name', '?')}({', '.join(properties)})")
    return f"{len(tools)}: {', '.join(named)}" if named else "none"


def _call(call: Mapping[str, Any]) -> str:
    arguments = call.get("arguments") or {}
    inside = ", ".join(f"{name}={_value(value, VALUE)}" for name, value in arguments.items())
    return f"{call.get('name', '?')}({inside})"


def _value(value: Any, width: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _cut(text, width)


def _line(label: str, text: str) -> str:
    return f"  {plain(label):<{LABEL}} {_cut(plain(text), LINE)}"


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def plain(text: str) -> str:
    """``text`` on one line without control and direction characters, which could rule a terminal."""
    spaced = " ".join(text.split())
    return "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf"))
