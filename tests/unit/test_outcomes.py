"""Efficiency measures of one attempt."""

from __future__ import annotations

import pytest

from cahl_core.evaluation.outcomes import adherence, efficiency, redundant
from cahl_core.protocol.parsing import parse_execution
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec
from cahl_core.serving.results import WHOLE_REQUEST, AgentResult, StepResult

ARGUMENTS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOLS = (ToolSpec("f", "", ARGUMENTS), ToolSpec("g", "", ARGUMENTS))


def _text(*calls: tuple[str, int]) -> str:
    blocks = (
        f'<tool_call>{{"name": "{n}", "arguments": {{"a": {a}}}}}</tool_call>' for n, a in calls
    )
    return "".join(blocks)


def _result(tools: list[str | None], texts: list[str], form: str = "hierarchical") -> AgentResult:
    plan = Plan(tuple(SubTask("t", tool) for tool in tools))
    result = AgentResult("<plan>…</plan>", plan, form=form)  # type: ignore[arg-type]
    sub_tasks = plan.sub_tasks if form == "hierarchical" else (WHOLE_REQUEST,)
    for sub_task, text in zip(sub_tasks, texts, strict=False):
        result.steps.append(StepResult(sub_task, text, parse_execution(text)))
    return result


@pytest.mark.parametrize(
    ("tools", "texts", "expected"),
    [
        (["f", "g"], [_text(("f", 1)), _text(("g", 1))], 1.0),
        (["f", "g"], [_text(("f", 1)), _text(("f", 1))], 0.5),
        (["f", "g"], [_text(("f", 1))], 0.5),  # the second step was never reached
        (["f"], [_text(("f", 1), ("f", 2))], 0.0),
        (["f"], ["nonsense"], 0.0),
        ([None], ["<response>no</response>"], None),
        (["f", None], [_text(("f", 1)), "<response>no</response>"], 1.0),
    ],
)
def test_adherence_asks_for_one_call_of_the_planned_tool(
    tools: list[str | None], texts: list[str], expected: float | None
) -> None:
    assert adherence([_result(tools, texts)]) == expected


def test_adherence_of_one_text_goes_by_order() -> None:
    both = _text(("f", 1), ("g", 2))
    assert adherence([_result(["f", "g"], [both], "single_level")]) == 1.0
    assert adherence([_result(["g", "f"], [both], "single_level")]) == 0.0
    assert adherence([_result(["f", None, "g"], [both], "single_level")]) == 1.0


def test_efficiency_adds_up_over_turns() -> None:
    first = _result(["f"], [_text(("f", 1))])
    second = _result(["f", "h"], [_text(("f", 1)), _text(("h", 1))])
    first.prompt_tokens, second.completion_tokens = 5, 7
    found = efficiency([first, second], [TOOLS, TOOLS])
    assert found == {
        "attempted": 3, "unparsed": 0, "invalid": 1, "redundant": 1, "planned": False,
        "adherence": 1.0, "prompt_tokens": 5, "completion_tokens": 7,
    }  # fmt: skip
    assert efficiency(first, TOOLS)["planned"] is True
    broken = efficiency(_result(["f"], ["nonsense"]), TOOLS)
    assert (broken["attempted"], broken["unparsed"], broken["invalid"]) == (1, 1, 1)


def test_what_goes_beyond_gold_is_redundant_in_a_solved_item() -> None:
    calls = [ToolCall("f", {"a": 1}), ToolCall("f", {"a": 1.0}), ToolCall("g", {"a": 1})]
    assert redundant(calls) == 1
    assert redundant(calls, gold=calls[:1]) == 2
    assert redundant(calls[:1], gold=calls) == 0
