"""Derived tasks: gold that the request gives, tools that vary, requests that no tool fits."""

from __future__ import annotations

import json
import random

import pytest

from cahl_core.config import PrepareSettings
from cahl_core.datasets.catalogue import topic
from cahl_core.datasets.checks import check
from cahl_core.datasets.derive import derive
from cahl_core.datasets.plans import plan_from_gold, purpose, words
from cahl_core.datasets.values import MONTHS, sample
from cahl_core.datasets.variation import vary
from cahl_core.protocol.parsing import parse_plan
from cahl_core.protocol.prompts import plan_text
from cahl_core.records import Message, SubTask, ToolCall, ToolSpec, ToolTask

COUNTS = {"single_step": 150, "parallel": 60, "irrelevance": 60}


def tool(name: str, description: str, required: int, **properties: object) -> ToolSpec:
    schema = {"type": "object", "properties": properties, "required": [*properties][:required]}
    return ToolSpec(name, description, schema)


TEXT, WHOLE, NUMBER, YES = ({"type": t} for t in ("string", "integer", "number", "boolean"))
TOOLS = (
    tool("get_weather", "Get the weather forecast for a city", 1,
         city=TEXT, days=WHOLE, hourly=YES),
    tool("convert_money", "Convert an amount of money", 3,
         amount=NUMBER, from_currency=TEXT, to_currency=TEXT),
    tool("Restaurants.Reserve", "Reserve a table at a restaurant", 2, restaurant_name=TEXT,
         party_size={"enum": ["1", "2", "3"]}, date=TEXT),
    tool("compute_mean", "Calculate the mean of numbers", 1,
         values={"type": "array", "items": NUMBER}),
    tool("play_song", "Play a song on a device", 1, title=TEXT,
         device={"type": "string", "enum": ["TV", "kitchen"]}),
    tool("opaque", "Needs an object", 1, config={"type": "object"}),
)  # fmt: skip


@pytest.fixture(scope="module")
def parents() -> list[ToolTask]:
    call = ToolCall("get_weather", {"city": "Oslo", "days": 3})
    meta = {"resolved": [call.arguments]}
    user = Message("user", "Three days of weather in Oslo?")
    return [
        ToolTask("p1", "own", (user,), TOOLS[:3], ((call,),), meta=meta),
        ToolTask("p2", "own", (Message("user", "Play something"),), TOOLS[3:], ()),
    ]


@pytest.fixture(scope="module")
def derived(parents: list[ToolTask]) -> list[ToolTask]:
    return derive(parents, COUNTS, seed=0, label="train")


def test_derivation_does_not_depend_on_what_was_drawn_before(parents: list[ToolTask]) -> None:
    few = derive(parents, {"parallel": 3}, 0, "train")
    many = derive(parents, {"single_step": 9, "parallel": 3}, 0, "train")
    assert [t.to_json() for t in few] == [t.to_json() for t in many if "parallel" in t.id]
    assert [t.to_json() for t in few] != [
        t.to_json() for t in derive(parents, {"parallel": 3}, 1, "x")
    ]


def test_derived_tasks_break_no_rule_and_name_their_parent(derived: list[ToolTask]) -> None:
    assert len({t.id for t in derived}) == len(derived) == sum(COUNTS.values())
    assert len({t.messages[0].content for t in derived}) == len(derived)
    for task in derived:
        assert check(task, PrepareSettings()) is None, task
        assert task.meta["derived_from"] in ("p1", "p2")
        assert task.plan == plan_from_gold(task)
        assert task.id.startswith(f"{task.meta['derived_from']}--{task.meta['derivation']}")


def spoken(value: object) -> list[str]:
    """The ways in which a request may give a value."""
    if isinstance(value, list):
        return [str(v) for v in value]
    text = str(value)
    if len(text) == 10 and text[4] == text[7] == "-":
        month = MONTHS[int(text[5:7]) - 1]
        return [text, f"{month} {int(text[8:])}, {text[:4]}", f"{int(text[8:])} {month} {text[:4]}"]
    return [text]


