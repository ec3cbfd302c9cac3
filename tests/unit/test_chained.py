"""Chained calls: oracles score everything, each perturbation moves the measures it should and no other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.config import validate
from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.errors import EvaluationError
from cahl_core.evaluation.chained import SCORES, ChainedCalls
from cahl_core.evaluation.chained_runs import RecordedResults, forced_sub_task, planned
from cahl_core.evaluation.core import Attempt, ItemScore
from cahl_core.evaluation.task_records import judged
from cahl_core.protocol.texts import execution_text
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolTask
from cahl_core.serving.results import AgentResult
from cahl_core.train_config import Form, ValueSettings
from tests.unit.chained_tasks import Writes, gold, idle, planning, score_of, solved, trip

FORMS: tuple[Form, ...] = get_args(Form)
MIRROR = Path(__file__).parents[3] / "shared" / "data"
ZERO = {"plan_distance", "extra_calls"}  # best at 0, all others at 1


def worse(score: ItemScore) -> set[str]:
    """The measures that are not at their best; ``success`` for the headline."""
    found = {
        name
        for name, value in score.scores.items()
        if value is not None and value != (0.0 if name in ZERO else 1.0)
    }
    return found | ({"success"} if score.correct != 1.0 else set())


# --- oracles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("recorded", [True, False])
def test_the_gold_scores_the_best_of_every_measure(form: Form, recorded: bool) -> None:
    tasks = [trip(0, recorded), trip(1, recorded), idle()]
    _, _, _, scores = solved(tasks, form)
    assert [worse(s) - {"response_exact", "response_cover"} for s in scores] == [set()] * 3
    assert all(s.correct == 1.0 and s.error_type is None and s.invalid == 0 for s in scores)
    assert scores[0].scores["plan_distance_exact"] == (None if form == "low_only" else 1.0)
    assert (scores[0].scores["step_accuracy_forced"] == 1.0) == (form == "hierarchical")
    assert scores[2].outcome == "abstained"


@pytest.mark.parametrize("form", FORMS)
def test_a_solver_that_does_nothing_scores_nothing_where_calls_are_due(form: Form) -> None:
    score = score_of(trip(), lambda _: (Plan(()), []), form)
    assert (score.correct, score.error_type) == (0.0, "no_call")
    assert score.scores["step_accuracy_free"] == 0.0
    if form != "low_only":
        assert score.scores["plan_distance"] == 1.0
        assert score.scores["plan_arguments"] == score.scores["plan_exact"] == 0.0


def test_plan_measures_exist_only_where_a_plan_does() -> None:
    score = score_of(trip(), gold, "low_only")
    assert all(v is None for k, v in score.scores.items() if k.startswith("plan_"))


needs_mirror = pytest.mark.skipif(
    not MIRROR.is_dir(), reason="../shared/data is not here: the mirror of real records"
)


@needs_mirror
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("source", ["complexfuncbench", "nestful"])
def test_the_gold_of_real_records_scores_the_best_of_every_measure(source: str, form: Form) -> None:
    records = list(READERS["tool-tasks"](MIRROR / source, source, ReadLimits()))[::9]
    found, _, _ = judged(((str(i), r) for i, r in enumerate(records)), validate({}).prepare)
    tasks = [task for task, _ in found]
    assert len(tasks) > 20
    _, _, _, scores = solved(tasks, form)
    assert {s.id: worse(s) for s in scores if worse(s)} == {}


# --- perturbations -------------------------------------------------------------------------------


def changed(change: Any) -> Any:
    """A writer of the gold plan and calls after ``change(sub-tasks, calls)``."""

    def write(task: ToolTask) -> tuple[Plan, Sequence[Sequence[ToolCall]]]:
        plan, calls = gold(task)
        sub_tasks, made = list(plan.sub_tasks), [list(c) for c in calls]
        change(sub_tasks, made)
        return Plan(tuple(sub_tasks)), made

    return write


def _swap(sub_tasks: list[SubTask], calls: list[Any], one: int, other: int) -> None:
    """Swaps two steps; references follow their step."""
    for rows in (sub_tasks, calls):
        rows[one], rows[other] = rows[other], rows[one]
    numbers = {one + 1: other + 1, other + 1: one + 1}
    for k, s in enumerate(sub_tasks):
        text = json.dumps(s.arguments)
        for old, new in numbers.items():
            text = text.replace(f"$var{old}", f"#{new}")
        sub_tasks[k] = replace(s, arguments=json.loads(text.replace("#", "$var")))


def test_independent_steps_the_other_way_round_only_leave_the_written_sequence() -> None:
    score = score_of(trip(), changed(lambda s, c: _swap(s, c, 0, 1)))
    assert worse(score) == {"plan_sequence", "response_exact", "response_cover"}
    assert score.scores["plan_exact"] == 1.0


def test_without_recorded_results_swapped_independent_steps_still_solve_the_task() -> None:
    def write(task: ToolTask) -> tuple[Plan, Sequence[Sequence[ToolCall]]]:
        sub_tasks = list(task.plan.sub_tasks if task.plan else ())
        _swap(sub_tasks, [[]] * 4, 0, 1)
        return Plan(tuple(sub_tasks)), [[ToolCall(str(s.tool), s.arguments)] for s in sub_tasks]

    score = score_of(trip(recorded=False), write)
    assert (score.correct, score.scores["step_accuracy_free"]) == (1.0, 1.0)
    # with the references of before the swap the hotel is near the wrong place
    wrong = changed(lambda s, c: c.__setitem__(slice(0, 2), [c[1], c[0]]))
    assert score_of(trip(recorded=False), wrong).scores["step_accuracy_free"] == 0.5


def test_dependent_steps_in_the_wrong_order_break_the_order_and_nothing_that_has_none() -> None:
    score = score_of(trip(), changed(lambda s, c: _swap(s, c, 0, 2)))
    assert worse(score) == {
        "plan_sequence", "plan_order", "plan_exact", "response_exact", "response_cover"
    }  # fmt: skip


def test_a_dropped_step() -> None:
    def drop(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        del sub_tasks[3], calls[3]

    score = score_of(trip(), changed(drop))
    assert worse(score) - {"response_exact", "response_cover"} == {
        "success", "plan_tools_recall", "plan_tools_f1", "plan_arguments", "plan_exact",
        "plan_references_recall", "plan_references_f1", "plan_distance", "step_accuracy_free",
    }  # fmt: skip
    assert score.scores["plan_tools_recall"] == score.scores["step_accuracy_free"] == 0.75
    assert score.scores["plan_arguments"] == pytest.approx(4 / 6)
    # a node and its two edges are missing; 4 nodes, 3 edges and 1 edge are there
    assert score.scores["plan_distance"] == pytest.approx(3 / (4 + 3 + 1))
    assert (score.error_type, score.error) == ("missing_call", "call 4 (taxi) was not made")


def test_a_wrong_value_in_the_plan_alone_leaves_calls_and_graph() -> None:
    def lie(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks[2] = replace(
            sub_tasks[2], arguments={**sub_tasks[2].arguments, "day": "2026-05-02"}
        )

    score = score_of(trip(), changed(lie))
    assert worse(score) - {"response_exact", "response_cover"} == {"plan_arguments", "plan_exact"}
    assert score.scores["plan_arguments"] == pytest.approx(5 / 6)


def test_a_wrong_value_in_a_call_alone_leaves_the_plan() -> None:
    def lie(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        calls[3] = [ToolCall("taxi", {"start": "h7", "end": "nowhere"})]

    score = score_of(trip(), changed(lie))
    assert worse(score) - {"response_exact", "response_cover"} == {
        "success", "step_accuracy_free", "extra_calls",
    }  # fmt: skip
    assert (score.scores["step_accuracy_free"], score.scores["extra_calls"]) == (0.75, 1.0)
    assert (score.error_type, score.error) == ("wrong_arguments", "call 4 (taxi): end differs")


def test_a_reference_to_the_wrong_step() -> None:
    def lie(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks[2] = replace(
            sub_tasks[2], arguments={**sub_tasks[2].arguments, "near": "$var2.id$"}
        )

    score = score_of(trip(), changed(lie))
    assert worse(score) - {"response_exact", "response_cover"} == {
        "plan_arguments", "plan_exact", "plan_distance", "plan_references_precision",
        "plan_references_recall", "plan_references_f1",
    }  # fmt: skip
    assert score.scores["plan_references_f1"] == pytest.approx(2 / 3)
    assert score.scores["plan_distance"] == pytest.approx(2 / (4 + 3 + 3))  # an edge out, one in


def test_a_wrong_path_is_no_matter_of_the_graph() -> None:
    def lie(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks[2] = replace(
            sub_tasks[2], arguments={**sub_tasks[2].arguments, "near": "$var1.name$"}
        )

    score = score_of(trip(), changed(lie))
    assert "plan_distance" not in worse(score)
    assert score.scores["plan_references_f1"] == pytest.approx(2 / 3)


@pytest.mark.parametrize("path", ["$var1[0].id$", "$var1.id$"])
def test_two_ways_to_write_a_path_are_one(path: str) -> None:
    def say(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks[2] = replace(sub_tasks[2], arguments={**sub_tasks[2].arguments, "near": path})

    score = score_of(trip(), changed(say))
    assert (score.scores["plan_exact"], score.scores["plan_references_f1"]) == (1.0, 1.0)


@pytest.mark.parametrize("spot", ["$var3.hotels[0].spot$", "$var3.hotels.spot$"])
def test_a_call_may_refer_to_what_the_run_itself_got(spot: str) -> None:
    def refer(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        calls[2:] = [[call] for call in trip().calls[2:]]
        calls[3] = [ToolCall("taxi", {"start": spot, "end": "$var2.id$"})]

    assert score_of(trip(), changed(refer)).correct == 1.0

    def wrongly(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        calls[3] = [ToolCall("taxi", {"start": spot, "end": "$var1.id$"})]

    assert score_of(trip(), changed(wrongly)).error == "call 4 (taxi): end differs"


def test_the_value_that_a_reference_gives_is_as_good_as_the_reference() -> None:
    def say(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks[2] = replace(sub_tasks[2], arguments={**sub_tasks[2].arguments, "near": "p1"})

    score = score_of(trip(), changed(say))
    assert score.scores["plan_arguments"] == 1.0
    assert score.scores["plan_references_recall"] == pytest.approx(2 / 3)


def test_an_extra_valid_call_is_counted_and_costs_no_success() -> None:
    def add(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks.append(SubTask("look", "news", {}))
        calls.append([ToolCall("news", {})])

    score = score_of(trip(), changed(add))
    assert worse(score) - {"response_exact", "response_cover"} == {
        "plan_tools_precision", "plan_tools_f1", "plan_exact", "plan_distance", "extra_calls",
    }  # fmt: skip
    assert (score.correct, score.scores["extra_calls"], score.redundant) == (1.0, 1.0, 1)


def test_an_invalid_call_costs_the_success() -> None:
    def add(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks.append(SubTask("look", "news", {}))
        calls.append([ToolCall("news", {"x": 1})])

    score = score_of(trip(), changed(add))
    assert (score.correct, score.error_type, score.invalid) == (0.0, "invalid_call", 1)


def test_a_repeated_call_is_redundant_and_matches_once() -> None:
    def repeat(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        calls[0] = [*calls[0], *calls[0]]

    score = score_of(trip(), changed(repeat))
    assert score.scores["step_accuracy_free"] == 1.0
    assert (score.scores["extra_calls"], score.redundant) == (1.0, 1)


def test_words_at_the_end_of_a_plan_are_no_call() -> None:
    def add(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks.append(SubTask("answer", None, {}))
        calls.append([])

    score = score_of(trip(), changed(add))
    assert worse(score) == {"response_exact", "response_cover"}


# --- no call due, answers ------------------------------------------------------------------------


def test_where_no_call_is_due_a_call_is_a_failure_and_a_clean_abstention_success() -> None:
    called = score_of(idle(), lambda _: (planning(("news", {})), [[ToolCall("news", {})]]))
    assert (called.correct, called.error_type) == (0.0, "needless_call")
    assert called.scores["plan_exact"] == 0.0
    assert called.scores["step_accuracy_free"] is None
    quiet = score_of(idle(), lambda _: (planning((None, {})), [[]]))
    assert (quiet.correct, quiet.outcome, quiet.scores["plan_exact"]) == (1.0, "abstained", 1.0)


def test_a_text_outside_the_grammar_is_no_abstention() -> None:
    benchmark = ChainedCalls("toy", "Toy", [idle()])
    (item,) = benchmark.items()
    broken = AgentResult("I do not know", None).to_json()
    (score,) = benchmark.score([Attempt(item)], [{"run": broken, "forced": None}])
    assert (score.correct, score.error_type, score.outcome) == (0.0, "plan_failure", "plan_failure")


@pytest.mark.parametrize(
    ("said", "exact", "cover"),
    [
        ("A taxi is booked.", 1.0, 1.0),
        ("the taxi is booked", 1.0, 1.0),
        ("Done: a taxi is booked for you", 0.0, 1.0),
        ("nothing", 0.0, 0.0),
    ],
)
def test_the_answer_in_words(said: str, exact: float, cover: float) -> None:
    benchmark = ChainedCalls("toy", "Toy", [trip()])
    (item,) = benchmark.items()
    plan = '<plan>[{"task": "say", "tool": null, "arguments": {}}]</plan>'
    step = {"text": f"<response>{said}</response>", "result": None}
    run = {**AgentResult().to_json(), "plan_text": plan, "steps": [step]}
    (score,) = benchmark.score([Attempt(item)], [{"run": run, "forced": None}])
    assert (score.scores["response_exact"], score.scores["response_cover"]) == (exact, cover)


# --- what is asked -------------------------------------------------------------------------------


def test_teacher_forced_steps_get_the_gold_sub_task_and_all_that_came_before() -> None:
    benchmark = ChainedCalls("toy", "Toy", [trip()])
    attempts = [Attempt(item) for item in benchmark.items()]
    solver = Writes(benchmark.tasks)
    benchmark.solve(solver, attempts, lambda *_: None)
    run, *steps = solver.asked
    assert run.plan is None
    assert run.feedback == ()
    assert [len(step.feedback) for step in steps] == [0, 1, 2, 3]
    assert steps[3].plan == Plan((forced_sub_task(benchmark.tasks[0], 3),))
    assert [result for _, result in steps[3].feedback] == trip().meta["results"][:3]
    assert len({request.seed for request in solver.asked}) == 5


def _call(name: str, **arguments: str) -> str:
    return execution_text([ToolCall(name, arguments)])


TAXI = _call("taxi", start="h7", end="p2")


@pytest.mark.parametrize(
    ("last", "right"),
    [
        (TAXI, True),
        (_call("taxi", start="$var3.hotels[0].spot$", end="$var2.id$"), True),
        (_call("taxi", start="$var3.hotels[0].spot$", end="$var1.id$"), False),
        (_call("taxi", start="h7", end="p1"), False),
        (_call("taxi", start="h7"), False),
        (_call("news"), False),
        (TAXI + TAXI, False),
        ("<response>done</response>", False),
        ("taxi, please", False),
        (None, False),
    ],
)
def test_a_teacher_forced_step_is_right_if_it_is_the_one_gold_call(
    last: str | None, right: bool
) -> None:
    benchmark, attempts, records, _ = solved([trip()])
    record = {**records[0], "forced": [*records[0]["forced"][:3], last]}
    (score,) = benchmark.score(attempts, [record])
    assert score.scores["step_accuracy_forced"] == (1.0 if right else 0.75)
    assert score.correct == 1.0  # the free run is another one


def test_without_recorded_results_a_teacher_forced_step_refers_to_the_right_call() -> None:
    benchmark, attempts, records, _ = solved([trip(recorded=False)])
    for end, share in (("$var2.id$", 1.0), ("$var1.id$", 0.75)):
        last = _call("taxi", start="$var3.hotels.spot$", end=end)
        record = {**records[0], "forced": [*records[0]["forced"][:3], last]}
        (score,) = benchmark.score(attempts, [record])
        assert score.scores["step_accuracy_forced"] == share


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_forms_without_an_executor_of_their_own_are_not_teacher_forced(form: Form) -> None:
    _, _, records, scores = solved([trip()], form)
    assert records[0]["forced"] is None
    assert scores[0].scores["step_accuracy_forced"] is None


def test_teacher_forcing_can_be_left_out() -> None:
    benchmark, _, records, _ = solved([trip()], forced=False)
    assert records[0]["forced"] is None
    assert "not asked" in benchmark.about()["protocol"]["step_accuracy_forced"]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_each_attempt_gets_one_record_with_its_own_steps(count: int) -> None:
    tasks = [trip(i) if i % 2 else idle(i) for i in range(count)]
    benchmark = ChainedCalls("toy", "Toy", tasks)
    attempts = [Attempt(item) for item in benchmark.items()]
    emitted: list[tuple[str, int]] = []
    benchmark.solve(
        Writes(benchmark.tasks),
        attempts,
        lambda a, r: emitted.append((a.item.id, len(r["forced"]))),
    )
    assert sorted(emitted) == sorted((t.id, len(t.calls)) for t in tasks)


def test_shown_changes_with_all_that_a_text_can_depend_on() -> None:
    def shown(task: ToolTask, **options: Any) -> str:
        (item,) = ChainedCalls("toy", "Toy", [task], **options).items()
        return json.dumps(item.shown)

    task = trip()
    others = [
        replace(task, messages=(Message("user", "else"),)),
        replace(task, tools=task.tools[:3]),
        replace(task, meta={**task.meta, "results": [None] * 4}),
        replace(task, plan=planning(*((c.name, {}) for c in task.calls))),
    ]
    assert len({shown(task), shown(task, forced=False), *map(shown, others)}) == 6
    assert shown(task) == shown(replace(task, meta={**task.meta, "answer": "else"}))


def test_recorded_results_answer_gold_calls_only_and_resolve_references() -> None:
    answers = RecordedResults(trip(), "hierarchical")
    plan = Plan(())
    assert answers(plan, 0, [ToolCall("place", {"city": "Oslo"})]) == [{"id": "p1"}]
    assert answers(plan, 2, [ToolCall("hotel", {"near": "$var1.id$", "day": "2026-05-01"})]) == {
        "hotels": [{"spot": "h7"}]
    }
    assert answers(plan, 3, [ToolCall("place", {"city": "Rome"})]) is None
    assert "invalid call" in answers(plan, 4, [ToolCall("place", {})])["error"]


def test_in_one_text_references_count_its_calls() -> None:
    answers = RecordedResults(trip(), "low_only")
    found = answers(Plan(()), 0, trip().calls)
    assert found == trip().meta["results"]


def test_a_broken_environment_is_an_error_and_no_score() -> None:
    def broken(task: ToolTask, call: ToolCall) -> Any:
        raise OSError("no network")

    with pytest.raises(EvaluationError, match=r"place of task 'trip-0'.*no network"):
        solved([trip()], environment=broken)


# --- aggregates ----------------------------------------------------------------------------------


def test_categories_are_splits_then_sources_then_sizes() -> None:
    def labels(tasks: Sequence[ToolTask]) -> list[str]:
        return [item.category for item in ChainedCalls("t", "T", tasks).items()]

    first, second = trip(0), trip(1)
    assert labels([first, idle()]) == ["4-5 calls", "no call"]
    sourced = [replace(first, source="x"), replace(second, source="y")]
    assert labels(sourced) == ["x", "y"]
    split = [replace(t, meta={**t.meta, "split": t.source}) for t in sourced]
    assert labels([split[0], replace(split[1], source="x")]) == ["x", "y"]
    origin = [replace(t, source="mine", meta={**t.meta, "origin": t.source}) for t in sourced]
    assert labels(origin) == ["x", "y"]


def test_measures_say_on_how_many_items_each_measure_was_observed() -> None:
    benchmark, _, _, scores = solved([trip(), idle()])
    found = benchmark.measures(scores)
    assert found["all"]["plan_tools_f1"] == {"mean": 1.0, "n": 1}
    assert found["all"]["plan_exact"] == {"mean": 1.0, "n": 2}
    assert found["no call"]["n"] == 1
    assert list(found) == ["all", "no call", "4-5 calls"]
    assert set(found["all"]) == {"n", "success", *SCORES}
    json.dumps([found, benchmark.about()], allow_nan=False)


def test_summary_weighs_steps_by_gold_calls_and_shares_out_failures() -> None:
    def lose(task: ToolTask) -> tuple[Plan, Sequence[Sequence[ToolCall]]]:
        plan, calls = gold(task)
        return (plan, calls) if len(calls) == 4 else (Plan(()), [])

    one = replace(trip(1), steps=trip().steps[:1], plan=None, meta={})
    benchmark, _, _, scores = solved([trip(0), one, idle()], writer=lose)
    found = benchmark.summary(scores)
    assert found == {
        "step_accuracy_forced_micro": 1.0,
        "step_accuracy_free_micro": 4 / 5,
        "not_solved": {"no_call": 1 / 3},
    }


def test_scoring_is_a_function_of_the_record() -> None:
    benchmark, attempts, records, scores = solved([trip(), idle()])
    again = benchmark.score(attempts, json.loads(json.dumps(records)))
    assert again == scores


def test_value_rules_apply_to_plans_and_calls() -> None:
    def spell(sub_tasks: list[SubTask], calls: list[Any]) -> None:
        sub_tasks[0] = replace(sub_tasks[0], arguments={"city": "OSLO"})
        calls[0] = [ToolCall("place", {"city": "OSLO"})]

    exact = solved([trip()], writer=changed(spell))[3][0]
    loose = solved([trip()], writer=changed(spell), rules=ValueSettings(ignore_case=True))[3][0]
    assert (exact.correct, loose.correct) == (0.0, 1.0)
    assert loose.scores["plan_arguments"] == 1.0


def test_a_plan_of_its_own_is_used_where_it_fits_the_gold_calls() -> None:
    own = planning(*((c.name, c.arguments) for c in trip().calls))
    assert planned(replace(trip(), plan=own)).plan == own
    other = planned(replace(trip(), plan=planning(("news", {}))))
    assert other.plan is not None
    assert [s.tool for s in other.plan.sub_tasks] == [c.name for c in trip().calls]


# --- properties ----------------------------------------------------------------------------------


@given(st.permutations(range(4)))
def test_any_order_that_keeps_dependencies_is_the_gold_plan(order: list[int]) -> None:
    place = {old: new for new, old in enumerate(order)}
    task = trip()

    def write(_: ToolTask) -> tuple[Plan, Sequence[Sequence[ToolCall]]]:
        plan, calls = gold(task)
        text = json.dumps([plan.sub_tasks[i].to_json() for i in order])
        for old in range(4):
            text = text.replace(f"$var{old + 1}", f"$#{place[old] + 1}")
        return Plan.from_json(json.loads(text.replace("$#", "$var"))), [calls[i] for i in order]

    score = score_of(task, write)
    kept = place[0] < place[2] < place[3] and place[1] < place[3]
    assert score.scores["plan_order"] == score.scores["plan_exact"] == float(kept)
    assert score.scores["plan_sequence"] == float(order == sorted(order))
    for name in ("plan_tools_f1", "plan_references_f1", "plan_arguments"):
        assert score.scores[name] == 1.0
    assert score.scores["plan_distance"] == 0.0
    assert score.correct == 1.0  # values are written out, so any order carries them out


sub_tasks = st.tuples(
    st.sampled_from(["place", "hotel", "taxi", "news", "other", None]),
    st.dictionaries(
        st.sampled_from(["city", "near", "start", "end", "x"]),
        st.sampled_from(["Oslo", "$var1.id$", "$var9.x$", "$var0$", "a $var2.id$", 1, None, [{}]]),
        max_size=3,
    ),
)


@given(st.lists(sub_tasks, max_size=6), st.booleans(), st.sampled_from(FORMS))
def test_whatever_is_planned_and_called_every_share_is_one(
    chosen: list[tuple[str | None, dict[str, Any]]], recorded: bool, form: Form
) -> None:
    plan = planning(*chosen)
    calls = [[ToolCall(name, a)] if name else [] for name, a in chosen]
    found = solved([trip(recorded=recorded)], form, lambda _: (plan, calls))
    benchmark, attempts, records, (score,) = found
    assert all(v is None or 0.0 <= v <= 1.0 for k, v in score.scores.items() if k != "extra_calls")
    assert score.invalid + score.redundant <= 2 * score.attempted
    assert benchmark.example(attempts[0], records[0])
    exact = score.scores["plan_exact"]
    if exact == 1.0:
        assert score.scores["plan_arguments"] == score.scores["plan_tools_f1"] == 1.0
