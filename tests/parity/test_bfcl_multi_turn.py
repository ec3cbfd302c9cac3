"""BFCL multi-turn against the official package: gold passes, wrong answers fail, conversations run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from bfcl_oracle import Player, place, scripted_agent, sub_task

from cahl_core.evaluation import bfcl_stubs
from cahl_core.evaluation.bfcl_multi_turn import CATEGORIES, UNANSWERABLE, BfclMultiTurn
from cahl_core.evaluation.bfcl_records import redundant
from cahl_core.evaluation.core import Attempt, Item, ItemScore, Record
from cahl_core.protocol.texts import execution_text, plan_text, single_text
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.serving.agent import Agent
from cahl_core.train_config import Form

BASE, MISS_FUNC, MISS_PARAM, LONG = CATEGORIES
TOO_LONG_BY_SINGLE_CALLS = {"multi_turn_long_context_38", "multi_turn_long_context_46"}
Calls = list[list[ToolCall]]  # by turn
Steps = list[list[list[ToolCall]]]  # turns → steps → calls


@pytest.fixture(scope="session")
def v3(bfcl_wheel: Path) -> Iterator[BfclMultiTurn]:
    found = BfclMultiTurn("v3", bfcl_wheel, timeout=120)
    yield found
    found.simulator.end()


@pytest.fixture(scope="session")
def v4(bfcl_v4_wheel: Path) -> Iterator[BfclMultiTurn]:
    found = BfclMultiTurn("v4", bfcl_v4_wheel, timeout=120)
    yield found
    found.simulator.end()


@pytest.fixture(scope="session", params=["v3", "v4"])
def benchmark_of(request: pytest.FixtureRequest) -> BfclMultiTurn:
    found: BfclMultiTurn = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def reference(
    benchmark_of: BfclMultiTurn, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the official code makes of gold answers (`bfcl_reference`)."""
    wheel, folder = benchmark_of.simulator.wheel, tmp_path_factory.mktemp("reference")
    return run_reference(wheel, benchmark_of.version, folder)


def run_reference(wheel: Path, version: str, folder: Path) -> dict[str, Any]:
    script = Path(__file__).with_name("bfcl_reference.py")
    mpmath = importlib.util.find_spec("mpmath")
    assert mpmath is not None and mpmath.origin is not None
    arguments = [wheel, bfcl_stubs.__file__, Path(mpmath.origin).parent, version]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", str(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={**os.environ, "BFCL_PROJECT_ROOT": str(folder)},
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def judged(
    benchmark: BfclMultiTurn, items: Sequence[Item], answer: Callable[[Calls], Steps]
) -> list[ItemScore]:
    records = [record(answer([list(turn) for turn in item.data.gold])) for item in items]
    return benchmark.score([Attempt(item) for item in items], records)


def record(turns: Steps) -> Record:
    """What an attempt that made these calls would have left, without its texts."""
    made = [
        {"results": [], "steps": [[_executed(c) for c in step] for step in turn]} for turn in turns
    ]
    return {"turns": made, "forced": False, "too_long": False}


def _executed(call: ToolCall, changed: bool = True) -> dict[str, Any]:
    return {**call.to_json(), "result": "", "changed": changed}


def in_one_step(gold: Calls) -> Steps:
    return [[turn] if turn else [] for turn in gold]


def one_call_a_step(gold: Calls) -> Steps:
    return [[[call] for call in turn] for turn in gold]


def right(scores: Sequence[ItemScore]) -> dict[str, int]:
    return {c: sum(int(s.correct) for s in scores if s.category == c) for c in CATEGORIES}


