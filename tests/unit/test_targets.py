"""Targets of supervised training: calls as before, words where a sub-task has no tool."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from cahl_core.datasets.plans import MAX_WORDS, plan_from_gold
from cahl_core.datasets.targets import (
    DECLINES,
    executor_targets,
    gold_feedback,
    planner_target,
    resolved_gold,
)
from cahl_core.errors import DataError
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask

TOOLS = (
    ToolSpec("find_city", "Find a city by its name", {"type": "object", "properties": {"q": {}}}),
    ToolSpec("get_map", "Get the map of a city", {"type": "object", "properties": {"id": {}}}),
)


def chain() -> ToolTask:
    calls = (ToolCall("find_city", {"q": "Oslo"}), ToolCall("get_map", {"id": "$var1.id$"}))
    meta = {
        "results": [{"id": 7}, None],
        "resolved": [{"q": "Oslo"}, {"id": 7}],
    }
    task = ToolTask(
        "t",
        "own",
        (Message("user", "A map of Oslo"),),
        TOOLS,
        tuple((c,) for c in calls),
        meta=meta,
    )
    return replace(task, plan=plan_from_gold(task))


def words_only(**meta: object) -> ToolTask:
    task = ToolTask("q", "own", (Message("user", "Who?"),), (), (), meta=dict(meta))
    return replace(task, plan=plan_from_gold(task))


def test_executor_targets_are_the_resolved_calls_with_the_results_before_them() -> None:
    task = chain()
    first, second = executor_targets(task)
    assert task.plan is not None
    assert planner_target(task) is task.plan
    assert (first.sub_task, second.sub_task) == task.plan.sub_tasks
    assert first.feedback == ()
    assert first.calls == (ToolCall("find_city", {"q": "Oslo"}),)
    assert second.calls == (ToolCall("get_map", {"id": 7}),)
    assert second.feedback == ((SubTask("", "find_city", {"q": "Oslo"}), {"id": 7}),)
    assert first.response is second.response is None


def test_the_targets_of_calls_are_those_of_rollouts() -> None:
    task = chain()
    for index, target in enumerate(executor_targets(task)):
        assert target.calls == (resolved_gold(task)[index],)
        assert list(target.feedback) == gold_feedback(task, index)


def test_an_unknown_result_leaves_the_reference_and_its_place() -> None:
    task = replace(chain(), meta={"results": [None, None], "resolved": [{"q": "Oslo"}, None]})
    _, second = executor_targets(task)
    assert second.calls == (ToolCall("get_map", {"id": "$var1.id$"}),)
    assert second.feedback == ((SubTask("", "find_city", {"q": "Oslo"}), None),)


def test_a_question_is_answered_in_words() -> None:
    task = words_only(derivation="qa", answer=" Ada Lovelace ")
    (target,) = executor_targets(task)
    assert target.sub_task.tool is None
    assert (target.calls, target.response) == (None, "Ada Lovelace")


def test_an_incomplete_request_is_answered_by_the_question() -> None:
    missing = {"tool": "get_map", "arguments": ["city_id", "zoom"]}
    task = words_only(derivation="missing_argument", missing=missing, answer="Which city?")
    (target,) = executor_targets(task)
    assert "city ID and zoom" in target.sub_task.task
    assert target.response == "Which city?"


def test_a_sub_task_without_tool_or_answer_declines_without_naming_a_tool() -> None:
    task = replace(chain(), steps=(), meta={}, plan=Plan((SubTask("Decline", None),)))
    (target,) = executor_targets(task)
    assert target.response in DECLINES
    assert target.calls is None
    assert not any(tool.name in text for tool in TOOLS for text in DECLINES)
    assert executor_targets(replace(task, plan=Plan(()))) == []
    several = {executor_targets(replace(task, id=str(n)))[0].response for n in range(40)}
    assert len(several) == len(DECLINES)


def test_a_response_between_calls_takes_no_gold_call() -> None:
    task = chain()
    assert task.plan is not None
    find, get = task.plan.sub_tasks
    mixed = replace(task, plan=Plan((find, SubTask("Think", None), get)))
    targets = executor_targets(mixed)
    assert [t.calls and t.calls[0].name for t in targets] == ["find_city", None, "get_map"]
    assert [len(t.feedback) for t in targets] == [0, 1, 1]


def test_a_task_without_a_plan_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(DataError, match="task 't' has no plan"):
        planner_target(replace(chain(), plan=None))


def test_plans_name_tool_and_arguments_of_every_gold_call_in_order() -> None:
    task = chain()
    assert task.plan is not None
    assert [(s.tool, s.arguments) for s in task.plan.sub_tasks] == [
        (c.name, c.arguments) for c in task.calls
    ]
    assert "ID from step 1" in task.plan.sub_tasks[1].task or "map" in task.plan.sub_tasks[1].task


def test_sub_task_texts_vary_stay_short_and_invent_nothing() -> None:
    calls = (ToolCall("get_map", {"id": 41}), ToolCall("get_map", {"id": 52}))
    task = replace(chain(), steps=tuple((c,) for c in calls), meta={})
    texts = set()
    for number in range(60):
        first, second = plan_from_gold(replace(task, id=f"t{number}")).sub_tasks
        texts.add(first.task)
        assert "41" in first.task
        assert "52" in second.task
        assert "52" not in first.task
        assert first.task[0].isupper()
    assert len(texts) >= 4


def test_calls_of_one_tool_are_told_apart_by_what_differs() -> None:
    values = [(41, 3), (52, 3), (41, 9)]
    calls = [ToolCall("get_map", {"style": "dark", "id": i, "zoom": z}) for i, z in values]
    task = replace(chain(), steps=tuple((c,) for c in calls), meta={})
    for number in range(30):
        first = plan_from_gold(replace(task, id=f"t{number}")).sub_tasks[0]
        assert "41" in first.task or "3" in first.task


def test_long_texts_leave_out_whole_phrases() -> None:
    note = "Find every bridge and tunnel that crosses the river near a town"
    tool = ToolSpec("find", note, {"type": "object", "properties": {"a": {}, "b": {}}})
    call = ToolCall("find", {"a": "alpha beta gamma delta", "b": "one two three four"})
    task = replace(chain(), tools=(tool,), steps=((call,),), meta={})
    for number in range(30):
        (sub_task,) = plan_from_gold(replace(task, id=f"t{number}")).sub_tasks
        assert len(sub_task.task.split()) <= MAX_WORDS
        assert ("alpha" in sub_task.task) == ("delta" in sub_task.task)
        assert ("one" in sub_task.task) == ("four" in sub_task.task)


def test_references_are_named_by_field_and_step() -> None:
    texts = {plan_from_gold(replace(chain(), id=f"t{n}")).sub_tasks[1].task for n in range(40)}
    assert any(text.endswith("with the ID from step 1") for text in texts)
    assert not any("$" in text for text in texts)


def test_the_records_own_plan_texts_are_kept_word_for_word() -> None:
    texts = [{"service": "find", "intent": "city", "text": "Look for a place to stay"}]
    task = replace(chain(), meta={**chain().meta, "plan_texts": texts})
    for number in range(20):
        first, second = plan_from_gold(replace(task, id=f"t{number}")).sub_tasks
        assert first.task.startswith("Look for a place to stay")
        assert "map" in second.task


def test_plans_are_the_same_for_the_same_task_and_empty_where_nothing_is_called() -> None:
    assert json.dumps(plan_from_gold(chain()).to_json()) == json.dumps(
        plan_from_gold(chain()).to_json()
    )
    assert words_only(derivation="irrelevance").plan == Plan(())
