"""Rewards: hand-computed values, properties, and a brute-force reference for matching."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.advantages import group_advantages, zero_variance
from cahl_core.config import RewardSettings
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec
from cahl_core.rewards import (
    align,
    align_plan,
    canonical,
    execution_reward,
    executor_reward,
    fits_schema,
    parameter_reward,
    planner_reward,
    semantic_reward,
)

WEIGHTS = RewardSettings()
ADD = ToolSpec(
    "add",
    "",
    {
        "type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
        "required": ["a"],
    },
)
call = st.builds(
    ToolCall,
    st.sampled_from("fgh"),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=3),
)


def _plan(*steps: ToolCall) -> Plan:
    return Plan(tuple(SubTask("do", s.name, s.arguments) for s in steps))


# --- executor ------------------------------------------------------------------------------------


def written(call: ToolCall) -> str:
    return canonical(call.to_json())


@given(st.lists(call, min_size=1, max_size=3))
def test_gold_scores_one_in_any_order(gold: list[ToolCall]) -> None:
    for order in itertools.permutations(gold):
        assert semantic_reward(order, gold) == pytest.approx(1.0)


@given(st.lists(call, max_size=3), st.lists(call, max_size=3))
def test_semantics_is_in_the_unit_interval_and_one_only_for_the_gold(
    made: list[ToolCall], gold: list[ToolCall]
) -> None:
    value = semantic_reward(made, gold)
    assert 0.0 <= value <= 1.0
    same = sorted(map(written, made)) == sorted(map(written, gold))
    assert (value > 1 - 1e-9) == same


@given(st.lists(call, min_size=1, max_size=3), st.lists(call, min_size=1, max_size=3))
def test_semantics_equals_the_best_of_all_assignments(
    made: list[ToolCall], gold: list[ToolCall]
) -> None:
    def pair(p: ToolCall, g: ToolCall) -> float:
        union = set(p.arguments) | set(g.arguments)
        if p.name != g.name:
            return 0.0
        if not union:
            return 2.0
        both = set(p.arguments) & set(g.arguments)
        return (len(both) + sum(p.arguments[k] == g.arguments[k] for k in both)) / len(union)

    small, large = sorted((made, gold), key=len)
    best = max(
        sum(pair(s, x) for s, x in zip(small, chosen, strict=True))
        for chosen in itertools.permutations(large, len(small))
    )
    names, wanted = [c.name for c in made], [c.name for c in gold]
    shared = sum(min(names.count(n), wanted.count(n)) for n in "fgh")
    overlap = shared / (len(names) + len(wanted) - shared)
    expected = (overlap + best / len(large)) / 3
    assert semantic_reward(made, gold) == pytest.approx(expected)


def test_a_superfluous_call_costs() -> None:
    gold = [ToolCall("f", {"a": 1})]
    # names 1/2, argument names 1/2, values 1/2
    assert semantic_reward([*gold, ToolCall("g", {})], gold) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("arguments", "fits"),
    [
        ({"a": 1}, True),
        ({"a": 1, "b": 2}, True),
        ({"a": "1"}, False),
        ({"a": True}, False),
        ({"b": 2}, False),
        ({"a": 1, "c": 3}, False),
        ({"a": "$var1.x$"}, True),
        ({"a": "$var1.x$ + 1"}, False),
    ],
)
def test_schema_decides_what_fits(arguments: dict[str, object], fits: bool) -> None:
    assert fits_schema(ToolCall("add", arguments), [ADD]) is fits


def test_an_unknown_tool_never_fits() -> None:
    assert not fits_schema(ToolCall("sub", {}), [ADD])


def test_executor_reward_by_hand() -> None:
    gold = [ToolCall("add", {"a": 1, "b": 2})]
    made = Execution((ToolCall("add", {"a": 1, "b": 3}),))
    reward = executor_reward(made, gold, [ADD], WEIGHTS)
    assert (reward.form, reward.syntax) == (1.0, 1.0)
    assert reward.semantics == pytest.approx((1 + 1 + 0.5) / 3)
    assert reward.total == pytest.approx(0.5 + 0.5 + 1.5 * reward.semantics)


def test_text_outside_the_grammar_earns_nothing() -> None:
    assert executor_reward(ParseFailure("x", 0), [], [ADD], WEIGHTS).total == 0.0


def test_answering_in_words_where_a_call_is_due_earns_only_the_form() -> None:
    reward = executor_reward(Execution((), "no"), [ToolCall("add", {"a": 1})], [ADD], WEIGHTS)
    assert reward.total == WEIGHTS.w_form


def test_answering_in_words_where_no_call_is_due_earns_everything() -> None:
    reward = executor_reward(Execution((), "no"), [], [ADD], WEIGHTS)
    assert reward.total == WEIGHTS.w_form + WEIGHTS.w_syn + WEIGHTS.w_sem


def test_numbers_are_equal_by_value_but_booleans_are_not_numbers() -> None:
    assert canonical(5) == canonical(5.0) != canonical(True)
    assert canonical(1) != canonical(True) != canonical("true")


# --- planner -------------------------------------------------------------------------------------


def _best_alignment(scores: np.ndarray) -> float:
    rows, columns = scores.shape
    best = 0.0
    for size in range(min(rows, columns) + 1):
        for r in itertools.combinations(range(rows), size):
            for c in itertools.combinations(range(columns), size):
                best = max(best, sum(scores[i, j] for i, j in zip(r, c, strict=True)))
    return best


@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_alignment_is_order_preserving_and_optimal(
    rows: int, columns: int, data: st.DataObject
) -> None:
    cells = data.draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    scores = np.array(cells, dtype=float).reshape(rows, columns)
    aligned = align(scores)
    pairs = [(i, j) for i, j in enumerate(aligned) if j is not None]
    assert [j for _, j in pairs] == sorted({j for _, j in pairs})
    assert sum(scores[i, j] for i, j in pairs) == _best_alignment(scores)


FIND = ToolCall("find", {"city": "Rome"})
BOOK = ToolCall("book", {"id": "$var1.hotel.id$", "nights": 2})


def test_the_gold_plan_with_the_gold_calls_earns_the_maximum() -> None:
    done = [FIND, ToolCall("book", {"id": 7, "nights": 2})]
    reward = planner_reward(
        _plan(FIND, BOOK), [FIND, BOOK], [[[c] for c in done]] * 2, WEIGHTS, done
    )
    assert reward.total == pytest.approx(WEIGHTS.w_param + WEIGHTS.w_exe)


def test_the_planner_is_paid_for_what_the_executor_achieves() -> None:
    gold = [FIND]
    good, bad = [[FIND]], [[ToolCall("book", {})]]
    both = planner_reward(_plan(FIND), gold, [good, bad], WEIGHTS)
    assert both.execution == pytest.approx(0.5)
    assert both.parameters == 1.0


def test_an_extra_sub_task_costs() -> None:
    assert execution_reward([[FIND], [FIND]], [FIND], 0.1) == pytest.approx(0.9)


def test_calls_for_gold_steps_in_the_wrong_order_count_once() -> None:
    gold = [FIND, BOOK]
    assert execution_reward([[BOOK], [FIND]], gold, 0.1) == pytest.approx(0.5)


def test_declining_is_right_exactly_when_no_call_is() -> None:
    empty = Plan(())
    words = Plan((SubTask("say so", None, {}),))
    full = WEIGHTS.w_param + WEIGHTS.w_exe
    assert planner_reward(empty, [], [[]], WEIGHTS).total == full
    assert planner_reward(words, [], [[[]]], WEIGHTS).parameters == 1.0
    assert planner_reward(_plan(FIND), [], [[[FIND]]], WEIGHTS).total == 0.0
    assert planner_reward(empty, [FIND], [[]], WEIGHTS).total == 0.0


def test_listing_values_in_the_wrong_place_earns_nothing_when_strict() -> None:
    hack = Plan((SubTask("Rome Rome", "book", {"id": "Rome"}),))
    assert parameter_reward(hack, [FIND], "strict") == 0.0
    assert parameter_reward(hack, [FIND], "substring") == 1.0


def test_a_planned_value_counts_once() -> None:
    gold = [ToolCall("f", {"a": 5, "b": 5})]
    assert parameter_reward(_plan(ToolCall("f", {"a": 5})), gold, "strict") == 0.5


def test_references_are_renumbered_through_the_alignment() -> None:
    gold = [FIND, BOOK]
    shifted = ToolCall("book", {"id": "$var2.hotel.id$", "nights": 2})
    extra = ToolCall("rest", {})
    assert parameter_reward(_plan(extra, FIND, shifted), gold, "strict") == 1.0
    assert parameter_reward(_plan(extra, FIND, BOOK), gold, "strict") == pytest.approx(2 / 3)
    other = ToolCall("book", {"id": "$var1.hotel.name$", "nights": 2})
    assert parameter_reward(_plan(FIND, other), gold, "strict") == pytest.approx(2 / 3)


def test_alignment_prefers_the_sub_task_with_the_gold_values() -> None:
    first, second = ToolCall("f", {"a": 1}), ToolCall("f", {"a": 2})
    assert align_plan(_plan(second), [first, second]) == [1]


# --- advantages ----------------------------------------------------------------------------------


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_advantages_equal_a_plain_loop(rewards: list[float]) -> None:
    mean = sum(rewards) / len(rewards)
    deviation = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    flat = max(rewards) - min(rewards) < 1e-9
    expected = [0.0 if flat else (r - mean) / (deviation + 1e-6) for r in rewards]
    assert group_advantages(rewards).tolist() == pytest.approx(expected, abs=1e-6)
    centred = [0.0 if flat else r - mean for r in rewards]
    assert group_advantages(rewards, "group_mean").tolist() == pytest.approx(centred, abs=1e-9)


def test_a_group_of_equal_rewards_has_no_signal() -> None:
    assert zero_variance([0.3, 0.3, 0.3])
    assert group_advantages([0.1 + 0.2, 0.3]).tolist() == [0.0, 0.0]
