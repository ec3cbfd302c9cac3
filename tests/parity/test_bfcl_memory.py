"""BFCL v4 memory: gold answers pass, memories are carried over as officially, nothing is held twice."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from bfcl_oracle import Player, place, scripted_agent, sub_task

from cahl_core.evaluation.bfcl_memory import ANSWER, BfclMemory
from cahl_core.evaluation.core import Attempt, Item, ItemScore, Record
from cahl_core.protocol.texts import execution_text, plan_text
from cahl_core.records import Plan, ToolCall
from cahl_core.serving.results import Request
from cahl_core.train_config import Form

BACKENDS = ("kv", "rec_sum")


@pytest.fixture(scope="session", params=BACKENDS)
def memory_of(request: pytest.FixtureRequest, bfcl_v4_wheel: Path) -> Any:
    found = BfclMemory(request.param, bfcl_v4_wheel, timeout=120)
    yield found
    found.simulator.end()


def noting(seed: str) -> list[list[ToolCall]]:
    """One note per conversation, in its first turn; nothing when a question is asked."""
    item, turn, _ = place(seed)
    if "prereq" not in item or turn:
        return []
    number = item.split("-")[0].rsplit("_", 1)[1]
    if "rec_sum" in item:
        return [[ToolCall("memory_append", {"text": f"{number};"})]]
    return [[ToolCall("archival_memory_add", {"key": f"note_{number}", "value": item})]]


def solve(
    benchmark: BfclMemory, solver: Any, items: Sequence[Item], into: dict[str, Record] | None = None
) -> list[Record]:
    records: dict[str, Record] = {} if into is None else into
    attempts = [Attempt(item) for item in items]
    benchmark.solve(solver, attempts, lambda a, r: records.__setitem__(a.item.id, r))
    return json.loads(json.dumps([records[i.id] for i in items]))  # type: ignore[no-any-return]


def scored(benchmark: BfclMemory, items: Sequence[Item], words: Sequence[str]) -> list[ItemScore]:
    """Scores of records whose last message are these words."""
    texts = [execution_text((), w) for w in words]
    results = [
        {"plan_text": None, "steps": [{"text": t, "result": None}], "prompt_tokens": 0,
         "completion_tokens": 0, "too_long": None, "form": "low_only"} for t in texts
    ]  # fmt: skip
    records = [
        {
            "turns": [{"results": [r], "steps": []}],
            "forced": False,
            "too_long": False,
            "memory": None,
        }
        for r in results
    ]
    return benchmark.score([Attempt(i) for i in items], records)


def test_gold_answers_pass_and_not_knowing_does_not(memory_of: BfclMemory) -> None:
    items = memory_of.items()
    assert len({i.id for i in items}) == len(items) == 155
    gold = scored(memory_of, items, [i.data.gold[0] for i in items])
    assert sum(s.correct for s in gold) == 155
    sentence = scored(memory_of, items, [f"It is {i.data.gold[-1]}, I think." for i in items])
    assert sum(s.correct for s in sentence) == 155
    lost = scored(memory_of, items, ["I do not know"] * 155)
    assert sum(s.correct for s in lost) == 0
    assert {s.error_type for s in lost} == {"agentic:answer_not_found"}


@pytest.mark.parametrize("form", ["hierarchical", "low_only", "single_level"])
def test_a_perfect_model_passes_in_every_form(memory_of: BfclMemory, form: Form) -> None:
    items = memory_of.items()[:10]
    gold = {i.id: i.data.gold[0] for i in items}
    player = Player(noting, form, lambda seed: gold.get(place(seed)[0], "noted"))
    memory_of.notes = None
    records = solve(memory_of, player, items)
    scores = memory_of.score([Attempt(i) for i in items], records)
    assert [s.correct for s in scores] == [1] * 10
    assert set(memory_of.summary(scores)["scenarios"]) == {
        "customer", "finance", "healthcare", "notetaker", "student"
    }  # fmt: skip
    assert memory_of.simulator.status() == {"open": 0, "instances": 0}


def test_questions_meet_what_all_conversations_of_their_scenario_wrote(
    memory_of: BfclMemory,
) -> None:
    items = memory_of.items()[:5]
    memory_of.notes = None
    records = solve(memory_of, Player(noting, "low_only"), items)
    counts = {"customer": 10, "finance": 7, "healthcare": 5, "notetaker": 5, "student": 10}
    for item, record in zip(items, records, strict=True):
        kept = record["memory"]
        notes = kept["archival_memory"] if "archival_memory" in kept else kept["memory"].split(";")
        assert len([n for n in notes if n]) == counts[item.data.scenario]


def test_later_conversations_see_the_memory_in_the_official_words(memory_of: BfclMemory) -> None:
    """Core memory in the key-value backend, all of it in the other."""
    items = [i for i in memory_of.items() if i.data.scenario == "finance"][:1]
    kv = memory_of.category == "memory_kv"

    def write(role: str, seed: str, label: str) -> str:
        item, turn, text = place(seed)
        if "prereq_15" not in item or turn or text:
            return execution_text(())
        if kv:
            return execution_text(
                [ToolCall("core_memory_add", {"key": "who", "value": "a banker"})]
            )
        return execution_text([ToolCall("memory_append", {"text": "who: a banker"})])

    agent, prompts = scripted_agent(write, "low_only")
    memory_of.notes = None
    solve(memory_of, agent, items)
    name = f"{memory_of.category}_prereq"
    first = prompts[f"{name}_15-finance-0/0/0/whole"]
    assert "high-level executive assistant" in first and "a banker" not in first
    assert "There is no content in the" in first
    assert "a banker" in prompts[f"{name}_16-finance-1/0/0/whole"]
    asked = prompts[f"{items[0].id}/0/0/whole"]
    assert "a banker" in asked and items[0].data.text in asked
    assert "For your final answer to the user" in asked


def test_a_silent_plan_is_followed_by_the_question_with_its_results(bfcl_v4_wheel: Path) -> None:
    benchmark = BfclMemory("kv", bfcl_v4_wheel, timeout=120)
    (item,) = [i for i in benchmark.items() if i.id == "memory_kv_130-notetaker-0"]
    looking = ToolCall("archival_memory_retrieve", {"key": "note_32"})

    def write(role: str, seed: str, label: str) -> str:
        calls = [looking] if "prereq" not in seed else [c for s in noting(seed) for c in s]
        if role == "planner":
            return plan_text(Plan(tuple(map(sub_task, calls))))
        return (
            execution_text((), item.data.gold[0]) if seed.endswith("/1") else execution_text(calls)
        )

    agent, prompts = scripted_agent(write)
    (record,) = solve(benchmark, agent, [item])
    (score,) = benchmark.score([Attempt(item)], [record])
    assert score.correct == 1 and score.attempted == 1 and score.planned
    asked = prompts[f"{item.id}/0/1/0"]
    assert ANSWER in asked and item.data.text in asked
    assert 'Result 1 (archival_memory_retrieve): {"value": ' in asked
    example = benchmark.example(Attempt(item), record)
    assert item.data.gold[0] in example and "memory_kv_prereq_32-notetaker-0" in example
    benchmark.simulator.end()


class Counting:
    """A player that counts the turns it was asked for, and stops after a number of them."""

    def __init__(self, player: Player, most: int = 10**9) -> None:
        self.player, self.most, self.seeds = player, most, list[str]()
        self.form = player.form

    def run(self, requests: Sequence[Request], on_result: Any = None) -> Any:
        if len(self.seeds) >= self.most:
            raise KeyboardInterrupt
        self.seeds += [r.seed for r in requests]
        return self.player.run(requests)


def test_conversations_are_held_once_also_after_a_kill(
    memory_of: BfclMemory, tmp_path: Path
) -> None:
    items = memory_of.items()[:10]
    new: Callable[[], Player] = lambda: Player(noting, "low_only")  # noqa: E731
    memory_of.notes = None
    whole = Counting(new())
    records = solve(memory_of, whole, items)
    assert len(set(whole.seeds)) == len(whole.seeds)
    before = len(whole.seeds)
    solve(memory_of, whole, items)
    assert all("prereq" not in seed for seed in whole.seeds[before:])

    memory_of.notes = tmp_path / "notes"
    killed = Counting(new(), most=before // 2)
    with pytest.raises(KeyboardInterrupt):
        solve(memory_of, killed, items)
    kept = {p.stem.rsplit("-", 1)[0] for p in memory_of.notes.iterdir()}
    resumed = Counting(new())
    assert solve(memory_of, resumed, items) == records
    again = {s.split("/")[0] for s in resumed.seeds if "prereq" in s}
    assert kept and not again & kept
    assert len(again | kept) == 37
    other = Counting(new())
    assert solve(memory_of, other, items) == records
    assert all("prereq" not in seed for seed in other.seeds)
    memory_of.notes = None


def test_a_stored_answer_is_told_from_one_that_was_never_written(bfcl_v4_wheel: Path) -> None:
    benchmark = BfclMemory("rec_sum", bfcl_v4_wheel, timeout=120)
    items = [i for i in benchmark.items() if i.data.scenario == "customer"][:3]

    def write(seed: str) -> list[list[ToolCall]]:
        first = place(seed)[0].endswith("prereq_0-customer-0") and place(seed)[1] == 0
        text = f"Notes:\n{items[0].data.gold[0]}\nend"
        return [[ToolCall("memory_update", {"text": text})]] if first else []

    records = solve(benchmark, Player(write, "low_only"), items)
    scores = benchmark.score([Attempt(i) for i in items], records)
    assert [s.scores["stored"] for s in scores] == [1, 0, 0]
    assert benchmark.summary(scores)["stored_n"] == 1
    benchmark.simulator.end()


def test_memories_leave_no_file_outside_the_workers_folder(
    memory_of: BfclMemory, bfcl_v4_wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(bfcl_v4_wheel.rglob("*"))
    memory_of.notes = None
    solve(memory_of, Player(noting, "low_only"), memory_of.items()[:5])
    assert list(tmp_path.iterdir()) == []
    assert sorted(bfcl_v4_wheel.rglob("*")) == before


def test_protocol_says_what_cannot_be_run(memory_of: BfclMemory) -> None:
    about = memory_of.about()
    assert about["counts"] == {memory_of.category: 155}
    assert any("memory_vector" in note for note in about["notes"])
    assert len(about["data"]) == 7
