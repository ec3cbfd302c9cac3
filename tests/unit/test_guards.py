"""The hack report and the collapse alarm: what they see, what they leave alone, what they keep."""

from __future__ import annotations

import json
from collections.abc import Callable
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
    task,
)

from cahl_core.train_config import AlarmSettings
from cahl_core.training.guards import CollapseAlarm, HackReport
from cahl_core.training.hacks import PATTERNS
from cahl_core.training.tree import Tree

NO_RUN: list[list[str]] = [[]]


def _plan_tree(text: str, executions: list[list[str]]) -> Tree:
    asked = task()
    return Tree(asked, [plan_node(asked, text, executions)])


def _found(tree: Tree) -> set[str]:
    report = HackReport()
    report.add([tree], 0)
    return {name for name, tally in report.tallies.items() if tally.count}


CITIES = [f"City {n}" for n in range(12)]
LISTING = plan(("find", {"city": "Rome", "all": CITIES}))
REPEATING = plan(("find", {"city": "Rome", "more": ["Rome"] * 6}))


@pytest.mark.parametrize(
    ("pattern", "tree"),
    [
        ("listed_values", lambda: _plan_tree(LISTING, NO_RUN)),
        ("repeated_values", lambda: _plan_tree(REPEATING, NO_RUN)),
        ("values_in_words", lambda: _plan_tree(plan(("rate", {}), words="rate Rome"), NO_RUN)),
        ("repeated_across", lambda: _plan_tree(GOLD_PLAN, [[FIND_ROME], [FIND_ROME]])),
        ("repeated_call", lambda: _plan_tree(GOLD_PLAN, [[FIND_ROME * 2], [BOOK_7]])),
        ("words_for_calls", lambda: _plan_tree(GOLD_PLAN, [["<response>Rome</response>"], [BOOK_7]])),
    ],
)  # fmt: skip
def test_each_pattern_is_seen_alone(pattern: str, tree: Callable[[], Tree]) -> None:
    assert _found(tree()) == {pattern}


def test_good_rollouts_show_no_pattern() -> None:
    assert _found(good_tree()) == set()
    assert _found(flat_tree()) == set()
    asked = task(steps=(), meta={})
    declined = plan_node(asked, "<plan>[]</plan>", [])
    assert declined.reward is not None and declined.reward.total > 0
    in_words = plan_node(asked, plan((None, {})), [["<response>No tool fits.</response>"]])
    assert in_words.nodes[0].samples[0].reward > 0
    assert _found(Tree(asked, [declined, in_words])) == set()


def test_texts_that_the_limit_cut_are_seen_where_they_earn() -> None:
    tree = good_tree()
    for sample in (tree.plans[0].sample, tree.plans[1].sample, tree.plans[0].nodes[0].samples[1]):
        assert sample is not None
        object.__setattr__(sample.completion, "finished", False)
    report = HackReport()
    report.add([tree], 0)
    assert report.tallies["truncated_plan"].count == 1  # the other one earned nothing
    assert report.tallies["truncated_execution"].count == 1


def test_void_rollouts_are_counted_nowhere() -> None:
    tree = _plan_tree(LISTING, [[FIND_ROME * 2]])
    assert _found(tree) == {"listed_values", "repeated_call"}
    tree.plans[0].nodes[0].samples[0].void = True
    assert _found(tree) == {"listed_values"}
    assert tree.plans[0].sample is not None
    tree.plans[0].sample.void = True
    assert _found(tree) == set()


def test_an_empty_plan_that_earns_where_calls_are_due() -> None:
    tree = _plan_tree("<plan>[]</plan>", [])
    assert _found(tree) == set()  # the rewards do not pay for it
    assert tree.plans[0].sample is not None
    tree.plans[0].sample.reward = 0.5
    assert _found(tree) == {"empty_plan"}


def test_shares_gains_and_sentences_by_hand() -> None:
    report = HackReport()
    first = report.add([good_tree(), _plan_tree(GOLD_PLAN, [[FIND_ROME * 2], [BOOK_7]])], 4)
    # executions: 4 of the good tree (one wrong), 2 of the other; of these 6 one repeats its call
    assert first["hack/repeated_call"] == pytest.approx(1 / 6)
    tally = report.tallies["repeated_call"]
    # R_sem of (find, find) against (find): mean of IoU 1/2, names 1/2, values 1/2
    assert tally.mean == pytest.approx(0.5 + 0.5 + 1.5 / 2)
    assert tally.mean_of_others == pytest.approx((4 * 2.5 + 0.5 + 0.5 + 1.5 * 2 / 3) / 5)
    assert first["hack/repeated_call_gain"] == pytest.approx(1.75 - 2.4)
    [sentence] = report.summary()
    assert sentence.startswith("1 of 6 executions (16.7%) make the same call more than once")
    assert "1.750 against 2.400: it does not pay" in sentence
    assert "(e.g. step 4, task t1, plan 1, sub-task 1, execution 1)" in sentence


def test_a_step_is_measured_alone_and_the_report_over_all() -> None:
    report = HackReport()
    report.add([_plan_tree(LISTING, NO_RUN)], 0)
    second = report.add([good_tree()], 1)
    assert second["hack/listed_values"] == 0
    assert report.metrics()["hack/listed_values"] == pytest.approx(1 / 3)
    assert report.metrics()["hack/unheld_value_share"] == pytest.approx(12 / 14)
    assert report.metrics()["hack/values_per_argument"] == pytest.approx(14 / 4)


