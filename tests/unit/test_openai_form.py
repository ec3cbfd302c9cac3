"""Requests and answers in OpenAI's form."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest

from cahl_core.errors import DataError
from cahl_core.protocol.parsing import parse_execution, parse_plan
from cahl_core.records import SubTask, ToolCall
from cahl_core.serving.openai_form import answer, parse_request
from cahl_core.serving.results import WHOLE_REQUEST, AgentResult, StepResult
from cahl_core.serving.served import requests_of

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": SCHEMA}}
ASK = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ("text", "is str, must be an object"),
        ({}, "'messages' must be a list with at least one message"),
        ({"messages": []}, "at least one message"),
        ({"messages": "hi"}, "'messages' must be a list"),
        ({"messages": ["hi"]}, r"messages\[0\]: is str, must be an object"),
        ({"messages": [{"content": "x"}]}, r"messages\[0\]: field 'role' is missing"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "role 'robot' is not one of"),
        ({"messages": [{"role": "user", "content": 5}]}, "content is int, must be text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text parts"),
        ({"messages": [ASK, {"role": "assistant", "content": "x"}]}, "the assistant's own"),
        ({"messages": [ASK], "tools": "f"}, "'tools' is str, must be a list"),
        ({"messages": [ASK], "tools": ["f"]}, r"tools\[0\]: is str"),
        ({"messages": [ASK], "tools": [{"type": "function"}]}, r"tools\[0\]: field 'name'"),
        ({"messages": [ASK], "tools": [{"name": "f"}]}, r"tools\[0\] 'f': no parameter schema"),
        ({"messages": [ASK], "tools": [TOOL, TOOL]}, "tool 'f' is given twice"),
        (
            {"messages": [ASK], "tools": [{"name": "f", "parameters": {"properties": []}}]},
            "'properties' must map names to schemas",
        ),
        (
            {"messages": [ASK, {"role": "assistant", "tool_calls": [{"id": "1"}]}, ASK]},
            r"messages\[1\]: tool_calls must be",
        ),
    ],
)
def test_bad_requests_are_named(record: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        parse_request(record)


def test_a_conversation_with_calls_and_results_is_read() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    request = parse_request(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "one"}]},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "1", "content": "7"},
            ],
            "tools": [TOOL],
        }
    )
    assert [m.content for m in request.messages] == ["one", "", "7"]
    assert request.messages[1].tool_calls == (ToolCall("f", {"a": 1}),)
    assert request.tools[0].name == "f"


def test_calls_a_model_wrote_wrongly_stay_in_the_history_as_text() -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{broken"}}
    spoken = {"role": "assistant", "content": None, "tool_calls": [call]}
    record = {"messages": [ASK, spoken, {"role": "tool", "content": "no"}]}
    message = parse_request(record).messages[1]
    assert message.content == 'Calls: [{"name": "f", "arguments": "{broken"}]'
    assert message.tool_calls == ()


def test_every_form_mlflow_hands_over_is_the_same_request() -> None:
    record = {"messages": [ASK], "tools": [TOOL]}
    frame = pd.DataFrame([record])
    arrays = pd.DataFrame([{"messages": np.array([ASK]), "tools": np.array([TOOL])}])
    expected = [parse_request(record)]
    for form in (record, [record], frame, arrays):
        assert requests_of(form) == expected


def test_missing_tools_in_a_frame_are_no_tools() -> None:
    frame = pd.DataFrame([{"messages": [ASK], "tools": [TOOL]}, {"messages": [ASK]}])
    assert [len(r.tools) for r in requests_of(frame)] == [1, 0]


def _result(plan: str, *texts: str) -> AgentResult:
    result = AgentResult(plan, parse_plan(plan))
    result.steps = [StepResult(SubTask("t", "f"), t, parse_execution(t)) for t in texts]
    return result


def _call_text(arguments: dict[str, Any]) -> str:
    return f"<tool_call>{json.dumps({'name': 'f', 'arguments': arguments})}</tool_call>"


def test_calls_have_ids_and_say_what_they_wait_for() -> None:
    texts = _call_text({"a": 1}), _call_text({"a": "$var1.x$"})
    step = '{"task": "t", "tool": "f", "arguments": {}}'
    given = answer(_result(f"<plan>[{step}, {step}]</plan>", *texts), "conversation")
    first, second = given["tool_calls"]
    assert json.loads(first["function"]["arguments"]) == {"a": 1}
    assert second["waits_for"] == [first["id"]]
    assert "waits_for" not in first
    assert (given["finish_reason"], given["outcome"]) == ("tool_calls", "calls")
    assert [s["tool"] for s in given["plan"]] == ["f", "f"]
    other = answer(_result("<plan>[]</plan>", texts[0]), "another")
    assert other["tool_calls"][0]["id"] != first["id"]


def test_a_malformed_text_is_said_and_not_hidden() -> None:
    given = answer(_result("Sure!"), "c")
    assert (given["plan"], given["tool_calls"], given["outcome"]) == (None, [], "plan_failure")
    assert given["problem"] == "plan: no <plan> (at character 0)"
    given = answer(_result("<plan>[]</plan>", "f(1)"), "c")
    assert given["problem"].startswith("sub-task 1: ")


def test_a_reference_waits_for_the_calls_of_the_sub_task_it_names() -> None:
    step = '{"task": "t", "tool": "f", "arguments": {}}'
    texts = (
        "<response>Nothing.</response>",
        _call_text({"a": 1}) + _call_text({"a": 2}),
        _call_text({"a": "$var2.x$", "c": "$var9$"}),
    )
    given = answer(_result(f"<plan>[{step}, {step}, {step}]</plan>", *texts), "c")
    first, second, third = given["tool_calls"]
    assert third["waits_for"] == [first["id"], second["id"]]  # sub-task 1 made no call
    assert "waits_for" not in second


def test_in_a_flat_form_a_reference_waits_for_the_call_it_numbers() -> None:
    text = _call_text({"a": 1}) + _call_text({"a": "$var1.x$"}) + _call_text({"a": "$var2.x$"})
    result = AgentResult(form="low_only")
    result.steps = [StepResult(WHOLE_REQUEST, text, parse_execution(text))]
    given = answer(result, "c")
    first, second, third = given["tool_calls"]
    assert (second["waits_for"], third["waits_for"]) == ([first["id"]], [second["id"]])
    assert (given["plan"], given["outcome"], given["problem"]) == (None, "calls", None)


def test_a_flat_forms_problem_is_placed_in_its_whole_text() -> None:
    plan, rest = "<plan>[]</plan>", " f(1)"
    result = AgentResult(plan, parse_plan(plan), form="single_level")
    result.steps = [StepResult(WHOLE_REQUEST, rest, parse_execution(rest))]
    place = (plan + rest).index("f(1)")
    assert answer(result, "c")["problem"].endswith(f"(at character {place})")
    assert answer(result, "c")["problem"].startswith("calls: ")


def test_a_huge_reference_number_is_no_reference() -> None:
    result = _result("<plan>[]</plan>", _call_text({"a": f"$var{'9' * 5000}$"}))
    assert "waits_for" not in answer(result, "c")["tool_calls"][0]