def test_gold_passes_in_every_category(benchmark_of: BfclMultiTurn) -> None:
    items = benchmark_of.items()
    scores = judged(benchmark_of, items, one_call_a_step)
    assert len({i.id for i in items}) == len(items) == 800
    assert right(scores) == dict.fromkeys(CATEGORIES, 200)
    assert {s.scores["turns_right"] for s in scores} == {1}
    assert sum(s.redundant for s in scores) == 0
    assert benchmark_of.summary(scores)["multi_turn"] == 1
    assert "multi_turn" not in benchmark_of.summary(scores[::2])  # of a sample there is no column
    assert benchmark_of.simulator.status() == {"open": 0, "instances": 0}


def test_gold_passes_with_all_calls_of_a_turn_in_one_step(v4: BfclMultiTurn) -> None:
    assert right(judged(v4, v4.items()[::4], in_one_step)) == dict.fromkeys(CATEGORIES, 50)


def without_calls(gold: Calls) -> Steps:
    return [[] for _ in gold]


def without_the_last_call(gold: Calls) -> Steps:
    last = max(n for n, turn in enumerate(gold) if turn)
    return in_one_step([turn[:-1] if n == last else turn for n, turn in enumerate(gold)])


def without_the_last_turn(gold: Calls) -> Steps:
    return in_one_step(gold[:-1])


@pytest.mark.parametrize(
    ("answer", "kinds"),
    [
        (without_calls, {"multi_turn:empty_turn_model_response"}),
        (
            without_the_last_call,
            {
                "multi_turn:empty_turn_model_response",
                "multi_turn:instance_state_mismatch",
                "multi_turn:execution_response_mismatch",
            },
        ),
        (without_the_last_turn, {"multi_turn:force_terminated"}),
    ],
)
def test_too_little_passes_nowhere(
    v4: BfclMultiTurn, answer: Callable[[Calls], Steps], kinds: set[str]
) -> None:
    scores = judged(v4, v4.items()[::5], answer)
    assert right(scores) == dict.fromkeys(CATEGORIES, 0)
    assert {s.error_type for s in scores} == kinds
    assert all(s.error for s in scores)
    assert all(s.scores["turns_right"] < 1 for s in scores)  # type: ignore[operator]


def twice(gold: Calls) -> Steps:
    return in_one_step([turn + turn for turn in gold])


def with_an_unknown_function(gold: Calls) -> Steps:
    return in_one_step([[*turn, ToolCall("no_such_function", {"a": 1})] for turn in gold])


def reversed_order(gold: Calls) -> Steps:
    return in_one_step([turn[::-1] for turn in gold])


def too_early_and_again(gold: Calls) -> Steps:
    empty = next((n for n, turn in enumerate(gold[:-1]) if not turn), None)
    return in_one_step([gold[n + 1] if n == empty else turn for n, turn in enumerate(gold)])


@pytest.mark.parametrize(
    ("answer", "category", "accepted"),
    [
        (twice, BASE, 73),
        (with_an_unknown_function, BASE, 200),
        (with_an_unknown_function, MISS_FUNC, 200),
        (reversed_order, BASE, 90),
        (too_early_and_again, MISS_FUNC, 145),
        (too_early_and_again, MISS_PARAM, 128),
    ],
)
def test_what_the_official_checker_lets_pass_passes_here_too(
    v4: BfclMultiTurn, answer: Callable[[Calls], Steps], category: str, accepted: int
) -> None:
    items = [i for i in v4.items() if i.category == category]
    assert sum(s.correct for s in judged(v4, items, answer)) == accepted


def test_earlier_answers_to_an_item_do_not_count_towards_later_ones(
    benchmark_of: BfclMultiTurn, reference: dict[str, Any]
) -> None:
    """The package's own use, one name per model, finds half of the gold answers wrong next time."""
    benchmark = benchmark_of
    if benchmark.version == "v4":
        assert reference["one_name"] == {"first": 95, "nothing": 113}
    assert max(reference["one_name"].values()) < 150
    items = [i for i in benchmark.items() if i.category == BASE][::4]
    first = [(i.id, in_one_step([turn[:1] for turn in i.data.gold])) for i in items]
    gold = [(i.id, in_one_step([list(turn) for turn in i.data.gold])) for i in items]
    mixed = benchmark.simulator.score([a for pair in zip(first, gold, strict=True) for a in pair])
    assert all(v.valid for v in mixed[1::2])
    assert [v.valid for v in benchmark.simulator.score(gold)] == [True] * len(items)


