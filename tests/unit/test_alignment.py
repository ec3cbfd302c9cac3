"""Alignment metrics, worked out by hand."""

from __future__ import annotations

import math

import pytest
from rollout_trees import (
    BOOK_7,
    FIND_ROME,
    GOLD_PLAN,
    call,
    flat_tree,
    good_tree,
    plan,
    plan_node,
    task,
)

from cahl_core.evaluation.dev import dev_record, item_score
from cahl_core.evaluation.statistics import summarise
from cahl_core.records import ToolCall
from cahl_core.training.alignment import PREFIX, alignment_metrics
from cahl_core.training.tree import Tree


def _metrics(*trees: Tree) -> dict[str, float]:
    return {k.removeprefix(PREFIX): v for k, v in alignment_metrics(trees).items()}


def test_a_tree_by_hand() -> None:
    # plan 1: runs (find Rome, book 7) and (find Oslo, book 7); plan 2 does not parse
    found = _metrics(good_tree())
    assert found["plan_validity"] == 1 / 2
    assert found["mean_sub_tasks"] == 2
    assert found["plan_adherence"] == 1
    assert found["sub_task_solve_rate"] == 3 / 4
    assert found["solved_share"] == (1 / 2 + 0) / 2
    assert found["calls_per_solved_task"] == 2
    assert found["invalid_call_rate"] == 0
    assert found["redundant_call_rate"] == 0
    assert "tool_frequency_spearman" not in found  # two tools only


def test_wrong_tools_broken_texts_and_repeats_by_hand() -> None:
    asked = task()
    # 1st sub-task: a call of another tool, and two calls of which one repeats; 2nd: broken, no city
    texts = [[call("rate"), FIND_ROME * 2], ["book 7", call("book", city="Rome")]]
    found = _metrics(Tree(asked, [plan_node(asked, GOLD_PLAN, texts)]))
    assert found["plan_adherence"] == 2 / 4
    assert found["sub_task_solve_rate"] == 0  # the repeated call is not exactly the one due
    assert found["invalid_call_rate"] == pytest.approx(2 / 5)  # the broken text is one attempt
    assert found["redundant_call_rate"] == 1 / 4
    assert found["solved_share"] == 0
    assert "calls_per_solved_task" not in found


def test_gold_calls_alone_do_not_solve() -> None:
    asked, third = task(), ("rate", {})
    steps = [("find", {"city": "Rome"}), ("book", {"id": "$var1.id$"})]
    broken = plan_node(asked, plan(*steps, third), [[FIND_ROME], [BOOK_7], ["no"]])
    unknown = plan_node(asked, plan(*steps, ("nope", {})), [[FIND_ROME], [BOOK_7], [FIND_ROME]])
    whole = plan_node(asked, plan(*steps, third), [[FIND_ROME], [BOOK_7], [FIND_ROME]])
    shares = [_metrics(Tree(asked, [n])) for n in (broken, unknown, whole)]
    assert [found["solved_share"] for found in shares] == [0, 0, 1]
    assert shares[2]["redundant_call_rate"] == pytest.approx(1 / 3)


def test_a_sub_task_without_a_tool_is_followed_by_words() -> None:
    asked = task(steps=(), meta={})
    said = "<response>No.</response>"
    node = plan_node(asked, plan((None, {})), [[said, FIND_ROME]])
    found = _metrics(Tree(asked, [node]))
    assert found["plan_adherence"] == 1 / 2
    assert found["sub_task_solve_rate"] == 1 / 2
    assert found["solved_share"] == 1 / 2
    assert found["calls_per_solved_task"] == 0


def test_declining_with_an_empty_plan_solves_what_needs_no_call() -> None:
    nothing_due, due = task(steps=(), meta={}), task()
    trees = [Tree(asked, [plan_node(asked, "<plan>[]</plan>", [])]) for asked in (nothing_due, due)]
    assert [_metrics(tree)["solved_share"] for tree in trees] == [1, 0]


