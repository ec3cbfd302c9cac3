"""Dialogues cut into prompts: small ones by hand, and every dialogue of the mirror."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.checks import parse
from cahl_core.datasets.cut import cut, dialogue_problem, runs
from cahl_core.datasets.references import resolve
from cahl_core.records import ToolTask

MIRROR = Path(__file__).parents[2].parent / "shared" / "data"
FIND = {
    "name": "find",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
BOOK = {"name": "book", "parameters": {"type": "object", "properties": {"id": {"type": "string"}}}}


def say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return say("assistant", "", tool_calls=[{"name": name, "arguments": arguments}])


def dialogue(**meta: Any) -> ToolTask:
    messages = [
        say("user", "A room in Oslo, book the first."),
        call("find", city="Oslo"),
        say("tool", json.dumps([{"id": "h-71", "name": "Fjord"}, {"id": "h-72"}])),
        call("book", id="h-71"),
        say("tool", json.dumps({"ok": True})),
        say("assistant", "Booked."),
        say("user", "And Lima?"),
        call("find", city="Lima"),
        say("tool", "no rooms"),
    ]
    calls = [m["tool_calls"] for m in messages if "tool_calls" in m]
    record = {
        "id": "d", "source": "s", "messages": messages, "tools": [FIND, BOOK], "answers": calls,
        "meta": {"form": "dialogue", "answer_at": [1, 3, 7], **meta},
    }  # fmt: skip
    return ToolTask.from_json(record)


def test_calls_without_a_word_between_them_are_one_prompt() -> None:
    first, second = cut(dialogue(), 320)
    assert (first.id, second.id) == ("d#0", "d#2")
    assert [m.content for m in first.messages] == ["A room in Oslo, book the first."]
    assert len(second.messages) == 7
    assert [len(t.steps) for t in (first, second)] == [2, 1]


def test_what_only_a_result_gives_becomes_a_reference_with_its_value() -> None:
    first, second = cut(dialogue(), 320)
    assert first.calls[1].arguments == {"id": "$var1.id$"}
    assert first.meta["resolved"] == [{"city": "Oslo"}, {"id": "h-71"}]
    assert first.meta["levels"] == [0, 1]
    assert second.meta["results"] == ["no rooms"]


def test_a_value_of_a_later_item_is_a_choice_no_plan_can_make() -> None:
    task = dialogue()
    messages = list(task.messages)
    record = task.to_json()
    record["messages"][3]["tool_calls"][0]["arguments"]["id"] = "h-72"
    record["answers"][1][0]["arguments"]["id"] = "h-72"
    first = cut(ToolTask.from_json(record), 320)[0]
    assert first.meta["ungrounded"] == ["2.id"]
    assert messages == list(task.messages)


@pytest.mark.parametrize(
    ("places", "sentence"),
    [
        ("1, 3", "not a list"),
        ([1, 3], "2 entries for 3 steps"),
        ([3, 1, 7], "does not increase"),
        ([1, 3, 70], "message 70"),
        ([0, 3, 7], "message 0"),
        ([1, 2, 7], "message 2"),
    ],
)
def test_places_that_do_not_fit_are_named(places: Any, sentence: str) -> None:
    assert sentence in str(dialogue_problem(dialogue(answer_at=places)))


@pytest.mark.parametrize("source", ["sgd", "taskmaster4"])
def test_every_gold_call_of_the_mirrors_dialogues_is_in_one_prompt(source: str) -> None:
    if not (MIRROR / source).is_dir():
        pytest.skip(f"no ../shared/data/{source}")
    count = 0
    for record in READERS["tool-tasks"](MIRROR / source, source, ReadLimits()):
        task = parse(record, "x")
        assert isinstance(task, ToolTask)
        assert dialogue_problem(task) is None
        parts = cut(task, 320)
        assert len(parts) == len(list(runs(task)))
        calls = [c for part in parts for c in part.calls]
        assert [c.name for c in calls] == [c.name for c in task.calls]
        resolved = [values for part in parts for values in part.meta["resolved"]]
        for values, gold in zip(resolved, task.calls, strict=True):
            assert values == gold.arguments
        for part in parts:
            assert not any(part.messages[-1].role == "assistant" and m.tool_calls
                           for m in part.messages[-1:])  # fmt: skip
            for number, made in enumerate(part.calls):
                parameters = {t.name: t.parameters for t in part.tools}[made.name]
                found = resolve(made, part.results[:number], parameters)
                assert found == part.meta["resolved"][number]
        count += len(parts)
    assert count > len(list((MIRROR / source).glob("*.jsonl")))