def test_called_methods_return_what_the_official_executor_shows(
    benchmark_of: BfclMultiTurn, reference: dict[str, Any]
) -> None:
    gold = {i.id: i.data.gold for i in benchmark_of.items()}
    simulator = benchmark_of.simulator
    assert len(reference["results"]) == 40
    for item, expected in reference["results"].items():
        with simulator.opened({item: item}):
            calls = [call for turn in gold[item] for call in turn]
            shown = [simulator.call(item, call).text for call in calls]
        assert shown == expected, item


# conversations


def sampled(benchmark: BfclMultiTurn, each: int) -> list[Item]:
    items = [i for i in benchmark.items() if i.id not in UNANSWERABLE[benchmark.version]]
    return [i for c in CATEGORIES for i in [i for i in items if i.category == c][::40][:each]]


def solve(benchmark: BfclMultiTurn, solver: Any, items: Sequence[Item]) -> list[Record]:
    attempts = [Attempt(item) for item in items]
    records: dict[str, Record] = {}
    benchmark.solve(solver, attempts, lambda a, r: records.__setitem__(a.item.id, r))
    return json.loads(json.dumps([records[i.id] for i in items]))  # type: ignore[no-any-return]


def outcome(benchmark: BfclMultiTurn, solver: Any, items: Sequence[Item]) -> list[ItemScore]:
    return benchmark.score([Attempt(i) for i in items], solve(benchmark, solver, items))


def due_of(items: Sequence[Item], single: bool) -> Callable[[str], list[list[ToolCall]]]:
    gold = {i.id: i.data.gold for i in items}

    def due(seed: str) -> list[list[ToolCall]]:
        item, turn, _ = place(seed)
        calls = gold[item][turn]
        return [[c] for c in calls] if single else [list(calls)] if calls else []

    return due


@pytest.mark.parametrize(
    ("form", "single"),
    [("hierarchical", True), ("low_only", False), ("low_only", True), ("single_level", False)],
)
def test_a_perfect_model_passes_in_every_form(
    benchmark_of: BfclMultiTurn, form: Form, single: bool
) -> None:
    items = sampled(benchmark_of, 5)
    scores = outcome(benchmark_of, Player(due_of(items, single), form), items)
    assert [s.id for s in scores if not s.correct] == []
    gold_calls = sum(len(turn) for i in items for turn in i.data.gold)
    assert sum(s.attempted for s in scores) == gold_calls
    assert {s.planned for s in scores} == ({None} if form == "low_only" else {True})
    assert benchmark_of.simulator.status() == {"open": 0, "instances": 0}


def test_items_with_more_gold_turns_than_questions_are_those_named(
    benchmark_of: BfclMultiTurn,
) -> None:
    short = [i for i in benchmark_of.items() if len(i.data.said) != len(i.data.gold)]
    assert {i.id for i in short} == set(UNANSWERABLE[benchmark_of.version])
    scores = outcome(benchmark_of, Player(due_of(short, single=True)), short)
    assert {s.error_type for s in scores} <= {"multi_turn:force_terminated"}


def test_more_than_twenty_texts_with_calls_in_one_turn_end_the_conversation(
    v4: BfclMultiTurn,
) -> None:
    items = [i for i in v4.items() if i.id in TOO_LONG_BY_SINGLE_CALLS]
    for form in ("hierarchical", "low_only"):
        records = solve(v4, Player(due_of(items, single=True), form), items)
        scores = v4.score([Attempt(i) for i in items], records)
        assert {s.error_type for s in scores} == {"multi_turn:force_terminated"}
        assert {len(r["turns"][-1]["steps"]) for r in records} == {20}
    scores = outcome(v4, Player(due_of(items, single=False), "low_only"), items)
    assert [s.correct for s in scores] == [1, 1]


