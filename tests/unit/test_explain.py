"""Breakdowns add up to the rewards they explain, and say what a reader wants to know."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.explain import CallVerdict, explain_execution, explain_plan
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec
from cahl_core.rewards import executor_reward, planner_reward
from cahl_core.train_config import RewardSettings, ValueSettings

values = st.sampled_from([0, 1, "x", " x", "$var1.x$", "$var2.x$", [1, {"b": 2}]])
arguments = st.dictionaries(st.sampled_from("abc"), values, max_size=3)
call = st.builds(ToolCall, st.sampled_from("fg"), arguments)
calls = st.lists(call, max_size=4)
plans = st.builds(
    Plan,
    st.lists(
        st.builds(SubTask, st.just("say x"), st.sampled_from(["f", "g", None]), arguments),
        max_size=4,
    ).map(tuple),
)
TOOLS = [
    ToolSpec(name, "", {"type": "object", "properties": {"a": {"type": "integer"}, "b": {}}})
    for name in "f"
]


def _semantics(verdicts: list[CallVerdict], made: int, due: int) -> float:
    """R_sem from verdicts alone."""
    if not made or not due:
        return float(made == due)
    matched = [v for v in verdicts if v.name is not None and v.due is not None]
    assert all(v.name == v.due for v in matched)
    keys = equal = 0.0
    for verdict in matched:
        kinds = Counter(a.verdict for a in verdict.arguments)
        total = kinds.total()
        keys += (kinds["equal"] + kinds["differs"]) / total if total else 1.0
        equal += kinds["equal"] / total if total else 1.0
    overlap = len(matched) / (made + due - len(matched))
    return (overlap + (keys + equal) / max(made, due)) / 3


@given(calls, calls)
def test_verdicts_of_an_execution_add_up_to_its_reward(
    made: list[ToolCall], gold: list[ToolCall]
) -> None:
    verdicts = explain_execution(Execution(tuple(made)), gold, TOOLS)
    reward = executor_reward(Execution(tuple(made)), gold, TOOLS, RewardSettings())
    assert [v.name for v in verdicts if v.name is not None] == [c.name for c in made]
    numbers = [v.number for v in verdicts if v.number is not None]
    assert sorted(numbers) == list(range(len(gold)))
    assert _semantics(verdicts, len(made), len(gold)) == pytest.approx(reward.semantics)
    if made:
        valid = [v.valid for v in verdicts if v.valid is not None]
        assert sum(valid) / len(valid) == pytest.approx(reward.syntax)
    assert all((v.valid is False) == bool(v.note) for v in verdicts)


@given(plans, calls, st.sampled_from(["strict", "substring"]), st.data())
def test_verdicts_of_a_plan_add_up_to_its_reward(
    plan: Plan, gold: list[ToolCall], match: str, data: st.DataObject
) -> None:
    weights = RewardSettings(param_match=match, c_extra=0.05)  # type: ignore[arg-type]
    size = len(plan.sub_tasks)
    row = st.lists(st.lists(call, max_size=2), min_size=size, max_size=size)
    rows = data.draw(st.lists(row, min_size=1, max_size=2))
    found = explain_plan(plan, gold, rows, weights)
    reward = planner_reward(plan, gold, rows, weights)
    judged = [a for v in found.calls for a in v.arguments]
    due = [a for a in judged if a.verdict != "extra"]
    if due:
        share = sum(a.verdict == "equal" for a in due) / len(due)
        assert share == pytest.approx(reward.parameters)
    if gold:
        means = [sum(s.semantics for s in row) / len(row) for row in found.steps]
        scores = [max(0.0, mean - 0.05 * found.extra) for mean in means]
        assert sum(scores) / len(scores) == pytest.approx(reward.execution)
    assert sum(found.succeeded) / len(rows) == pytest.approx(reward.success)
    planned = sum(len(v) for v in map(_planned_leaves, plan.sub_tasks))
    assert sum(a.made is not None for a in judged) == planned
    json.dumps(found.to_json(), allow_nan=False)


def _planned_leaves(sub_task: SubTask) -> list[object]:
    from tests.reference.rewards import scalars

    return scalars(sub_task.arguments) if sub_task.arguments else []


FIND = ToolCall("find", {"city": "Rome", "stars": 4})
BOOK = ToolCall("book", {"id": "$var1.id$"})


def test_an_execution_is_explained_call_by_call() -> None:
    city = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "stars": {"type": "integer"}},
    }
    made = Execution((ToolCall("rest", {}), ToolCall("find", {"city": "rome", "stars": "4"})))
    first, second, third = explain_execution(
        made, [BOOK, FIND], [ToolSpec("find", "", city)], ValueSettings(ignore_case=True)
    )
    assert (first.name, first.due, first.valid) == ("rest", None, False)
    assert first.note == "tool 'rest' does not exist"
    assert (second.name, second.due, second.number) == ("find", "find", 1)
    assert [a.verdict for a in second.arguments] == ["equal", "differs"]
    assert second.note == "argument 'stars': '4' is not of type 'integer'"
    assert (third.name, third.due, third.valid) == (None, "book", None)
    assert third.to_json()["arguments"] == (
        {"name": "id", "made": None, "due": "$var1.id$", "verdict": "missing", "at": None},
    )


def test_a_plan_is_explained_leaf_by_leaf() -> None:
    plan = Plan(
        (
            SubTask("look", "find", {"town": "Rome", "stars": 5, "pool": True}),
            SubTask("say", None),
        )
    )
    done = [[FIND], []]
    found = explain_plan(plan, [FIND, BOOK], [done], RewardSettings())
    first, second, third = found.calls
    assert [(a.name, a.verdict, a.at) for a in first.arguments] == [
        ("city", "equal", "town"),
        ("stars", "differs", None),
        ("pool", "extra", None),
    ]
    assert (second.name, second.due) == (None, None)
    assert (third.name, third.due, third.number) == (None, "book", 1)
    assert not found.covered
    [(met, unmet)] = found.steps
    assert (met.sub_tasks, met.semantics) == ((0,), 1.0)
    assert (unmet.sub_tasks, unmet.semantics) == ((), 0.0)


def test_what_did_not_parse_has_no_breakdown() -> None:
    failure = ParseFailure("x", 0)
    assert explain_execution(failure, [FIND], []) == []
    assert explain_plan(failure, [FIND], [], RewardSettings()).calls == ()


def test_a_gold_call_is_compared_with_one_call_only() -> None:
    made = Execution((ToolCall("g", {}), ToolCall("f", {"b": 1}), ToolCall("f", {"c": 1})))
    gold = [ToolCall("f", {"a": 1}), ToolCall("h", {}), ToolCall("h", {})]
    numbers = [v.number for v in explain_execution(made, gold, [])]
    assert numbers == [None, 0, None, 1, 2]
