"""Rewards: hand-computed values, properties, and exhaustive references (tests/reference)."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.call_schema import schema_fault
from cahl_core.explain import explain_execution, explain_plan
from cahl_core.matching import align_plan, as_steps, assign, same_calls
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec
from cahl_core.rewards import (
    align,
    canonical,
    execution_reward,
    executor_reward,
    fits_schema,
    parameter_reward,
    planner_reward,
    planner_total,
    semantic_reward,
)
from cahl_core.success import executor_success, task_success
from cahl_core.train_config import RewardSettings, ValueSettings
from tests.reference import rewards as plain

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
calls = st.lists(call, max_size=4)
sub_task = st.builds(
    SubTask,
    st.just("do"),
    st.sampled_from(["f", "g", "h", None]),
    st.dictionaries(
        st.sampled_from("abc"), st.sampled_from([0, 1, 2, "$var1.x$", "$var2.x$"]), max_size=3
    ),
)
plan = st.builds(Plan, st.lists(sub_task, max_size=4).map(tuple))
referring = st.lists(
    st.builds(
        ToolCall,
        st.sampled_from("fgh"),
        st.dictionaries(
            st.sampled_from("abc"), st.sampled_from([0, 1, 2, "$var1.x$", "$var2.x$"]), max_size=3
        ),
    ),
    max_size=4,
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


@given(calls, calls)
def test_semantics_equals_the_best_of_all_assignments(
    made: list[ToolCall], gold: list[ToolCall]
) -> None:
    assert semantic_reward(made, gold) == pytest.approx(plain.semantic(made, gold), abs=1e-6)


@given(st.integers(1, 4), st.integers(1, 4), st.data())
def test_an_assignment_is_the_best_one(rows: int, columns: int, data: st.DataObject) -> None:
    scores = _matrix(rows, columns, data)
    pairs = assign(scores)
    assert len(pairs) == len(dict(pairs)) == len({j for _, j in pairs}) == min(rows, columns)
    wide = scores if rows <= columns else scores.T
    best = max(
        sum(wide[i, j] for i, j in enumerate(chosen))
        for chosen in itertools.permutations(range(wide.shape[1]), wide.shape[0])
    )
    assert sum(scores[i, j] for i, j in pairs) == best


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


def _matrix(rows: int, columns: int, data: st.DataObject) -> np.ndarray:
    cells = st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns)
    return np.array(data.draw(cells), dtype=float).reshape(rows, columns)


@given(st.integers(0, 4), st.integers(0, 4), st.data())
def test_alignment_is_order_preserving_and_optimal(
    rows: int, columns: int, data: st.DataObject
) -> None:
    scores = _matrix(rows, columns, data)
    aligned = align(scores)
    pairs = [(i, j) for i, j in enumerate(aligned) if j is not None]
    assert [j for _, j in pairs] == sorted({j for _, j in pairs})
    assert all(scores[i, j] > 0 for i, j in pairs)
    best, _ = plain.best_path(rows, columns, lambda i, _, j: scores[i, j], [1] * columns)
    assert sum(scores[i, j] for i, j in pairs) == best


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


@st.composite
def near_plan(draw: st.DrawFn) -> tuple[Plan, list[ToolCall]]:
    """Gold calls and a plan that has most of their arguments."""
    gold = draw(referring)
    steps = []
    for made in gold:
        changed = draw(st.dictionaries(st.sampled_from("abc"), st.integers(0, 2), max_size=1))
        steps.append(SubTask("do", made.name, made.arguments | changed))
    if draw(st.booleans()):
        steps.insert(draw(st.integers(0, len(steps))), draw(sub_task))
    return Plan(tuple(steps)), gold


@given(st.one_of(st.tuples(plan, referring), near_plan()))
def test_plans_are_aligned_and_judged_as_by_exhaustive_search(
    case: tuple[Plan, list[ToolCall]],
) -> None:
    plan, gold = case
    assert align_plan(plan, gold) == plain.plan_alignment(plan, gold)
    expected = plain.parameters(plan, gold)
    assert parameter_reward(plan, gold, "strict") == pytest.approx(expected, abs=1e-6)


def test_each_planned_value_stands_for_one_gold_value() -> None:
    gold = [ToolCall("f", {"a": 5, "b": 5, "c": 6})]
    once, twice = ToolCall("f", {"a": 5}), ToolCall("f", {"a": 5, "d": [5, 5]})
    assert parameter_reward(_plan(once), gold, "strict") == pytest.approx(1 / 3)
    assert parameter_reward(_plan(twice), gold, "strict") == pytest.approx(2 / 3)


def test_a_value_counts_where_its_text_stands_in_the_plan_when_substring() -> None:
    gold = [ToolCall("f", {"a": 'say "hi"', "b": 5.0, "c": [True]})]
    words = Plan((SubTask('First say "hi" 5 times', None, {}),))
    assert parameter_reward(words, gold, "substring") == pytest.approx(2 / 3)
    assert parameter_reward(words, gold, "strict") == 0.0


@pytest.mark.parametrize("match", ["strict", "substring"])
def test_value_rules_reach_every_reward(match: str) -> None:
    weights = RewardSettings(
        param_match=match, values=ValueSettings(dates=True, ignore_case=True), w_success=1.0
    )  # type: ignore[arg-type]
    gold = [ToolCall("find", {"city": "Rome", "day": "2026-11-21"})]
    made = ToolCall("find", {"city": "ROME", "day": "21 November 2026"})
    reward = planner_reward(_plan(made), gold, [[[made]]], weights)
    assert (reward.parameters, reward.execution, reward.success) == (1.0, 1.0, 1.0)
    assert executor_reward(Execution((made,)), gold, [], weights).semantics == 1.0
    exact = RewardSettings(param_match=match, w_success=1.0)  # type: ignore[arg-type]
    reward = planner_reward(_plan(made), gold, [[[made]]], exact)
    assert (reward.parameters, reward.success) == (0.0, 0.0)
    assert reward.execution == pytest.approx(2 / 3)


def test_a_reference_is_the_same_with_and_without_the_dot_before_an_index() -> None:
    gold = [FIND, ToolCall("book", {"id": "$var1[0].id$"})]
    assert parameter_reward(_plan(*gold), gold, "strict") == 1.0
    dotted = ToolCall("book", {"id": "$var1.[0].id$"})
    assert parameter_reward(_plan(FIND, dotted), gold, "strict") == 1.0


def test_references_inside_a_text_are_renumbered_too() -> None:
    gold = [FIND, ToolCall("pay", {"sum": "$var1.price$ * 2"})]
    rest, shifted = ToolCall("rest", {}), ToolCall("pay", {"sum": "$var2.price$ * 2"})
    assert parameter_reward(_plan(rest, FIND, shifted), gold, "strict") == 1.0
    assert parameter_reward(_plan(rest, FIND, gold[1]), gold, "strict") == pytest.approx(0.5)


# --- steps of several calls ----------------------------------------------------------------------

steps = st.lists(st.lists(call, max_size=3), max_size=2)


@given(st.lists(st.lists(call, max_size=2), max_size=4), steps)
def test_execution_reward_equals_exhaustive_search(
    made: list[list[ToolCall]], gold: list[list[ToolCall]]
) -> None:
    expected = plain.execution(made, [s for s in gold if s], 0.1)
    assert execution_reward(made, gold, 0.1) == pytest.approx(expected, abs=1e-6)


@given(st.lists(st.lists(call, max_size=2), max_size=4), calls)
def test_calls_alone_are_steps_of_one(made: list[list[ToolCall]], gold: list[ToolCall]) -> None:
    assert execution_reward(made, gold, 0.1) == execution_reward(made, [[g] for g in gold], 0.1)


@given(st.lists(st.lists(call, min_size=1, max_size=3), min_size=1, max_size=3), st.randoms())
def test_parallel_calls_may_come_in_any_order_and_from_any_number_of_sub_tasks(
    gold: list[list[ToolCall]], draw: random.Random
) -> None:
    apart, together = [], []
    for step in gold:
        shuffled = draw.sample(step, len(step))
        apart += [[c] for c in shuffled]
        together.append(shuffled)
    assert execution_reward(apart, gold, 0.1) == pytest.approx(1.0)
    assert execution_reward(together, gold, 0.1) == pytest.approx(1.0)
    plan = _plan(*(c for [c] in apart))
    numbers = [j for j in align_plan(plan, gold) if j is not None]
    assert sorted(numbers) == list(range(len(apart)))
    assert task_success(plan, apart, gold) == 1.0


def test_steps_keep_their_order() -> None:
    a, b, c = ToolCall("f", {"a": 1}), ToolCall("g", {}), ToolCall("h", {})
    assert execution_reward([[b], [a], [c]], [[a, b], [c]], 0.1) == pytest.approx(1.0)
    assert execution_reward([[c], [b], [a]], [[a, b], [c]], 0.1) == pytest.approx(0.5)
    assert align_plan(_plan(c, b, a), [[a, b], [c]]) == [None, 1, 0]


def test_a_step_without_calls_asks_for_nothing() -> None:
    assert as_steps([[], [FIND], []]) == [(FIND,)]
    assert execution_reward([[FIND]], [[], [FIND]], 0.1) == 1.0


# --- success -------------------------------------------------------------------------------------

SUCCESS = RewardSettings(w_success=1.0)


@st.composite
def executed(draw: st.DrawFn) -> tuple[Plan, list[list[list[ToolCall]]], list[ToolCall]]:
    """A plan that mostly covers its gold, and G_l executions of it that mostly do what is due."""
    gold = draw(st.lists(call, max_size=3))
    steps = [SubTask("do", c.name, c.arguments) for c in gold]
    if steps and draw(st.integers(0, 3)) == 0:
        del steps[draw(st.integers(0, len(steps) - 1))]
    if draw(st.booleans()):
        steps.insert(draw(st.integers(0, len(steps))), draw(sub_task))
    plan = Plan(tuple(steps))
    due = [[] if j is None else [gold[j]] for j in plain.plan_alignment(plan, gold)]
    rows = [
        [
            due_calls if draw(st.booleans()) else draw(st.lists(call, max_size=2))
            for due_calls in due
        ]
        for _ in range(draw(st.integers(1, 3)))
    ]
    return plan, rows, gold


@given(executed())
def test_success_equals_the_plain_definition(
    case: tuple[Plan, list[list[list[ToolCall]]], list[ToolCall]],
) -> None:
    plan, rows, gold = case
    expected = [plain.success(plan, made, gold) for made in rows]
    assert [task_success(plan, made, gold) for made in rows] == expected
    reward = planner_reward(plan, gold, rows, SUCCESS)
    assert reward.success == pytest.approx(sum(expected) / len(expected), abs=1e-9)
    credited = executor_success(plan, rows, gold, recombine=False)
    assert credited == [expected for _ in plan.sub_tasks]


@given(executed())
def test_recombined_success_is_the_mean_over_all_pairings(
    case: tuple[Plan, list[list[list[ToolCall]]], list[ToolCall]],
) -> None:
    plan, rows, gold = case
    every = [plain.success(plan, made, gold) for made in plain.every_pairing(rows)]
    reward = planner_reward(plan, gold, rows, SUCCESS, recombine=True)
    assert reward.success == pytest.approx(sum(every) / len(every), abs=1e-9)


@given(executed())
def test_a_sample_is_credited_with_the_mean_over_the_pairings_that_hold_it(
    case: tuple[Plan, list[list[list[ToolCall]]], list[ToolCall]],
) -> None:
    plan, rows, gold = case
    credited = executor_success(plan, rows, gold, recombine=True)
    for k in range(len(plan.sub_tasks)):
        for g in range(len(rows)):
            fixed = [[*row[:k], rows[g][k], *row[k + 1 :]] for row in rows]
            pairings = plain.every_pairing([[*row[:k], *row[k + 1 :]] for row in fixed])
            every = [plain.success(plan, [*p[:k], rows[g][k], *p[k:]], gold) for p in pairings]
            assert credited[k][g] == pytest.approx(sum(every) / len(every), abs=1e-9)


def test_success_needs_every_call_and_no_other() -> None:
    gold, done = [FIND, BOOK], [FIND, ToolCall("book", {"id": 7, "nights": 2})]
    plan = _plan(FIND, BOOK)
    assert task_success(plan, [[c] for c in done], gold, done) == 1.0
    assert task_success(plan, [[FIND], [BOOK]], gold, done) == 0.0  # the reference was not resolved
    assert task_success(plan, [[FIND], []], gold, done) == 0.0
    assert task_success(plan, [[FIND, FIND], [done[1]]], gold, done) == 0.0
    talk = Plan((*plan.sub_tasks, SubTask("say so", None)))
    assert task_success(talk, [[FIND], [done[1]], []], gold, done) == 1.0
    assert task_success(talk, [[FIND], [done[1]], [FIND]], gold, done) == 0.0
    assert task_success(_plan(FIND), [[FIND]], gold, done) == 0.0
    assert task_success(ParseFailure("x", 0), [], gold) == 0.0


@given(calls, calls, st.randoms())
def test_calls_are_the_same_where_one_is_an_order_of_the_other(
    made: list[ToolCall], gold: list[ToolCall], draw: random.Random
) -> None:
    same = sorted(map(written, made)) == sorted(map(written, gold))
    assert same_calls(made, gold) == same
    assert same_calls(draw.sample(gold, len(gold)), gold)


def test_a_call_made_twice_does_not_stand_for_two() -> None:
    one, other = ToolCall("f", {"a": 1}), ToolCall("f", {"a": 2})
    assert not same_calls([one, one], [one, other])
    assert not same_calls([one, other], [one, one])


@pytest.mark.parametrize("recombine", [False, True])
def test_a_plan_that_leaves_a_gold_call_out_credits_no_sample(recombine: bool) -> None:
    credited = executor_success(_plan(FIND), [[[FIND]], [[]]], [FIND, BOOK], recombine)
    assert credited == [[0.0, 0.0]]
    reward = planner_reward(_plan(FIND), [FIND, BOOK], [[[FIND]]], SUCCESS, recombine=recombine)
    assert reward.success == 0.0


def test_where_no_call_is_due_success_is_to_make_none() -> None:
    words = Plan((SubTask("say so", None),))
    assert task_success(words, [[]], []) == 1.0
    assert task_success(Plan(()), [], []) == 1.0
    assert task_success(_plan(FIND), [[FIND]], []) == 0.0
    assert planner_reward(Plan(()), [], [], SUCCESS).success == 1.0
    assert planner_reward(Plan(()), [FIND], [], SUCCESS).success == 0.0
    assert planner_reward(Plan(()), [FIND], [[]], SUCCESS, recombine=True).success == 0.0


def test_success_enters_both_rewards_with_its_weight() -> None:
    weights = RewardSettings(w_success=2.0, w_task=0.25)
    half = planner_reward(_plan(FIND), [FIND], [[[FIND]], [[]]], weights)
    assert (half.execution, half.success) == (0.5, 0.5)
    assert half.total == pytest.approx(weights.w_param + 0.5 * weights.w_exe + 0.5 * 2.0)
    made = Execution((FIND,))
    plain_reward = executor_reward(made, [FIND], [], weights).total
    assert executor_reward(made, [FIND], [], weights, 0.5).total == plain_reward + 0.125
    assert executor_reward(ParseFailure("x", 0), [FIND], [], weights, 1.0).total == 0.0


def test_the_total_is_made_of_the_parts_in_one_place() -> None:
    weights = RewardSettings(w_success=2.0)
    reward = planner_reward(_plan(FIND), [FIND], [[[FIND]], [[]]], weights)
    parts = (reward.form, reward.parameters, reward.execution, reward.success)
    assert planner_total(*parts, weights) == reward.total
    assert planner_total(0.0, 1.0, 1.0, 1.0, weights) == 0.0


# --- schemas -------------------------------------------------------------------------------------


@given(st.builds(ToolCall, st.sampled_from(["add", "sub"]), st.dictionaries(
    st.sampled_from("abc"), st.sampled_from([1, "1", True, None, "$var1.x$"]), max_size=3
)))  # fmt: skip
def test_a_fault_is_told_exactly_where_a_call_does_not_fit(call: ToolCall) -> None:
    fault = schema_fault(call, [ADD])
    assert (fault is None) == fits_schema(call, [ADD])
    assert fault is None or 0 < len(fault) <= 200


@pytest.mark.parametrize(
    ("call", "fault"),
    [
        (ToolCall("sub", {}), "tool 'sub' does not exist"),
        (ToolCall("add", {"a": 1, "c": 3}), "unknown argument 'c'"),
        (ToolCall("add", {"b": 1}), "required argument 'a' is missing"),
        (ToolCall("add", {"a": "1"}), "argument 'a': '1' is not of type 'integer'"),
    ],
)
def test_faults_name_the_argument(call: ToolCall, fault: str) -> None:
    assert schema_fault(call, [ADD]) == fault


def test_a_number_that_the_validator_cannot_divide_does_not_fit() -> None:
    cents = {"type": "number", "multipleOf": 0.01}
    tool = ToolSpec("pay", "", {"type": "object", "properties": {"sum": cents}})
    call = ToolCall("pay", {"sum": 10**400})
    assert not fits_schema(call, [tool])
    assert schema_fault(call, [tool]) == "a number is too large to be judged"


# --- whatever a model writes ---------------------------------------------------------------------

anything = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**400), 10**400),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=8),
        st.sampled_from(
            ["$var1.x$", "$var0$", "a $var9.y$", "$var" + "9" * 5000 + "$", "\0$var1$"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
written_arguments = st.dictionaries(st.text(max_size=3), anything, max_size=3)
rules = st.builds(ValueSettings, dates=st.booleans(), ignore_case=st.booleans())


@given(st.data(), rules, st.sampled_from(["strict", "substring"]))
def test_no_json_makes_a_reward_or_its_explanation_fail(
    data: st.DataObject, values: ValueSettings, match: str
) -> None:
    names = st.sampled_from(["add", "f", ""])
    steps = st.builds(SubTask, st.text(max_size=5), names, written_arguments)
    plan = Plan(tuple(data.draw(st.lists(steps, max_size=3))))
    any_calls = st.lists(st.builds(ToolCall, names, written_arguments), max_size=3)
    gold, made = data.draw(any_calls), data.draw(any_calls)
    weights = RewardSettings(param_match=match, values=values, w_success=1.0)  # type: ignore[arg-type]
    rows = [[made for _ in plan.sub_tasks]]
    for form in (gold, [gold]):
        reward = planner_reward(plan, form, rows, weights)
        parts = (reward.form, reward.parameters, reward.execution, reward.success)
        assert all(0.0 <= part <= 1.0 for part in parts)
        assert explain_plan(plan, form, rows, weights).to_json()
    execution = Execution(tuple(made))
    reward = executor_reward(execution, gold, [ADD], weights)
    assert all(0.0 <= part <= 1.0 for part in (reward.form, reward.syntax, reward.semantics))
    assert len(explain_execution(execution, gold, [ADD], values)) >= len(made)
