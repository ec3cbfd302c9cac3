"""Augmentation: a renamed record earns what it earned before; distractors never repeat a tool."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahl_core.config import RewardSettings
from cahl_core.datasets.augment import (
    VALID_ARGUMENT,
    VALID_TOOL,
    add_distractors,
    draw_renaming,
    rename,
    shuffle_tools,
)
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.renaming import Renaming
from cahl_core.protocol.parsing import Execution
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.rewards import (
    executor_reward,
    parameter_reward,
    planner_reward,
    semantic_reward,
    syntax_reward,
)

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
FILES = (
    "sgd/train", "taskmaster4/train", "complexfuncbench/train", "nestools/train",
    "seal_tools/train", "nestful/train", "mtu_bench/train", "rlla/sft", "tau_bench_retail/train",
    "api_bank/level-1", "open_qa/eval_musique_500",
)  # fmt: skip
WEIGHTS = RewardSettings()


def scores(task: ToolTask) -> list[Any]:
    """Every reward the gold earns against its own task."""
    plan = plan_from_gold(task)
    resolved = [
        ToolCall(c.name, v or c.arguments)
        for c, v in zip(task.calls, task.meta.get("resolved") or (), strict=False)
    ] or list(task.calls)
    made = [[(c,) for c in resolved]]
    found: list[Any] = [
        semantic_reward(task.calls, task.calls),
        syntax_reward(task.calls, task.calls, task.tools),
        parameter_reward(plan, task.calls, "strict"),
        planner_reward(plan, task.calls, made, WEIGHTS, resolved),
    ]
    return found + [executor_reward(Execution((c,)), [c], task.tools, WEIGHTS) for c in task.calls]


def check_renaming(task: ToolTask, generator: random.Random) -> Renaming:
    renaming = draw_renaming(task, generator)
    renamed = renaming.apply(task)
    old = {*renaming.tools, *renaming.arguments}
    new = [*renaming.tools.values(), *renaming.arguments.values()]
    assert len(set(new)) == len(new)
    assert not old & set(new)
    assert all(VALID_TOOL.fullmatch(n) for n in renaming.tools.values())
    assert all(VALID_ARGUMENT.fullmatch(n) for n in renaming.arguments.values())
    assert renaming.inverse().apply(renamed) == task
    assert [list(t.properties) for t in renamed.tools] == [
        [renaming.arguments[n] for n in t.properties] for t in task.tools
    ]
    return renaming


def records(name: str, limit: int) -> Iterator[ToolTask]:
    path = SHARED / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here: renaming is checked on generated tasks only")
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines[:: max(1, len(lines) // limit)]:
        record = json.loads(line)
        record["meta"]["plan_texts"] = record.pop("plan", [])  # SGD's plans are texts of intents
        yield ToolTask.from_json(record)


@pytest.mark.parametrize("name", FILES)
def test_a_renamed_record_scores_its_gold_as_before(name: str) -> None:
    for task in records(name, 60):
        generator = random.Random(f"7 {task.id}")
        task = replace(task, plan=plan_from_gold(task))
        renamed = check_renaming(task, generator).apply(task)
        before = scores(task)
        assert scores(renamed) == before, task.id
        if not task.meta.get("issues") and task.calls and name != "rlla/sft":
            assert before[0] == before[2] == 1.0
            assert before[3].total == WEIGHTS.w_param + WEIGHTS.w_exe
        messages = [(m.role, m.content) for m in task.messages]
        assert [(m.role, m.content) for m in renamed.messages] == messages


NAMES = st.from_regex(r"[a-z]{1,6}([_.][a-z]{1,5})?", fullmatch=True)
VALUES = st.one_of(st.integers(), st.text(max_size=8), st.booleans(), st.just("$var1.a.b$"))


@st.composite
def tasks(draw: st.DrawFn) -> ToolTask:
    names = draw(st.lists(NAMES, min_size=1, max_size=4, unique=True))
    tools, calls = [], []
    for name in names:
        arguments = draw(st.lists(NAMES, max_size=4, unique=True))
        mention = draw(st.sampled_from([*names, *arguments, "a word"]))
        schema = {
            "type": "object",
            "properties": {a: {"description": f"see {mention}."} for a in arguments},
            "required": arguments[:1],
        }
        tools.append(ToolSpec(name, f"Does {mention}, e.g. get {mention}", schema))
        calls.append(ToolCall(name, {a: draw(VALUES) for a in arguments}))
    user = Message("user", "Do it with " + names[0])
    made = Message("assistant", "", (calls[0],))
    result = Message("tool", "{}", name=names[0])
    task = ToolTask("t", "own", (user, made, result), tuple(tools), tuple((c,) for c in calls))
    meta = {"resolved": [c.arguments for c in calls], "deps": []}
    return replace(task, plan=plan_from_gold(task), meta=meta)


@settings(max_examples=150, deadline=None)
@given(tasks(), st.integers())
def test_renaming_is_reversible_and_keeps_every_reward(task: ToolTask, seed: int) -> None:
    renaming = check_renaming(task, random.Random(seed))
    renamed = renaming.apply(task)
    assert scores(renamed) == scores(task)
    assert scores(task)[0] == scores(task)[2] == 1.0
    assert rename(task, random.Random(seed)) == renamed


def one_tool() -> ToolTask:
    schema = {
        "type": "object",
        "properties": {
            "order_id": {"type": "string", "description": "Not the user_id."},
            "user_id": {"$ref": "#/properties/order_id"},
            "box": {"type": "object", "properties": {"order_id": {"type": "string"}}},
        },
        "required": ["order_id"],
        "anyOf": [{"required": ["user_id"]}, {"required": ["box"]}],
        "dependentRequired": {"box": ["user_id"]},
    }
    tool = ToolSpec("find_order", "find_order finds an order", schema, {"type": "object"})
    call = ToolCall("find_order", {"order_id": "7", "box": {"order_id": "$var1.order_id$"}})
    meta = {
        "deps": [{"call": 1, "arg": "box.order_id", "from": 1, "path": "order_id"}],
        "ungrounded": ["1.box.order_id"],
        "missing": {"tool": "find_order", "arguments": ["user_id"]},
        "resolved": [{"order_id": "7", "box": {}}],
    }
    plan = Plan((SubTask("Call find_order", "find_order", call.arguments),))
    history = (
        Message("user", "find_order 7"),
        Message("assistant", "", (ToolCall("find_order", {"user_id": "3"}),)),
        Message("tool", '{"order_id": 1}', name="find_order"),
    )
    return ToolTask("t", "own", history, (tool,), ((call,),), plan, meta)


def test_everything_that_names_an_argument_is_rewritten() -> None:
    names = {"order_id": "A", "user_id": "B", "box": "C"}
    mentioned = frozenset({"find_order", "user_id"})
    renaming = Renaming({"find_order": "run"}, names, mentioned)
    task = renaming.apply(one_tool())
    schema = task.tools[0].parameters
    assert task.tools[0].description == "run finds an order"
    assert schema["properties"]["A"]["description"] == "Not the B."
    assert schema["properties"]["B"] == {"$ref": "#/properties/A"}
    assert schema["properties"]["C"]["properties"] == {"order_id": {"type": "string"}}
    assert schema["required"] == ["A"]
    assert schema["anyOf"] == [{"required": ["B"]}, {"required": ["C"]}]
    assert schema["dependentRequired"] == {"C": ["B"]}
    assert task.calls == (ToolCall("run", {"A": "7", "C": {"order_id": "$var1.order_id$"}}),)
    assert task.meta["deps"] == [{"call": 1, "arg": "C.order_id", "from": 1, "path": "order_id"}]
    assert task.meta["ungrounded"] == ["1.C.order_id"]
    assert task.meta["missing"] == {"tool": "run", "arguments": ["B"]}
    assert task.plan is not None
    assert task.plan.sub_tasks[0].task == "Call run"
    assert task.meta["resolved"] == [{"A": "7", "C": {}}]
    user, made, result = task.messages
    assert user.content == "find_order 7"
    assert made.tool_calls == (ToolCall("run", {"B": "3"}),)
    assert (result.name, result.content) == ("run", '{"order_id": 1}')


def test_a_new_name_is_never_one_that_a_description_already_holds() -> None:
    taken = " ".join(f"tool_{n}" for n in range(1, 100))
    tool = ToolSpec("get_x", f"get_x comes after {taken}", {"type": "object", "properties": {}})
    task = ToolTask("t", "own", (Message("user", "Go"),), (tool,), ())
    for seed in range(30):
        check_renaming(task, random.Random(seed))


def test_names_vary_between_records_in_style_and_kind() -> None:
    task = one_tool()
    names = {rename(task, random.Random(seed)).tools[0].name for seed in range(60)}
    assert len(names) > 30
    assert any(n.isupper() for n in names)
    assert any("order" in n.lower() for n in names)
    assert any("order" not in n.lower() for n in names)


def pool() -> list[ToolSpec]:
    empty: dict[str, Any] = {"type": "object", "properties": {}}
    return [
        ToolSpec("find_order", "Something else with this name", empty),
        replace(one_tool().tools[0], name="same_under_another_name"),
        *(ToolSpec(f"far_{n}", f"Plays tune number {n}", empty) for n in range(8)),
        ToolSpec("list_orders", "Lists every order of a customer", empty),
        ToolSpec("list_orders", "Another tool, same name", empty),
    ]


def test_distractors_are_other_tools_and_related_ones_come_first() -> None:
    task = one_tool()
    for seed in range(40):
        more = add_distractors(task, pool(), 3, random.Random(seed))
        names = [t.name for t in more.tools]
        assert len(names) == len(set(names)) == 4
        assert "list_orders" in names
        assert "same_under_another_name" not in names
        assert task.tools[0] in more.tools
        assert replace(more, tools=task.tools) == task
    assert len(add_distractors(task, pool(), 99, random.Random(0)).tools) == 10
    assert add_distractors(task, [], 3, random.Random(0)) == task


def test_shuffling_changes_nothing_but_the_order() -> None:
    task = replace(one_tool(), tools=tuple(pool()[2:8]))
    shuffled = [shuffle_tools(task, random.Random(seed)) for seed in range(5)]
    assert len({tuple(t.name for t in s.tools) for s in shuffled}) > 1
    for other in shuffled:
        assert sorted(t.name for t in other.tools) == sorted(t.name for t in task.tools)
        assert replace(other, tools=task.tools) == task
