"""Derived tasks: gold that the request gives, tools that vary, requests that no tool fits."""

from __future__ import annotations

import json
import random
import re
from datetime import date, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahl_core.config import PrepareSettings
from cahl_core.datasets.amounts import grouped, spoken_number
from cahl_core.datasets.catalogue import Catalogue, content_words, topic
from cahl_core.datasets.checks import check
from cahl_core.datasets.declining import unfitting
from cahl_core.datasets.derive import KINDS, derive
from cahl_core.datasets.mentions import mention, yes_no
from cahl_core.datasets.names import words
from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.pools import POOLS
from cahl_core.datasets.values import MONTHS, sample
from cahl_core.datasets.variation import tidy, vary
from cahl_core.datasets.wording import action
from cahl_core.protocol.parsing import parse_plan
from cahl_core.protocol.prompts import plan_text
from cahl_core.records import Message, SubTask, ToolCall, ToolSpec, ToolTask

COUNTS = {"single_step": 150, "parallel": 60, "irrelevance": 60, "missing_argument": 40}
SHARED = Path(__file__).parents[2].parent / "shared" / "data"


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


FIGURE = re.compile(r"(-?\d[\d,]*(?:\.\d+)?)( thousand| million| billion|%)?")
SIZES = {" thousand": 1e3, " million": 1e6, " billion": 1e9, "%": 1.0, "": 1.0}
SMALL = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def numbers(request: str) -> set[float]:
    """Every number that a reader finds in the request; percentages also as decimals."""
    found = {float(n + 1) for n, w in enumerate(SMALL) if re.search(rf"\b{w}\b", request)}
    for digits, size in FIGURE.findall(request):
        value = float(digits.rstrip(",").replace(",", "")) * SIZES[size]
        found |= {round(value, 6)} | ({round(value / 100, 6)} if size == "%" else set())
    return found


def spoken(value: object, request: str) -> bool:
    """Whether the request gives the value, in one of the ways people give it."""
    if isinstance(value, list):
        return all(spoken(v, request) for v in value)
    text = str(value)
    if isinstance(value, int | float):
        return text in request or round(float(value), 6) in numbers(request)
    if len(text) == 10 and text[4] == text[7] == "-":
        month, day, year = MONTHS[int(text[5:7]) - 1], int(text[8:]), text[:4]
        forms = [text, f"{month} {day}, {year}", f"{day} {month} {year}"]
        return any(form in request for form in forms)
    return text in request or text.replace("_", " ").lower() in request


def check_words(task: ToolTask) -> None:
    """Every gold value is in the request, and no boolean is given as true or false."""
    request = task.messages[0].content
    assert not re.search(r"\b(true|false)\b", request, re.I), request
    for call in task.calls:
        for value in call.arguments.values():
            assert isinstance(value, bool) or spoken(value, request), (request, value)


def test_every_gold_value_is_in_the_request(derived: list[ToolTask]) -> None:
    for task in derived:
        check_words(task)


def test_irrelevance_offers_no_tool_of_the_same_topic(derived: list[ToolTask]) -> None:
    declined = [t for t in derived if t.meta["derivation"] == "irrelevance"]
    near = 0
    for task in declined:
        asked = content_words(task.messages[0].content)
        shared = [len(asked & topic(ToolSpec("", t.description, {}))) for t in task.tools]
        assert max(shared) <= 1
        near += max(shared)
        assert task.steps == ()
        assert task.plan is not None
        assert task.plan.sub_tasks == ()
        assert task.tools
    assert near < len(declined) / 2
    assert any(len(words(t.messages[0].content)) < 6 for t in declined)


def test_near_tools_share_one_word_and_far_ones_none() -> None:
    empty = {"type": "object", "properties": {}}
    tools = (
        ToolSpec("book_flight", "Book a flight to a town", empty),
        ToolSpec("flight_meal", "Order vegetarian meals aboard every flight", empty),
        ToolSpec("flight_town", "Show flight boards of every town quarter", empty),
        ToolSpec("mow_lawn", "Mow the lawn behind houses", empty),
    )
    parent = ToolTask("p", "own", (Message("user", "Book"),), tools, ())
    catalogue = Catalogue.of([parent])
    for seed in range(40):
        generator = random.Random(seed)
        near = unfitting(catalogue, {"book_flight"}, "Book a flight", True, generator)
        assert near[0] == "flight_meal"
        assert set(near) <= {"flight_meal", "mow_lawn"}
        far = unfitting(catalogue, {"book_flight"}, "Book a flight", False, generator)
        assert set(far) <= {"mow_lawn"}


def test_missing_arguments_are_asked_for_and_said_nowhere(derived: list[ToolTask]) -> None:
    asking = [t for t in derived if t.meta["derivation"] == "missing_argument"]
    assert asking
    for task in asking:
        missing = task.meta["missing"]
        tools = {t.name: t for t in task.tools}
        (name,) = missing["arguments"]
        assert name in tools[missing["tool"]].required
        assert task.steps == ()
        assert task.plan is not None
        (sub_task,) = task.plan.sub_tasks
        assert (sub_task.tool, sub_task.arguments) == (None, {})
        assert " ".join(words(name)).replace("id", "ID") in sub_task.task
        assert task.meta["answer"].endswith("?")
        if "weather" in missing["tool"].lower():
            text = task.messages[0].content
            assert not any(place in text for place in (*POOLS["place"], "Oslo"))