def test_planned_tools_follow_what_the_executor_can_do() -> None:
    # planned 3 × find, 2 × book, 1 × rate; solved 3/3, 1/2, 0/1: ranks agree
    names = ["find", "find", "find", "book", "book", "rate"]
    gold = tuple((ToolCall(name, {}),) for name in names)
    asked = task(steps=gold, meta={})
    right = [call(name) for name in names]
    texts = [[right[0]], [right[1]], [right[2]], [right[3]], [call("rate")], ["no"]]
    node = plan_node(asked, plan(*[(name, {}) for name in names]), texts)
    assert _metrics(Tree(asked, [node]))["tool_frequency_spearman"] == pytest.approx(1)
    texts = [["no"], ["no"], ["no"], [right[3]], [call("rate")], [right[5]]]
    node = plan_node(asked, plan(*[(name, {}) for name in names]), texts)
    assert _metrics(Tree(asked, [node]))["tool_frequency_spearman"] == pytest.approx(-1)
    same = [[text] for text in right]  # every rate is 1: no ranks, no metric
    node = plan_node(asked, plan(*[(name, {}) for name in names]), same)
    assert "tool_frequency_spearman" not in _metrics(Tree(asked, [node]))


def test_flat_arms_have_the_metrics_of_runs_and_none_of_plans() -> None:
    found = _metrics(flat_tree())
    assert found == {
        "sub_task_solve_rate": 1 / 2,
        "solved_share": 1 / 2,
        "calls_per_solved_task": 2,
        "invalid_call_rate": 0,
        "redundant_call_rate": 0,
    }


def test_nothing_gives_nothing_and_never_nan() -> None:
    assert _metrics() == {}
    asked = task()
    unparsed = Tree(asked, [plan_node(asked, "no", [])])
    found = _metrics(unparsed)
    assert found == {"plan_validity": 0, "solved_share": 0}
    assert all(math.isfinite(v) for t in (good_tree(), flat_tree()) for v in _metrics(t).values())


def test_what_was_not_sampled_is_no_execution_and_its_run_is_not_solved() -> None:
    tree = good_tree()
    tree.plans[0].nodes[0].samples[1].void = True  # the run that called Oslo
    found = _metrics(tree)
    assert (found["solved_share"], found["sub_task_solve_rate"]) == (1 / 4, 1)


def test_rollouts_of_a_broken_environment_count_nowhere() -> None:
    tree = good_tree()
    assert tree.plans[1].sample is not None
    tree.plans[1].sample.void = True
    found = _metrics(tree)
    assert (found["solved_share"], found["plan_validity"]) == (1 / 2, 1)
    flat = flat_tree()
    flat.plans[0].nodes[0].samples[1].void = True
    assert _metrics(flat)["solved_share"] == 1


def test_one_plan_and_one_execution_agree_with_the_dev_evaluation() -> None:
    """`evaluation.dev` measures the same trees: one definition, two readers."""
    asked = task()
    texts = [
        [[FIND_ROME], [BOOK_7]],
        [[FIND_ROME], [FIND_ROME]],
        [[FIND_ROME + FIND_ROME], [BOOK_7]],
        [["broken"], [call("book", id="7")]],
        [[call("other")], [BOOK_7]],
    ]
    trees = [Tree(asked, [plan_node(asked, GOLD_PLAN, t)]) for t in texts]
    records = [dev_record(tree) | {"id": str(n)} for n, tree in enumerate(trees)]
    summary, found = summarise([item_score("toy", r) for r in records], 100), _metrics(*trees)
    assert found["solved_share"] == pytest.approx(summary["accuracy"]["value"])
    for name in ("calls_per_solved_task", "redundant_call_rate", "invalid_call_rate"):
        assert found[name] == pytest.approx(summary["measures"][name]["value"]), name
    assert found["plan_validity"] == 1