def gold_agent(
    items: Sequence[Item], form: Form, executor: str | None = None, max_context: int = 1 << 22
) -> tuple[Agent, dict[str, str]]:
    """The real agent with the gold plans and calls in the place of weights."""
    gold = {i.id: i.data.gold for i in items}

    def write(role: str, seed: str, label: str) -> str:
        item, turn, text = place(seed)
        calls = gold[item][turn]
        if role == "planner":
            return plan_text(Plan(tuple(map(sub_task, calls))))
        if executor is not None:
            return executor
        if form == "hierarchical":
            return execution_text([calls[int(label)]])
        made = calls if text == 0 else ()
        if form == "low_only":
            return execution_text(made)
        return single_text(Plan(tuple(map(sub_task, made))), made)

    return scripted_agent(write, form, max_context)


@pytest.mark.parametrize("form", ["hierarchical", "low_only", "single_level"])
def test_an_oracle_passes_through_the_real_agent_and_a_mute_executor_does_not(
    v4: BfclMultiTurn, form: Form
) -> None:
    items = sampled(v4, 2)
    agent, _ = gold_agent(items, form)
    assert [s.correct for s in outcome(v4, agent, items)] == [1] * len(items)
    mute, _ = gold_agent(items, form, executor="")
    scores = outcome(v4, mute, items)
    assert [s.correct for s in scores] == [0] * len(items)
    assert {s.error_type for s in scores} == {"multi_turn:decode_failure"}


def test_plans_see_earlier_turns_and_executors_the_results_before_them(v4: BfclMultiTurn) -> None:
    (item,) = [i for i in v4.items() if i.id == "multi_turn_base_0"]
    agent, prompts = gold_agent([item], "hierarchical")
    (found,) = solve(v4, agent, [item])
    shown = prompts["multi_turn_base_0/1/0/plan"]
    assert 'Calls: [{"name": "cd", "arguments": {"folder": "document"}}]' in shown
    assert "'final_report.pdf' moved to 'temp/final_report.pdf'" in shown
    assert item.data.said[1][0].content in shown
    assert item.data.said[2][0].content not in shown
    executor = prompts["multi_turn_base_0/0/0/1"]
    assert 'Result 1 (cd): {"current_working_directory": "document"}' in executor
    assert found["turns"][0]["steps"][0][0]["result"] == '{"current_working_directory": "document"}'
    example = v4.example(Attempt(item), found)
    assert "gold (turn 4): " in example and "moved to" in example


def test_held_back_tools_join_at_their_turn_with_the_official_sentence(
    benchmark_of: BfclMultiTurn,
) -> None:
    (item,) = [i for i in benchmark_of.items() if i.id == "multi_turn_miss_func_0"]
    offered = [{t.name for t in tools} for tools in item.data.tools]
    assert [sorted(names - offered[0]) for names in offered] == [[], [], [], ["sort"], ["sort"]]
    assert item.data.said[3][0].content == (
        "I have updated some more functions you can choose from. What about now?"
    )
    agent, prompts = gold_agent([item], "hierarchical")
    solve(benchmark_of, agent, [item])
    assert "\nsort(" not in prompts["multi_turn_miss_func_0/2/0/plan"]
    assert "\nsort(" in prompts["multi_turn_miss_func_0/3/0/plan"]


def test_tools_have_json_schema_types_and_name_their_results(benchmark_of: BfclMultiTurn) -> None:
    tools = {t for i in benchmark_of.items()[:1] for t in [x.name for x in i.data.tools[0]]}
    assert {"ls", "mv", "grep", "post_tweet"} <= tools
    specs = [t for i in benchmark_of.items() for t in i.data.tools[0]]
    assert {t.parameters["type"] for t in specs} == {"object"}
    assert all(t.returns is not None for t in specs)
    assert all(t.description.endswith("is in Python 3 syntax.") for t in specs)


