"""Traces on disk: what a record holds, that no tree is there twice, and what broken files say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rollout_trees import (
    BOOK_7,
    FIND_ROME,
    GOLD_PLAN,
    call,
    flat_tree,
    good_tree,
    plan,
    plan_node,
    sample,
    task,
)

from cahl_core.config import validate
from cahl_core.errors import DataError, StageInputError
from cahl_core.protocol.parsing import parse_execution
from cahl_core.records import Message
from cahl_core.traces.build import plain_json
from cahl_core.traces.record import TraceWriter, read_traces, trace_record
from cahl_core.training.tree import PlanNode, Tree

SETTINGS = validate({})


def _traced(**trace: int) -> Any:
    return validate({"train": {"trace": trace}})


def test_a_record_holds_the_whole_tree() -> None:
    tree = good_tree()
    tree.plans[0].nodes[0].samples[1].advantage = -1.5
    record = trace_record(tree, 12, SETTINGS)
    assert (record["step"], record["arm"], record["task"]["id"]) == (12, "joint", "t1")
    assert record["task"]["tools"] == ["find", "book", "rate"]
    assert record["task"]["gold"][1]["arguments"] == {"id": "$var1.id$"}
    assert record["task"]["resolved"][1]["arguments"] == {"id": 7}
    good, broken = record["plans"]
    assert good["sample"]["text"] == GOLD_PLAN
    assert good["sample"]["tokens"] == len(GOLD_PLAN)
    assert good["sample"]["prompt_tokens"] == 3
    assert good["plan"][1] == {"task": "do it", "tool": "book", "arguments": {"id": "$var1.id$"}}
    assert broken["plan"] is None
    assert broken["sample"]["failure"] == {"reason": "no <plan>", "position": 0}
    assert [sub["column"] for sub in good["sub_tasks"]] == [0, 1]
    right, wrong = good["sub_tasks"][0]["samples"]
    assert right["calls"] == [{"name": "find", "arguments": {"city": "Rome"}}]
    assert (right["parts"]["total"], right["reward"]) == (2.5, 2.5)
    assert wrong["parts"]["semantics"] == pytest.approx(2 / 3)
    assert wrong["advantage"] == -1.5


def test_a_record_says_what_each_argument_was_judged() -> None:
    good, broken = trace_record(good_tree(), 0, SETTINGS)["plans"]
    right, wrong = good["sub_tasks"][0]["samples"]
    city = {"name": "city", "due": "Rome", "at": None}
    assert right["breakdown"][0]["arguments"] == [{**city, "made": "Rome", "verdict": "equal"}]
    assert wrong["breakdown"][0]["arguments"] == [{**city, "made": "Oslo", "verdict": "differs"}]
    assert broken["sample"]["breakdown"] is None
    breakdown = good["sample"]["breakdown"]
    assert [c["due"] for c in breakdown["calls"]] == ["find", "book"]
    assert breakdown["succeeded"] == [True, False]
    # what was paid is the mean of what is explained
    steps = [step["semantics"] for run in breakdown["steps"] for step in run]
    assert sum(steps) / len(steps) == pytest.approx(good["sample"]["parts"]["execution"])


def test_an_extra_sub_task_has_no_verdict_as_nothing_was_due() -> None:
    asked = task()
    longer = plan(("find", {"city": "Rome"}), ("book", {"id": "$var1.id$"}), ("rate", {}))
    node = plan_node(asked, longer, [[FIND_ROME], [BOOK_7], [FIND_ROME]])
    [traced] = trace_record(Tree(asked, [node]), 0, SETTINGS)["plans"]
    assert traced["sub_tasks"][2]["samples"][0]["breakdown"] is None
    assert traced["sample"]["breakdown"]["extra"] == 1
    assert traced["sample"]["breakdown"]["calls"][2]["due"] is None


def test_sub_tasks_that_were_not_executed_are_part_of_what_the_plan_is_judged_by() -> None:
    tree = good_tree()
    tree.plans[0].nodes.pop()  # beyond train.max_sub_tasks
    breakdown = trace_record(tree, 0, SETTINGS)["plans"][0]["sample"]["breakdown"]
    assert breakdown["succeeded"] == [False, False]
    assert [step["sub_tasks"] for step in breakdown["steps"][0]] == [[0], []]


def test_calls_are_judged_with_their_references_replaced() -> None:
    tree = good_tree()
    node = tree.plans[0].nodes[1]
    node.executions[0] = parse_execution(call("book", id="$var1.id$"))
    traced = trace_record(tree, 0, SETTINGS)["plans"][0]["sub_tasks"][1]["samples"][0]
    assert traced["breakdown"][0]["arguments"][0]["made"] == 7
    assert traced["calls"][0]["arguments"] == {"id": 7}


def test_arms_without_a_planner_have_no_plan_sample() -> None:
    [plan] = trace_record(flat_tree(), 0, SETTINGS)["plans"]
    assert plan["sample"] is None
    assert [len(s["calls"]) for s in plan["sub_tasks"][0]["samples"]] == [2, 1]


def test_an_execution_outside_the_grammar_says_where() -> None:
    tree = good_tree()
    node = tree.plans[0].nodes[0]
    node.executions[0] = parse_execution("  find(Rome)")
    record = trace_record(tree, 0, SETTINGS)
    traced = record["plans"][0]["sub_tasks"][0]["samples"][0]
    assert traced["failure"] == {"reason": "neither <tool_call> nor <response>", "position": 2}


def test_prompts_are_there_only_when_asked_for() -> None:
    class Tokenizer:
        def decode(self, ids: list[int]) -> str:
            return f"{len(ids)} tokens"

    tree = good_tree()
    assert trace_record(tree, 0, SETTINGS)["prompt"] is None
    record = trace_record(tree, 0, SETTINGS, Tokenizer())
    assert record["prompt"] == "3 tokens"
    assert record["plans"][0]["sub_tasks"][0]["prompt"] == "3 tokens"


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(json_like)
def test_whatever_an_environment_returns_can_be_written(value: Any) -> None:
    text = json.dumps(plain_json(value), allow_nan=False)
    assert plain_json(json.loads(text)) == json.loads(text)


@given(st.text())
def test_any_text_survives_writing_and_reading(text: str) -> None:
    import tempfile

    tree = Tree(
        task(messages=(Message("user", text + "\ud800"),)), [PlanNode(sample(text), _FAILED)]
    )
    with tempfile.TemporaryDirectory() as folder:
        TraceWriter(Path(folder)).write(0, [tree], SETTINGS)
        [record] = read_traces(Path(folder))
    assert record["plans"][0]["sample"]["text"] == text
    assert record["task"]["messages"][0]["content"] == text + "\ud800"


_FAILED = good_tree().plans[1].plan


def test_a_resumed_run_rewrites_a_step_and_duplicates_nothing(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path)
    for step in range(4):
        writer.write(step, [good_tree(1), good_tree(2)], SETTINGS)
    before = (tmp_path / "step-000002.jsonl").read_bytes()
    writer.write(2, [good_tree(1), good_tree(2)], SETTINGS)
    assert (tmp_path / "step-000002.jsonl").read_bytes() == before
    ids = [(r["step"], r["task"]["id"]) for r in read_traces(tmp_path)]
    assert ids == [(s, t) for s in range(4) for t in ("t1", "t2")]
    assert writer.discard_from(2) == 2
    assert [r["step"] for r in read_traces(tmp_path)] == [0, 0, 1, 1]
    assert not [p for p in tmp_path.iterdir() if not p.name.startswith("step-")]


def test_only_traced_steps_and_the_first_trees_are_kept(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path)
    trees = [good_tree(n) for n in range(4)]
    counts = [len(writer.write(step, trees, _traced(every=2, trees=3))) for step in range(4)]
    assert counts == [3, 0, 3, 0]
    assert [r["task"]["id"] for r in read_traces(tmp_path, steps=[2])] == ["t0", "t1", "t2"]
    assert writer.write(0, trees, _traced(every=0)) == []


def test_reading_selects_by_step_task_and_source(tmp_path: Path) -> None:
    writer = TraceWriter(tmp_path / ".cahl/traces/train")
    for step in range(3):
        writer.write(step, [good_tree(1), flat_tree(2)], SETTINGS)
    (writer.folder / "step-000001.jsonl").write_text("not JSON\n")  # never opened
    found = read_traces(tmp_path, steps=range(2, 9), task="t2")
    assert [(r["step"], r["task"]["id"]) for r in found] == [(2, "t2")]
    assert list(read_traces(writer.folder / "step-000000.jsonl", source="other")) == []


def test_a_broken_last_line_is_a_warning_and_any_other_an_error(tmp_path: Path) -> None:
    TraceWriter(tmp_path).write(0, [good_tree()], SETTINGS)
    file = tmp_path / "step-000000.jsonl"
    line = file.read_text()
    file.write_text(line + line[:100])
    warnings: list[str] = []
    assert len(list(read_traces(tmp_path, warn=warnings.append))) == 1
    assert "step-000000.jsonl:2: the last line is broken off" in warnings[0]
    file.write_text(line[:100] + "\n" + line)
    with pytest.raises(DataError, match=r"step-000000\.jsonl:1: not JSON"):
        list(read_traces(tmp_path))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "trace version 2, this program reads 1"),
        ({"plans": None}, r"plans: Input should be a valid list"),
        ({"step": "3"}, r"step: Input should be a valid integer"),
    ],
)
def test_records_of_another_form_name_the_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    file = tmp_path / "t.jsonl"
    file.write_text(json.dumps(trace_record(good_tree(), 0, SETTINGS) | change) + "\n")
    with pytest.raises(DataError, match=r"t\.jsonl:1: .*" + message):
        list(read_traces(file))
    file.write_text("[1]\n")
    with pytest.raises(DataError, match=r"t\.jsonl:1: not a trace record: no 'version'"):
        list(read_traces(file))


def test_no_traces_says_what_writes_them(tmp_path: Path) -> None:
    with pytest.raises(StageInputError, match=r"has no step-\*\.jsonl\n.*train\.trace\.every"):
        list(read_traces(tmp_path))
    with pytest.raises(StageInputError, match="does not exist"):
        list(read_traces(tmp_path / "nowhere"))


def test_the_gold_texts_of_these_tests_parse() -> None:
    assert [type(parse_execution(t)).__name__ for t in (FIND_ROME, BOOK_7)] == ["Execution"] * 2
