"""One accepted answer per BFCL item, written down from the package's answer files, v3 or v4.

Only for tests: a perfect model to put through the whole harness, as calls and in the official forms of
text.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

from cahl_core.evaluation.bfcl.formulas import V3, V4
from cahl_core.records import ToolCall


def gold_calls(wheel: Path, category: str) -> dict[str, tuple[ToolCall, ...]]:
    """The first accepted answer of every item of an AST category, optional arguments left out."""
    assert category in (*V3.ast, *V4.ast)
    data = wheel / "bfcl_eval" / "data"
    (path,) = data.glob(f"BFCL_v?_{category}.json")
    questions = _records(path)
    answers = _records(data / "possible_answer" / path.name)
    return {
        item: tuple(
            _call(call, questions[item]["function"], category)
            for call in answers[item]["ground_truth"]
        )
        for item in questions
    }


def _records(path: Path) -> dict[str, Any]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {r["id"]: r for r in map(json.loads, lines)}


def _call(accepted: dict[str, Any], documents: list[dict[str, Any]], category: str) -> ToolCall:
    ((name, parameters),) = accepted.items()
    category = category.removeprefix("simple_")
    # with one document the checker never looks at the answer's name, and some differ
    documented = documents[0] if len(documents) == 1 else _named(documents, name)
    document = documented["parameters"]
    arguments = {}
    for key, allowed in parameters.items():
        if key not in document["properties"]:
            continue
        if "" in allowed and key not in document["required"]:
            continue
        value = _first(allowed)
        if category in ("java", "javascript"):
            value = _source(value, document["properties"][key], category)
        arguments[key] = value
    return ToolCall(documented["name"], arguments)


def _named(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(d for d in documents if d["name"] == name)


def _first(allowed: list[Any]) -> Any:
    value = next((a for a in allowed if a != ""), "")
    if isinstance(value, dict):
        return _fields(value)
    if isinstance(value, list):
        return [_fields(v) if isinstance(v, dict) else v for v in value]
    return value


def _fields(value: dict[str, Any]) -> dict[str, Any]:
    return {k: next(a for a in v if a != "") for k, v in value.items() if "" not in v}


def _source(value: Any, document: dict[str, Any], category: str) -> str:
    """The value as Java or JavaScript source text."""
    kind = document["type"]
    items = document.get("items", {}).get("type")
    if category == "javascript":
        if kind in ("String", "any") or isinstance(value, str):
            return str(value)
        return json.dumps(value) + ("n" if kind == "Bigint" else "")
    if kind == "String" or isinstance(value, str):
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if kind == "long":
        return f"{value}L"
    if kind == "float":
        return f"{value}f"
    if kind == "ArrayList":
        elements = (f"{v}L" if items == "long" else _literal(v) for v in value)
        return f"new ArrayList<>(Arrays.asList({', '.join(elements)}))"
    if kind == "Array":  # the converter keeps quotes of strings here
        elements = (str(v) if items == "String" else _literal(v) for v in value)
        return f"new Object[]{{{', '.join(elements)}}}"
    if kind == "HashMap":
        puts = " ".join(f'put("{k}", {_literal(v)});' for k, v in value.items())
        return f"new HashMap<String, Object>() {{{{ {puts} }}}}"
    return str(value)


def _literal(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f'"{value}"' if isinstance(value, str) else str(value)


def official_text(calls: tuple[ToolCall, ...], form: str = "python", tagged: bool = False) -> str:
    """Calls as a model writes them in an official form of answer, with the tag where one is due."""
    text = {
        "python": _python, "json": _json, "verbose_xml": _verbose, "concise_xml": _concise
    }[form](calls)  # fmt: skip
    return f"<TOOLCALL>{text}</TOOLCALL>" if tagged else text


def _python(calls: tuple[ToolCall, ...]) -> str:
    written = (
        f"{c.name}({', '.join(f'{k}={v!r}' for k, v in c.arguments.items())})" for c in calls
    )
    return f"[{', '.join(written)}]"


def _json(calls: tuple[ToolCall, ...]) -> str:
    return "```json\n" + json.dumps(
        [{"function": c.name, "parameters": c.arguments} for c in calls]
    ) + "\n```"  # fmt: skip


def _verbose(calls: tuple[ToolCall, ...]) -> str:
    functions = "".join(
        f"<function name={quoteattr(c.name)}><params>"
        + "".join(
            f'<param name={quoteattr(k)} value={quoteattr(_raw(v))} type="{_kind(v)}"/>'
            for k, v in c.arguments.items()
        )
        + "</params></function>"
        for c in calls
    )
    return f"<functions>{functions}</functions>"


def _concise(calls: tuple[ToolCall, ...]) -> str:
    functions = "".join(
        f"<function name={quoteattr(c.name)}>"
        + "".join(
            f'<param name={quoteattr(k)} type="{_kind(v)}">{escape(_raw(v))}</param>'
            for k, v in c.arguments.items()
        )
        + "</function>"
        for c in calls
    )
    return f"<functions>{functions}</functions>"


def _raw(value: Any) -> str:
    return value if isinstance(value, str) else repr(value)


def _kind(value: Any) -> str:
    kinds = {str: "string", bool: "boolean", int: "integer", float: "float", list: "array",
             dict: "dict", type(None): "null"}  # fmt: skip
    return kinds[type(value)]
