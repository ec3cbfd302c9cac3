"""Validity and efficiency, after our definitions."""

from __future__ import annotations

import json

import pytest

from cahl_core.call_metrics import (
    call_counts,
    is_solved,
    plan_is_valid,
    redundant_calls,
)
from cahl_core.protocol.parsing import Execution, ParseFailure, parse_execution, parse_plan
from cahl_core.records import ToolCall, ToolSpec

TOOLS = [
    ToolSpec(
        "f",
        "",
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"type": "string"}},
            "required": ["a"],
        },
    )
]
A, A_AGAIN, B = ToolCall("f", {"a": 1}), ToolCall("f", {"a": 1.0}), ToolCall("f", {"a": 2})


@pytest.mark.parametrize(
    ("arguments", "valid"),
    [
        ({"a": 1}, 1),
        ({"a": 1, "b": "x"}, 1),
        ({"a": "1"}, 0),
        ({"a": True}, 0),
        ({}, 0),
        ({"a": 1, "c": 1}, 0),
    ],
)
def test_calls_that_do_not_fit_the_schema_are_invalid(
    arguments: dict[str, object], valid: int
) -> None:
    assert call_counts(_result(_text("f", arguments)), TOOLS) == (valid, 1)


def test_unknown_tools_and_broken_texts_are_attempts() -> None:
    result = _result(_text("f", {"a": 1}), _text("g", {"a": 1}), "f(a=1)")
    assert call_counts(result, TOOLS) == (1, 3)


def test_an_answer_in_words_is_no_attempt() -> None:
    assert call_counts(_result("<response>No.</response>"), TOOLS) == (0, 0)


def _text(name: str, arguments: dict[str, object]) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def _result(*texts: str) -> list[Execution | ParseFailure]:
    return [parse_execution(text) for text in texts]


def test_a_plan_with_a_tool_that_was_not_offered_is_invalid() -> None:
    step = '<plan>[{"task": "t", "tool": %s, "arguments": {}}]</plan>'
    assert plan_is_valid(parse_plan(step % '"f"'), TOOLS)
    assert plan_is_valid(parse_plan(step % "null"), TOOLS)
    assert plan_is_valid(parse_plan("<plan>[]</plan>"), TOOLS)
    assert not plan_is_valid(parse_plan(step % '"g"'), TOOLS)
    assert not plan_is_valid(ParseFailure("no <plan>", 0), TOOLS)
    assert not plan_is_valid(None, TOOLS)


def test_a_task_is_solved_by_all_gold_calls_in_any_order() -> None:
    assert is_solved([B, A], [A, B])
    assert is_solved([A_AGAIN, B], [A, B])
    assert not is_solved([A], [A, B])
    assert not is_solved([A], [A, A])
    assert is_solved([], [])
    assert not is_solved([A], [])


def test_repeated_calls_are_redundant_and_so_are_those_beyond_gold() -> None:
    assert redundant_calls([A, A_AGAIN], [B]) == 1  # unsolved: only the repetition
    assert redundant_calls([A, B], [A]) == 1  # solved: B was not needed
    assert redundant_calls([A, A], [A, A]) == 0  # gold repeats it
    assert redundant_calls([A, B], [A, B]) == 0
