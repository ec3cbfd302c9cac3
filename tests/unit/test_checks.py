"""Every quarantine rule fires on its fault and on nothing else."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters.nestful import convert
from cahl_core.datasets.checks import check, parse, quarantine
from cahl_core.records import ToolTask

SETTINGS = PrepareSettings(max_steps=3, max_result_chars=100)


def good() -> dict[str, Any]:
    def tool(tool_name: str, /, **properties: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": properties, "required": [*properties][:1]}
        function = {"name": tool_name, "description": "Does it.", "parameters": parameters}
        return {"type": "function", "function": function}

    return {
        "id": "r1",
        "source": "own",
        "messages": [{"role": "user", "content": "Weather where Ann lives?"}],
        "tools": [
            tool("find", name={"type": "string"}),
            tool("weather", city={"type": "string"}, days={"type": "integer"}),
        ],
        "answers": [
            [{"name": "find", "arguments": {"name": "Ann"}}],
            [{"name": "weather", "arguments": {"city": "$var1.city$", "days": 2}}],
        ],
        "meta": {
            "results": [{"city": "Oslo"}, None],
            "resolved": [{"name": "Ann"}, {"city": "Oslo", "days": 2}],
        },
    }  # fmt: skip


def rule_of(record: Any) -> str | None:
    task = parse(record, "record")
    problem = check(task, SETTINGS) if isinstance(task, ToolTask) else task
    return problem[0] if problem else None


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    record = copy.deepcopy(good())
    target: Any = record
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = value
    return record


def test_a_good_record_breaks_no_rule() -> None:
    assert rule_of(good()) is None


FIRST_CALL = ["answers", 0, 0]
FIRST_TOOL = ["tools", 0, "function"]


@pytest.mark.parametrize(
    ("rule", "path", "value"),
    [
        ("malformed", ["id"], 7),
        ("malformed", ["messages"], "hello"),
        ("malformed", ["answers"], [{"name": "find"}]),
        ("malformed", [*FIRST_CALL, "arguments"], ["Ann"]),
        ("tool_without_schema", [*FIRST_TOOL, "parameters"], None),
        ("tool_without_schema", [*FIRST_TOOL, "parameters"], {"type": "array"}),
        ("tool_without_schema", [*FIRST_TOOL, "parameters", "properties"], {"name": {"type": 3}}),
        ("empty_request", ["messages", 0, "content"], "  "),
        ("duplicate_tool", [*FIRST_TOOL, "name"], "weather"),
        ("too_many_steps", ["answers"], good()["answers"] * 2),
        ("unknown_tool", [*FIRST_CALL, "name"], "lookup"),
        ("unknown_argument", ["answers", 1, 0, "arguments", "unit"], "C"),
        ("missing_argument", ["answers", 1, 0, "arguments"], {"days": 2}),
        ("wrong_type", ["meta", "resolved", 1, "days"], "two"),
        ("wrong_type", ["meta", "resolved", 1, "city"], 5),
        ("bad_reference", ["answers", 1, 0, "arguments", "city"], "near $var1.city$"),
        ("cyclic_reference", ["answers", 1, 0, "arguments", "city"], "$var2.city$"),
        ("bad_reference", ["answers", 1, 0, "arguments", "city"], "$var3.city$"),
        ("control_characters", ["messages", 0, "content"], "Find Ann\x00"),
        ("control_characters", ["answers", 0, 0, "arguments", "name"], "A\u202enn"),
        ("control_characters", ["meta", "note"], "half a pair \ud800"),
        ("too_many_tools", ["tools"], [{**good()["tools"][0]["function"], "name": f"t{n}"}
                                       for n in range(2000)]),
        ("recursive_schema", [*FIRST_TOOL, "parameters", "properties"], {"name": {"$ref": "#"}}),
        ("remote_schema", [*FIRST_TOOL, "parameters", "properties"],
         {"name": {"$ref": "http://127.0.0.1:9/x.json"}}),
        ("bad_reference", ["answers", 1, 0, "arguments", "city"], "$var0.city$"),
        ("bad_reference", ["answers", 1, 0, "arguments", "city"], "$var1.town$"),
        ("ungrounded", ["meta", "ungrounded"], ["2.city"]),
        ("long_result", ["meta", "results", 0], {"city": "Oslo" * 50}),
    ],
)  # fmt: skip
def test_each_fault_is_named_by_its_rule(rule: str, path: list[Any], value: Any) -> None:
    assert rule_of(changed(path, value)) == rule


def test_a_reference_to_a_later_or_the_same_step_is_not_in_order() -> None:
    record = good()
    first, second = record["answers"]
    for answers, reference in (([second, first], "$var2.city$"), ([[*first, *second]], "$var1$")):
        swapped = copy.deepcopy({**record, "answers": answers, "meta": {}})
        next(c for step in swapped["answers"] for c in step if "city" in c["arguments"])[
            "arguments"
        ]["city"] = reference
        assert rule_of(swapped) == "step_order"


@pytest.mark.parametrize("record", [None, 3, "text", [], {}])
def test_what_is_not_a_record_is_malformed(record: Any) -> None:
    assert rule_of(record) == "malformed"


def test_a_source_record_without_the_sources_form_is_malformed() -> None:
    for raw in (None, {}, {"input": 3, "output": []}, {"input": "x", "output": [{"name": "f"}]}):
        assert rule_of(convert(raw, "nestful", "nestful-sgd-0", {}, 100, 2)) == "malformed"


def test_quarantined_records_carry_source_id_rule_detail_and_excerpt() -> None:
    entry = quarantine(good(), "own", "r1", ("unknown_tool", "call 1: lookup")).to_json()
    assert list(entry) == ["source", "id", "rule", "detail", "excerpt"]
    assert "Weather where Ann lives?" in entry["excerpt"]