def test_parallel_calls_are_distinct_and_independent(derived: list[ToolTask]) -> None:
    for task in (t for t in derived if t.meta["derivation"] == "parallel"):
        calls = [json.dumps(c.to_json(), sort_keys=True) for c in task.calls]
        assert 2 <= len(calls) == len(set(calls)) <= 5
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
    assert [(s.tool, s.arguments) for s in plan.sub_tasks] == [(c.name, c.arguments) for c in calls]
    for sub_task, city in zip(plan.sub_tasks, ("Oslo", "Lima"), strict=True):
        assert sub_task == SubTask(sub_task.task, "get_weather", {"city": city})
        assert city in sub_task.task
        assert "weather" in sub_task.task
    assert parse_plan(plan_text(plan)) == plan


def test_actions_begin_with_a_verb_whatever_the_description_is() -> None:
    generator = random.Random(0)
    assert action("getSeatMap", "", generator).endswith("seat map")
    assert action("serve_wine", "Serve the wine to customers", generator).startswith("serve the")
    assert action("cancel", "Is used to cancel one or more alarms.", generator) == (
        "cancel one or more alarms"
    )
    assert action("f", "This API adds numbers. And more.", generator) == "add numbers"
    assert action("weather", "The current weather in a city", generator).endswith("weather")
    assert not action("weather", "The current weather", generator).startswith("the")
    assert action("x", "Create a plan for a given city", generator).endswith("a plan")
    assert words("Hotels.bookHTTPRoom_v2") == ["hotels", "book", "http", "room", "v2"]


def test_topics_ignore_words_that_every_tool_has() -> None:
    assert topic(TOOLS[0]) == {"weather", "forecast", "city"}


@pytest.mark.parametrize("value", [213_000_000, 1_500_000, 1_234_567, 12_000, 45, 99_999, 2.5])
def test_numbers_are_said_in_several_ways_that_give_the_same_number(value: float) -> None:
    forms = {grouped(value, random.Random(seed)) for seed in range(40)}
    assert all(float(value) in numbers(form) for form in forms)
    assert len(forms) > 1 or value < 10_000


@pytest.mark.parametrize(
    ("note", "value"), [("The rate as a decimal.", 0.05), ("The rate in percent.", 5)]
)
def test_percentages_are_written_as_the_schema_wants(note: str, value: float) -> None:
    schema = {"type": "number", "description": note}
    assert spoken_number("interest_rate", schema, value, random.Random(0)) == "5%"
    for seed in range(50):
        drawn = sample("interest_rate", schema, [], random.Random(seed))
        assert (drawn < 1) == (value < 1)
        kept = tidy("interest_rate", schema, random.Random(seed))
        assert kept["type"] == "number" or value == 5


def test_a_rate_without_a_unit_gets_one_in_its_description() -> None:
    for seed in range(30):
        schema = tidy("tax_rate", {"type": "number"}, random.Random(seed))
        assert "decimal" in schema["description"] or "percent" in schema["description"]


@pytest.mark.parametrize("name", ["include_images", "has_wifi", "hourly", "is_refundable", "x"])
def test_yes_and_no_are_different_words(name: str) -> None:
    forms = [
        {yes_no(words(name), value, random.Random(seed)) for seed in range(20)}
        for value in (True, False)
    ]
    assert not forms[0] & forms[1]
    for value, own in zip((True, False), forms, strict=True):
        for raw in (value, str(value)):  # some sources have booleans as text
            said = {mention(name, {}, raw, random.Random(seed)).phrase for seed in range(20)}
            assert said <= own
    assert not any("true" in f or "false" in f for f in forms[0] | forms[1])


def test_a_start_is_before_its_end() -> None:
    stay = tool("book_stay", "Book a stay", 3, city=TEXT, check_in=TEXT, check_out=TEXT)
    parent = ToolTask("p", "own", (Message("user", "Book"),), (stay,), ())
    made = derive([parent], {"single_step": 40}, 3, "train")
    assert made
    for task in made:
        dates = [v for v in task.calls[0].arguments.values() if re.fullmatch(r"\d{4}-.*", v)]
        assert len(dates) == 2
        first, last = (date.fromisoformat(d) for d in dates)
        assert timedelta(0) < last - first <= timedelta(days=60), task.messages[0].content


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(KINDS))
def test_whatever_is_drawn_is_valid_and_says_its_values(seed: int, kind: str) -> None:
    call = ToolCall("get_weather", {"city": "Oslo", "days": 3})
    user = Message("user", "Three days of weather in Oslo?")
    parent = ToolTask("p", "own", (user,), TOOLS, ((call,),), meta={"resolved": [call.arguments]})
    made = derive([parent], {kind: 3}, seed, "train")
    assert made
    for task in made:
        assert check(task, PrepareSettings()) is None
        assert task.meta["derivation"] == kind
        assert bool(task.calls) == (kind in ("single_step", "parallel"))
        check_words(task)


def real_parents() -> list[ToolTask]:
    found = []
    for name in ("nestful", "seal_tools", "nestools"):
        path = SHARED / name / "train.jsonl"
        if not path.is_file():
            pytest.skip(f"{path} is not here: derivation is checked on written tools only")
        for line in path.read_text(encoding="utf-8").splitlines()[:250]:
            task = ToolTask.from_json(json.loads(line))
            if not task.meta.get("issues"):
                found.append(task)
    return found


def test_requests_from_real_tools_are_valid_and_complete() -> None:
    parents = real_parents()
    made = derive(
        parents, {"single_step": 300, "parallel": 100, "missing_argument": 60}, 1, "train"
    )
    assert len(made) > 440
    assert len({t.messages[0].content for t in made}) == len(made)
    for task in made:
        assert check(task, PrepareSettings()) is None, task
        check_words(task)
        assert "\0" not in task.messages[0].content
    again = derive(parents, {"single_step": 300}, 1, "train")
    assert [t.to_json() for t in again] == [t.to_json() for t in made[: len(again)]]