def test_always_declining_is_said() -> None:
    report = HackReport()
    report.add([_plan_tree("<plan>[]</plan>", [])] * 3, 0)
    assert report.metrics()["hack/declining"] == 1
    assert "100% of the parsed plans decline, and 100% of them have calls due" in report.summary()


def test_nothing_seen_gives_no_metric_and_a_sentence() -> None:
    assert HackReport().metrics() == {}
    assert HackReport().summary() == ["no reward hacking pattern in 0 plans and 0 executions"]


def test_a_report_survives_a_checkpoint_and_is_written(tmp_path: Path) -> None:
    straight, resumed = HackReport(), HackReport()
    trees = [
        good_tree(),
        _plan_tree(LISTING, NO_RUN),
        _plan_tree(GOLD_PLAN, [[call("rate")], [BOOK_7]]),
    ]
    for step, tree in enumerate(trees):
        straight.add([tree], step)
        resumed = HackReport.from_json(json.loads(json.dumps(resumed.to_json())))
        resumed.add([tree], step)
    assert resumed.to_json() == straight.to_json()
    straight.write(tmp_path / "hacks.json")
    written = json.loads((tmp_path / "hacks.json").read_text())
    assert set(written["patterns"]) == set(PATTERNS)
    assert written["patterns"]["listed_values"]["count"] == 1
    assert written["summary"] == straight.summary()


# --- the alarm -----------------------------------------------------------------------------------

BOUNDS = AlarmSettings(min_entropy=0.1, length_factor=2.0, zero_variance=0.5, window=2)


LEARNS = {"planner/loss": 0.1, "executor/loss": 0.1}


def _feed(rows: list[dict[str, float]]) -> list[list[str]]:
    alarm = CollapseAlarm(BOUNDS)
    return [alarm.feed(LEARNS | row) for row in rows]


def test_a_role_that_does_not_learn_is_no_collapse() -> None:
    frozen = {"planner/entropy": 0.0, "planner/groups": 4.0, "planner/zero_variance_groups": 4.0}
    alarm = CollapseAlarm(BOUNDS)
    assert [alarm.feed(frozen | {"executor/loss": 0.1}) for _ in range(4)] == [[]] * 4
    # all groups flat: nothing was learned from, so there was no entropy to measure
    said = _feed([frozen | {"planner/trained_tokens": 0.0}] * 4)
    assert [len(s) for s in said] == [0, 1, 0, 0]
    assert "have equal rewards" in said[1][0]


def test_low_entropy_is_said_once_and_again_after_it_cleared() -> None:
    values = [0.5, 0.02, 0.02, 0.02, 0.5, 0.5, 0.0, 0.0]
    said = _feed([{"planner/entropy": v} for v in values])
    # means over two rows: -, .26, .02, .02, .26, .5, .25, 0
    assert [len(s) for s in said] == [0, 0, 1, 0, 0, 0, 0, 1]
    assert "planner: entropy 0.0200 nats per token over the last 2 steps" in said[2][0]
    assert "train.alarm.min_entropy=0.1" in said[2][0]


@pytest.mark.parametrize(
    ("lengths", "expected", "words"),
    [
        ([10, 10, 21, 21], [0, 0, 0, 1], "2.1 times the first steps' 10.0"),
        ([10, 10, 4, 4], [0, 0, 0, 1], "4.0 tokens per text over the last 2 steps against 10.0"),
        ([10, 10, 20, 20, 5, 5], [0, 0, 0, 0, 0, 0], ""),
        ([0, 0, 9, 9], [0, 0, 0, 0], ""),
    ],
)
def test_length_is_held_against_the_first_steps(
    lengths: list[float], expected: list[int], words: str
) -> None:
    said = _feed([{"executor_tokens": v} for v in lengths])
    assert [len(s) for s in said] == expected
    assert words in "".join(text for texts in said for text in texts)


def test_groups_without_signal_are_a_share_over_the_window() -> None:
    rows = [(10, 1), (10, 9), (30, 12), (0, 0), (0, 0)]
    said = _feed([{"executor/groups": g, "executor/zero_variance_groups": z} for g, z in rows])
    assert [len(s) for s in said] == [0, 0, 1, 0, 0]  # 10/20 is not above; 21/40 is
    assert "executor: 52% of its groups" in said[2][0]


def test_missing_and_non_finite_values_are_not_watched() -> None:
    rows = [
        {"planner/entropy": 0.0},
        {"planner/entropy": float("nan")},
        {},
        {"planner/entropy": 0.0},
    ]
    assert [len(said) for said in _feed(rows)] == [0, 0, 0, 1]


row = st.fixed_dictionaries(
    {},
    optional={
        key: st.floats(0, 3) | st.just(float("nan"))
        for key in ("planner/entropy", "executor/entropy", "plan_tokens", "executor_tokens",
                    "planner/groups", "planner/zero_variance_groups")
    },
)  # fmt: skip


@given(st.lists(row, max_size=12), st.integers(0, 12))
def test_a_resumed_alarm_says_what_an_uninterrupted_one_says(
    rows: list[dict[str, float]], cut: int
) -> None:
    first, second = CollapseAlarm(BOUNDS), CollapseAlarm(BOUNDS)
    said: list[Any] = [first.feed(LEARNS | r) for r in rows[:cut]]
    second.load_json(json.loads(json.dumps(first.to_json())))
    said += [second.feed(LEARNS | r) for r in rows[cut:]]
    assert said == _feed(rows)