def test_references_are_replaced_by_results_of_the_turn_before_a_call_runs(
    v4: BfclMultiTurn,
) -> None:
    (item,) = [i for i in v4.items() if i.id == "multi_turn_base_0"]
    calls = [ToolCall("pwd", {}), ToolCall("echo", {"content": "$var1.current_working_directory$"})]
    texts = {True: [[c] for c in calls], False: [calls]}
    for form, single in (("hierarchical", True), ("low_only", False), ("low_only", True)):
        player = Player(lambda seed, s=single: texts[s], form)  # type: ignore[misc]
        (found,) = solve(v4, player, [item])
        made = [c for step in found["turns"][0]["steps"] for c in step]
        where = json.loads(made[0]["result"])["current_working_directory"]
        assert made[1]["arguments"] == {"content": where}
        assert json.loads(made[1]["result"]) == {"terminal_output": where}


def test_a_text_outside_the_grammar_ends_its_turn_and_only_that(v4: BfclMultiTurn) -> None:
    (item,) = [i for i in v4.items() if i.id == "multi_turn_base_0"]
    listing = ToolCall("ls", {})
    plan = plan_text(Plan((SubTask("", "ls"),) * 3))

    def write(role: str, seed: str, label: str) -> str:
        return plan if role == "planner" else "Sure!" if label == "1" else execution_text([listing])

    agent, _ = scripted_agent(write)
    (found,) = solve(v4, agent, [item])
    assert [len(turn["steps"]) for turn in found["turns"]] == [1, 1, 1, 1]
    (score,) = v4.score([Attempt(item)], [found])
    assert score.outcome == "execution_failure"
    assert score.correct == 0 and score.invalid == 4 and score.attempted == 12


def test_a_prompt_that_is_too_long_fails_its_conversation_alone(v4: BfclMultiTurn) -> None:
    items = [i for i in v4.items() if i.id in ("multi_turn_base_0", "multi_turn_base_100")]
    agent, prompts = gold_agent(items, "hierarchical")
    solve(v4, agent, items)
    longest = {
        i.id: max(len(p) for s, p in prompts.items() if s.startswith(f"{i.id}/")) for i in items
    }
    shorter, longer = sorted(longest, key=lambda i: longest[i])
    agent, _ = gold_agent(items, "hierarchical", max_context=longest[shorter] + 1)
    scores = {s.id: s for s in outcome(v4, agent, items)}
    assert scores[shorter].correct == 1
    assert scores[longer].error_type == "multi_turn:prompt_too_long"
    assert scores[longer].outcome == "prompt_too_long"
    assert "max_context" in scores[longer].error


def test_only_calls_repeated_in_the_same_state_are_redundant() -> None:
    look, move = ToolCall("ls", {}), ToolCall("cd", {"folder": ".."})

    def turns(*calls: tuple[ToolCall, bool]) -> list[dict[str, Any]]:
        return [{"steps": [[_executed(*c)]]} for c in calls]

    assert redundant(turns((look, False), (look, False))) == 1
    assert redundant(turns((look, False), (move, True), (look, False))) == 0
    assert redundant(turns((move, True), (move, True))) == 0
    assert redundant(turns((look, False), (move, True)), gold=[move]) == 1


def test_provenance_names_every_data_file(benchmark_of: BfclMultiTurn) -> None:
    about = benchmark_of.about()
    assert about["counts"] == dict.fromkeys(CATEGORIES, 200)
    assert len(about["data"]) == 8 and all(len(s) == 64 for s in about["data"].values())
    mentioned = any("multi_turn_base_154" in note for note in about["notes"])
    assert mentioned == (benchmark_of.version == "v3")
