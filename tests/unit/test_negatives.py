"""Negatives: nothing is called where no tool fits, and a question is asked before a call lacks a value."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cahl_core.config import PrepareSettings, RewardSettings
from cahl_core.datasets.catalogue import topic_of
from cahl_core.datasets.checks import check
from cahl_core.datasets.negatives import ask_in_dialogue, said, without_gold_tools
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolSpec, ToolTask
from cahl_core.rewards import planner_reward

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "string"}},
        "required": ["city", "days"]}  # fmt: skip
WEATHER = ToolSpec("get_weather", "Get the weather forecast for a city", CITY)
TWIN = ToolSpec("forecast_v2", "Detailed forecast per hour", CITY)
SONG = ToolSpec("play_song", "Play a song", {"type": "object", "properties": {}})
MONEY = ToolSpec("convert_money", "Convert an amount of money", {"type": "object"})
CALL = ToolCall("get_weather", {"city": "Oslo", "days": "2"})


def one_turn(*tools: ToolSpec) -> ToolTask:
    user = Message("user", "What will the weather be in Oslo?")
    return ToolTask("t", "own", (user,), tools, ((CALL,),), meta={"answer": "Rain"})


def test_the_tools_that_would_do_are_gone_and_others_are_offered() -> None:
    pool = [SONG, MONEY, TWIN, replace(WEATHER, name="weather_again")]
    task = one_turn(WEATHER, TWIN, SONG)
    for seed in range(30):
        found = without_gold_tools(task, pool, random.Random(seed))
        assert found is not None
        assert {t.name for t in found.tools} in ({"play_song"}, {"play_song", "convert_money"})
        assert found.steps == ()
        assert found.plan == Plan(())
        assert found.messages == task.messages
        assert found.meta["derived_from"] == "t"
        assert found.meta["derivation"] == "irrelevance"
        assert "answer" not in found.meta
        assert check(found, PrepareSettings()) is None


def test_no_negative_without_another_tool_or_without_gold_or_with_calls_behind_it() -> None:
    generator = random.Random(0)
    assert without_gold_tools(one_turn(WEATHER), [TWIN], generator) is None
    assert without_gold_tools(replace(one_turn(WEATHER), steps=()), [SONG], generator) is None
    task = one_turn(WEATHER)
    made = (*task.messages, Message("assistant", "", (CALL,)), Message("user", "And then?"))
    assert without_gold_tools(replace(task, messages=made), [SONG], generator) is None
    one = without_gold_tools(one_turn(WEATHER), [SONG], generator)
    assert one is not None
    assert one.tools == (SONG,)


def test_a_distractor_about_much_of_the_request_is_taken_away_too() -> None:
    rival = ToolSpec("ask_oslo", "Will it rain in Oslo, and what will it cost", {"type": "object"})
    city = ToolSpec("oslo_guide", "A guide through Oslo", {"type": "object"})
    task = one_turn(WEATHER, rival, city, SONG)
    user = Message("user", "What will a rainy day in Oslo cost?")
    found = without_gold_tools(replace(task, messages=(user,)), [], random.Random(0))
    assert found is not None
    assert {t.name for t in found.tools} == {"oslo_guide", "play_song"}


def dialogue(question: str, reply: str, before: str = "How will the weather be?") -> ToolTask:
    messages = (
        Message("user", before),
        Message("assistant", question),
        Message("user", reply),
        Message("assistant", "", (CALL,)),
        Message("tool", "{}", name="get_weather"),
        Message("assistant", "Rain."),
    )
    meta = {"form": "dialogue", "answer_at": [3]}
    return ToolTask("d", "own", messages, (WEATHER,), ((CALL,),), meta=meta)


def test_a_question_for_a_missing_argument_becomes_a_task_that_asks() -> None:
    (task,) = ask_in_dialogue(dialogue("For which city?", "Oslo, for two days"))
    assert task.messages == (Message("user", "How will the weather be?"),)
    assert task.steps == ()
    assert task.meta["answer"] == "For which city?"
    assert task.meta["derivation"] == "missing_argument"
    assert task.meta["missing"] == {"tool": "get_weather", "arguments": ["city"]}
    assert "form" not in task.meta
    assert task.plan is not None
    (sub_task,) = task.plan.sub_tasks
    assert sub_task == SubTask(sub_task.task, None, {})
    assert "city" in sub_task.task
    assert task.plan == plan_from_gold(task)
    assert check(task, PrepareSettings()) is None
    assert planner_reward(task.plan, (), [[()]], RewardSettings()).parameters == 1.0


@pytest.mark.parametrize(
    ("question", "reply", "before"),
    [
        ("For which city?", "Oslo", "Two days of weather in Oslo?"),  # said before
        ("Oslo it is, is that right?", "Yes, Oslo", "Weather?"),  # a confirmation
        ("In Oslo?", "Yes, Oslo", "Weather?"),  # the assistant proposes the value
        ("Is this correct?", "No, Oslo", "Weather?"),  # a correction is no first mention
        ("For which city?", "What can you do?", "Weather?"),  # the reply does not say it
        ("I need the city.", "Oslo", "Weather?"),  # no question
        ("Anything else?", "No", "Weather?"),  # about nothing that the call needs
        ("Who are you?", "Oslo, 2 days", "Weather?"),  # names none of two missing ones
    ],
)
def test_other_turns_of_the_assistant_are_no_example_of_asking(
    question: str, reply: str, before: str
) -> None:
    assert ask_in_dialogue(dialogue(question, reply, before)) == []


def test_only_whole_dialogues_are_looked_through() -> None:
    task = dialogue("For which city?", "Oslo, for two days")
    assert ask_in_dialogue(replace(task, meta={"answer_at": [3]})) == []


def test_values_are_found_as_whole_words_and_small_numbers_in_words() -> None:
    assert said("2", "a table for two")
    assert said("New York", "to new york, please")
    assert not said("Oslo", "Osloer street")
    assert not said("York", "New Yorker")
    assert not said(True, "true")
    assert not said("", "anything")


def records(name: str, limit: int) -> Iterator[ToolTask]:
    path = SHARED / name / "train.jsonl"
    if not path.is_file():
        pytest.skip(f"{path} is not here: negatives are checked on written dialogues only")
    for line in path.read_text(encoding="utf-8").splitlines()[:limit]:
        record = json.loads(line)
        record["meta"]["plan_texts"] = record.pop("plan", [])
        yield ToolTask.from_json(record)


def test_real_dialogues_give_questions_that_are_asked_before_the_value_is_said() -> None:
    found = [(d, t) for d in records("sgd", 200) for t in ask_in_dialogue(d)]
    assert len(found) > 50
    assert len({t.id for _, t in found}) == len(found)
    for whole, task in found:
        assert task.messages == whole.messages[: len(task.messages)]
        assert task.messages[-1].role == "user"
        assert str(task.meta["answer"]).endswith("?")
        assert whole.messages[len(task.messages)].content.strip() == task.meta["answer"]
        name = task.meta["missing"]["arguments"][0]
        calls = [c for c in whole.calls if c.name == task.meta["missing"]["tool"]]
        texts = " ".join(m.content for m in task.messages)
        assert any(not said(c.arguments[name], texts) for c in calls if name in c.arguments)


def test_real_records_without_their_tools_offer_nothing_of_the_topic() -> None:
    tasks = [t for t in records("seal_tools", 300) if t.calls]
    pool = [tool for t in tasks for tool in t.tools]
    made = [without_gold_tools(t, pool, random.Random(t.id)) for t in tasks]
    found = [(t, n) for t, n in zip(tasks, made, strict=True) if n is not None]
    assert len(found) > 0.8 * len(tasks)
    for task, negative in found:
        gone = {c.name for c in task.calls}
        gold = {w for t in task.tools if t.name in gone for w in topic_of(t.name, t.description)}
        for tool in negative.tools:
            assert tool.name not in gone
            assert not gold & topic_of(tool.name, tool.description)
