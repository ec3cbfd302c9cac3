"""Traces as one HTML page that needs no network, no server and no other file.

Records are embedded as JSON that cannot end its element; the page's script shows every text as text,
and its content policy lets no other script run.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cahl_core.files import atomic_file
from cahl_core.traces.select import Record, Role, Totals, groups

ASSETS = Path(__file__).parent / "assets"
MAX_BYTES = 100_000_000
REQUEST_CHARS = 300


def write_html(
    records: Iterable[Record],
    out: Path,
    title: str = "CAHL rollout traces",
    *,
    limit: int | None = None,
    matching: int | None = None,
    max_bytes: int = MAX_BYTES,
) -> str:
    """Writes the page atomically; returns a sentence that says what is in it and what is not.

    Args:
        records: trace records, already selected and in order; read one at a time.
        limit: the first ones that are kept; the others are counted.
        matching: how many there were before a selection; ``None``: these are all.
        max_bytes: of embedded records; the first ones that fit are kept, and the page says so.
    """
    blocks: list[str] = []
    rows: list[dict[str, Any]] = []
    size = given = 0
    for given, record in enumerate(records, 1):  # noqa: B007
        text = embedded(record)
        size += len(text)
        if rows and (size > max_bytes or len(rows) == limit):
            continue  # counted only; sizes add up, so no later one is kept either
        blocks.append(f'<script type="application/json" id="r{len(rows)}">{text}</script>\n')
        rows.append(index_row(record))
    left = (given if matching is None else matching) - len(rows)
    note = ""
    if left:
        full = len(rows) < min(given, limit or given)
        why = ", the page would be too large" if full else " (--limit)"
        note = f"Left out: {left} more that match{'' if left > 1 else 'es'}{why}."
    blocks.append(f'<script type="application/json" id="index">{embedded(rows)}</script>')
    with atomic_file(out) as path:
        # half a surrogate pair becomes the escape that JSON reads
        path.write_bytes(_page(title, note, "".join(blocks)).encode(errors="backslashreplace"))
    return f"{out}: {_trees(len(rows))}" + (f". {note}" if note else "")


def _trees(count: int) -> str:
    return "1 tree" if count == 1 else f"{count} trees"


def embedded(value: Any) -> str:
    """JSON that can stand in a ``script`` element: no character of it can begin markup.

    >>> embedded("</script><!--")
    '"\\\\u003c/script\\\\u003e\\\\u003c!--"'
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def index_row(record: Record) -> dict[str, Any]:
    """What the list shows, sorts and filters by, so that a record is parsed only when opened."""
    task = record["task"]
    planner, executor = totals(record, "planner"), totals(record, "executor")
    leading = planner if planner["texts"] else executor
    request = _request(task["messages"])
    names = sorted(_tools(record))
    return {
        "step": record["step"],
        "task": task["id"],
        "source": task["source"],
        "request": request[:REQUEST_CHARS],
        "tools": names,
        "text": " ".join([task["id"], request, *names]).lower(),
        "plans": planner["texts"],
        "best": leading["best"],
        "mean": planner["mean"],
        "executor": executor["mean"],
        **{f"planner_{key}": planner[key] for key in ("best", "unparsed", "flat", "groups")},
        **{f"executor_{key}": executor[key] for key in ("best", "unparsed", "flat", "groups")},
    }


def totals(record: Record, role: Role) -> dict[str, Any]:
    """Counts and rewards of one role in one tree; rewards are ``None`` where it wrote nothing."""
    found, rewards = Totals(), []
    for group in groups(record, role):
        found.add(group)
        rewards += [sampled["reward"] for sampled in group]
    return {
        "texts": found.texts,
        "best": max(rewards, default=None),
        "mean": found.reward / found.texts if found.texts else None,
        "unparsed": found.failures,
        "flat": found.flat,
        "groups": found.groups,
    }


def _request(messages: list[Mapping[str, Any]]) -> str:
    asked = [m["content"] for m in messages if m["role"] == "user"]
    return asked[-1] if asked else ""


def _tools(record: Record) -> set[str]:
    """Tools that are due, planned or called."""
    found = {call["name"] for call in record["task"]["gold"]}
    for plan in record["plans"]:
        found |= {s["tool"] for s in plan["plan"] or () if s["tool"] is not None}
        for sub in plan["sub_tasks"]:
            found |= {call["name"] for sample in sub["samples"] for call in sample["calls"]}
    return found


def _page(title: str, note: str, data: str) -> str:
    style, script = (_asset(f"viewer.{kind}") for kind in ("css", "js"))
    page = _asset("viewer.html")
    values = {
        "title": html.escape(title),
        "note": html.escape(note),
        "style_hash": _hash(style),
        "script_hash": _hash(script),
        "style": style,
        "script": script,
        "data": data,
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], page)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