def test_every_gold_value_is_in_the_request(derived: list[ToolTask]) -> None:
    for task in derived:
        request = task.messages[0].content
        for call in task.calls:
            for value in call.arguments.values():
                if isinstance(value, bool):
                    continue
                forms = spoken(value)
                said = all if isinstance(value, list) else any
                assert said(form in request for form in forms), (request, value)


def test_irrelevance_offers_only_tools_of_other_topics(derived: list[ToolTask]) -> None:
    declined = [t for t in derived if t.meta["derivation"] == "irrelevance"]
    assert declined
    for task in declined:
        asked = {w.strip(".,?!'\"").lower().rstrip("s") for w in task.messages[0].content.split()}
        offered = {w for t in task.tools for w in topic(ToolSpec("", t.description, {}))}
        assert not {w for w in asked if len(w) > 3} & offered
        assert task.steps == ()
        assert task.plan is not None
        assert task.plan.sub_tasks == ()
        assert task.tools


def test_parallel_calls_are_distinct_and_independent(derived: list[ToolTask]) -> None:
    for task in (t for t in derived if t.meta["derivation"] == "parallel"):
        calls = [json.dumps(c.to_json(), sort_keys=True) for c in task.calls]
        assert 2 <= len(calls) == len(set(calls)) <= 4
        assert task.meta["levels"] == [0] * len(calls)
        assert all(len(step) == 1 for step in task.steps)


def test_names_vary_so_that_tools_cannot_be_learned_by_heart(derived: list[ToolTask]) -> None:
    names = {t.name for task in derived for t in task.tools if "weather" in t.name.lower()}
    assert len(names) >= 6
    assert any("." in n for n in names)
    assert any("_" in n for n in names)
    assert any(n != n.lower() for n in names)


def test_a_renamed_tool_keeps_its_arguments_apart() -> None:
    odd = tool("f", "Do", 2, query=TEXT, search_term=TEXT, q=TEXT)
    for seed in range(200):
        variant = vary(odd, True, random.Random(seed))
        assert len({s.name for s in variant.slots}) == len(variant.slots)


def test_tools_with_unsayable_required_arguments_are_never_asked_for(
    derived: list[ToolTask],
) -> None:
    assert not any("opaque" in t.name for task in derived for t in task.tools)


def test_numbers_and_booleans_that_a_source_has_as_text_get_their_type(
    derived: list[ToolTask],
) -> None:
    sizes = [
        value
        for task in derived
        for call in task.calls
        for name, value in call.arguments.items()
        if name.lower().replace("_", "") == "partysize"
    ]
    assert sizes
    assert all(isinstance(v, int) for v in sizes)


@pytest.mark.parametrize("kind", ["integer", "number"])
def test_drawn_numbers_keep_their_bounds(kind: str) -> None:
    schema = {"type": kind, "minimum": 2, "maximum": 6}
    for seed in range(100):
        value = sample("radius", schema, [50], random.Random(seed))
        assert 2 <= value <= 6
        assert kind == "number" or isinstance(value, int)


def test_plans_name_tool_and_arguments_of_every_gold_call() -> None:
    calls = (ToolCall("get_weather", {"city": "Oslo"}), ToolCall("get_weather", {"city": "Lima"}))
    task = ToolTask("t", "own", (Message("user", "Weather?"),), TOOLS, tuple((c,) for c in calls))
    plan = plan_from_gold(task)
    assert plan.sub_tasks == (
        SubTask("Get the weather forecast for a city for Oslo", "get_weather", {"city": "Oslo"}),
        SubTask("Get the weather forecast for a city for Lima", "get_weather", {"city": "Lima"}),
    )
    assert parse_plan(plan_text(plan)) == plan


def test_purpose_falls_back_to_the_name_when_the_description_is_no_short_clause() -> None:
    assert purpose(ToolSpec("getSeatMap", "", {})) == "Get seat map"
    assert purpose(ToolSpec("get_filter", "Get the `x` value for `y`", {})) == "Get filter"
    assert purpose(ToolSpec("f", "This API adds numbers. And more.", {})) == "Adds numbers"
    assert words("Hotels.bookHTTPRoom_v2") == ["hotels", "book", "http", "room", "v2"]


def test_topics_ignore_words_that_every_tool_has() -> None:
    assert topic(TOOLS[0]) == {"weather", "forecast", "city"}
