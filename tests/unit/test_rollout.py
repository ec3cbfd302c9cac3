"""What rollouts ask, what they make of the answers, and whom they credit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_project import BOOK, FIND, Scripted, Tokens, small_settings, small_task

from cahl_core.config import Settings
from cahl_core.environments.base import ToolError
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.protocol.prompts import execution_text, plan_text
from cahl_core.protocol.texts import single_text
from cahl_core.records import Message, Plan, SubTask, ToolCall, ToolTask
from cahl_core.training.arms import learners, shuffle_credit
from cahl_core.training.credit import set_advantages, signal_trees, training_samples
from cahl_core.training.curriculum import outcomes
from cahl_core.training.distributed import Workers
from cahl_core.training.rollout import Roller
from cahl_core.training.tree import Tree

TASK = small_task(1)
assert TASK.plan is not None
GOLD = plan_text(TASK.plan)
FIND_OSLO = execution_text([ToolCall("find", {"city": "Oslo"})])
BOOK_1 = execution_text([ToolCall("book", {"id": 1})])


@pytest.fixture(scope="module")
def tokens(tiny_backbone: Path) -> Tokens:
    return Tokens(tiny_backbone)


def _roll(
    tokens: Tokens,
    plans: list[str],
    executions: list[str],
    settings: Settings | None = None,
    tasks: tuple[ToolTask, ...] = (TASK,),
) -> tuple[list[Tree], Scripted, Settings]:
    settings = settings or small_settings()
    source = Scripted(tokens, plans, executions)
    roller = Roller(source, settings)
    trees = roller.rollout(tasks, "s", plans=max(len(plans), 1), executions=len(executions))
    return trees, source, settings


# --- teacher-forced ------------------------------------------------------------------------------


def test_gold_plan_and_gold_calls_earn_the_maximum(tokens: Tokens) -> None:
    [tree], source, settings = _roll(tokens, [GOLD, "nonsense"], [FIND_OSLO] * 2)
    good, bad = tree.plans
    assert isinstance(bad.plan, ParseFailure)
    assert bad.sample is not None and bad.sample.reward == 0.0
    assert bad.nodes == []
    # the second sub-task was also answered with the first one's call: half of R_exe
    weights = settings.train.rewards
    assert good.sample is not None
    assert good.sample.reward == pytest.approx(weights.w_param + weights.w_exe / 2)
    assert [s.reward for s in good.nodes[0].samples] == [2.5, 2.5]
    assert '{"id": 1}' in source.prompts["executor"][1]
    assert '{"id": 1}' not in source.prompts["executor"][0]


def test_an_unresolved_reference_is_judged_by_its_recorded_value(tokens: Tokens) -> None:
    call = execution_text([ToolCall("book", {"id": "$var1.id$"})])
    [tree], _, _ = _roll(tokens, [GOLD] * 2, [call] * 2)
    assert [s.reward for s in tree.plans[0].nodes[1].samples] == [2.5, 2.5]


def test_a_sub_task_without_gold_trains_no_executor_and_costs_the_planner(tokens: Tokens) -> None:
    assert TASK.plan is not None
    longer = Plan((*TASK.plan.sub_tasks, SubTask("again", "find", {"city": "Oslo"})))
    [tree], _, _ = _roll(tokens, [GOLD, plan_text(longer)], [FIND_OSLO] * 2)
    exact, extra = (p.sample for p in tree.plans)
    assert tree.plans[1].nodes[2].gold is None
    assert len(tree.groups("executor")) == 4
    assert exact is not None and extra is not None
    assert extra.reward < exact.reward


def test_a_task_without_gold_calls_rewards_declining(tokens: Tokens) -> None:
    task = ToolTask("n", "toy", (Message("user", "Sing."),), (FIND,), (), Plan(()))
    [tree], _, settings = _roll(tokens, ["<plan>[]</plan>", GOLD], [FIND_OSLO] * 2, tasks=(task,))
    weights = settings.train.rewards
    declined, called = (p.sample for p in tree.plans)
    assert declined is not None and called is not None
    assert declined.reward == weights.w_param + weights.w_exe
    assert called.reward < declined.reward


def test_what_is_too_long_to_execute_is_on_the_plans_account_and_in_no_group(
    tokens: Tokens,
) -> None:
    settings = small_settings(model={"max_context": 900})
    words = "x" * 900
    plan = Plan((SubTask(words, "find", {"city": "Oslo"}),))
    [tree], source, _ = _roll(tokens, [plan_text(plan)] * 2, [FIND_OSLO] * 2, settings)
    assert source.prompts["executor"] == []
    assert tree.groups("executor") == []
    assert tree.plans[0].reward is not None
    assert tree.plans[0].reward.execution == 0.0


def test_a_task_that_occurs_twice_draws_twice(tokens: Tokens) -> None:
    _, source, _ = _roll(tokens, [GOLD] * 2, [FIND_OSLO] * 2, tasks=(TASK, small_task(2), TASK))
    seeds = source.options["planner"]["seeds"]
    assert len(set(seeds)) == 3
    assert seeds[0] == "s/t1/planner"


# --- free-running --------------------------------------------------------------------------------


def _free(**train: Any) -> Settings:
    return small_settings(history="free_running", **train)


def test_free_running_shows_each_run_what_its_own_call_returned(tokens: Tokens) -> None:
    wrong = execution_text([ToolCall("find", {"town": "Oslo"})])
    script = [FIND_OSLO, wrong, BOOK_1, BOOK_1]  # both runs' first sub-task, then both second ones
    source = Scripted(tokens, [GOLD], script)
    [tree] = Roller(source, _free()).rollout([TASK], "s", plans=1, executions=2)
    first, second = source.prompts["executor"][2:]
    assert '{"id": 1}' in first and "error" not in first.split("Sub-task")[-2]
    assert "invalid call of find" in second
    assert tree.plans[0].nodes[0].results[0] == {"id": 1}
    assert [r.semantics for r in tree.plans[0].nodes[1].rewards] == [1.0, 1.0]
    assert tree.plans[0].reward is not None
    assert tree.plans[0].reward.success == 0.5


def test_a_reference_takes_the_value_of_the_runs_own_result(tokens: Tokens) -> None:
    book = execution_text([ToolCall("book", {"id": "$var1.id$"})])
    source = Scripted(tokens, [GOLD], [FIND_OSLO, book])
    [tree] = Roller(source, _free()).rollout([TASK], "s", plans=1, executions=1)
    assert tree.plans[0].nodes[1].calls == [(ToolCall("book", {"id": 1}),)]


def broken(task: ToolTask, call: ToolCall) -> Any:
    raise ConnectionError("host unreachable")


def refusing(task: ToolTask, call: ToolCall) -> Any:
    raise ToolError("closed today")


def test_a_broken_environment_voids_the_plan_and_trains_nothing(tokens: Tokens) -> None:
    settings = _free(environment=f"{__name__}:broken")
    source = Scripted(tokens, [GOLD, "nonsense"], [FIND_OSLO])
    roller = Roller(source, settings)
    [tree] = roller.rollout([TASK], "s", plans=2, executions=2)
    assert tree.groups("executor") == []
    assert [len(g) for g in tree.groups("planner")] == [1]  # the plan that ran nothing
    assert "ConnectionError" in roller.failures[0]
    assert not any("unreachable" in p for p in source.prompts["executor"])
    set_advantages([tree], settings, Workers())
    assert training_samples([tree], "executor", settings, 9) == []


def test_a_tools_refusal_is_what_the_next_prompt_shows(tokens: Tokens) -> None:
    source = Scripted(tokens, [GOLD], [FIND_OSLO, BOOK_1])
    roller = Roller(source, _free(environment=f"{__name__}:refusing"))
    [tree] = roller.rollout([TASK], "s", plans=1, executions=1)
    assert "closed today" in source.prompts["executor"][1]
    assert not roller.failures
    assert len(tree.groups("executor")) == 2


# --- flat forms ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["low_only", "single_level"])
def test_flat_forms_sample_one_text_per_request_against_all_calls(
    tokens: Tokens, form: str
) -> None:
    settings = small_settings(model={"form": form}, arm=form)
    assert TASK.plan is not None
    calls = [ToolCall("find", {"city": "Oslo"}), ToolCall("book", {"id": "$var1.id$"})]
    right = execution_text(calls) if form == "low_only" else single_text(TASK.plan, calls)
    source = Scripted(tokens, [], [right, FIND_OSLO])
    [tree] = Roller(source, settings).rollout([TASK], "s", plans=3, executions=2)
    [node] = tree.plans
    [sub] = node.nodes
    assert source.prompts["planner"] == [] and len(source.prompts["executor"]) == 1
    assert node.sample is None and tree.groups("planner") == []
    assert [len(g) for g in tree.groups("executor")] == [6]
    # the reference took the value that the first call returned
    assert sub.calls[0] == (calls[0], ToolCall("book", {"id": 1}))
    assert sub.rewards[0].total == 2.5
    assert sub.rewards[1].total < 2.5
    assert learners(settings, 0) == ("executor",)


# --- whom to credit ------------------------------------------------------------------------------


def test_advantages_compare_within_a_task_and_within_a_sub_task(tokens: Tokens) -> None:
    texts = [execution_text([ToolCall("find", {"city": c})]) for c in ("Oslo", "Rome")]
    [tree], _, settings = _roll(tokens, [GOLD, "nonsense"], texts)
    counts = set_advantages([tree], settings, Workers())
    plans = [p.sample.advantage for p in tree.plans if p.sample is not None]
    assert plans == pytest.approx([1, -1], abs=1e-4)
    right, wrong = tree.plans[0].nodes[0].samples
    assert (right.advantage, wrong.advantage) == pytest.approx((1, -1), abs=1e-4)
    assert counts["executor/zero_variance_groups"] == 1.0  # both are equally wrong for `book`
    assert not any(s.in_signal_group for s in tree.plans[0].nodes[1].samples)


def test_broadcast_gives_every_executor_token_its_plans_advantage(tokens: Tokens) -> None:
    settings = small_settings(arm="broadcast")
    assert TASK.plan is not None
    longer = Plan((*TASK.plan.sub_tasks, SubTask("again", "find", {"city": "Oslo"})))
    [tree], _, _ = _roll(tokens, [GOLD, plan_text(longer)], [FIND_OSLO, BOOK_1], settings)
    set_advantages([tree], settings, Workers())
    for plan in tree.plans:
        assert plan.sample is not None
        advantages = {s.advantage for n in plan.nodes for s in n.samples}
        assert advantages == {plan.sample.advantage}
    # sub-tasks without a gold step learn too: they are part of what the plan earned
    assert len(training_samples([tree], "executor", settings, 9)) == 2 * 2 + 3 * 2


def test_shuffled_credit_pays_for_the_other_tasks_executions(tokens: Tokens) -> None:
    settings = small_settings(arm="shuffled_credit")
    tasks = (TASK, small_task(2))  # the script's calls are right for the first task only
    trees, _, _ = _roll(tokens, [GOLD] * 2, [FIND_OSLO] * 2, settings, tasks)
    mine, other = (t.plans[0].reward for t in trees)
    assert mine is not None and other is not None and mine.execution > other.execution
    shuffle_credit(trees, settings)
    for tree, execution in zip(trees, (other.execution, mine.execution), strict=True):
        node = tree.plans[0]
        assert node.reward is not None and node.sample is not None
        assert node.reward.execution == execution
        assert node.sample.reward == node.reward.total


def test_a_plan_outside_the_grammar_earns_nothing_by_shuffling(tokens: Tokens) -> None:
    settings = small_settings(arm="shuffled_credit")
    trees, _, _ = _roll(
        tokens, [GOLD, "nonsense"], [FIND_OSLO] * 2, settings, (TASK, small_task(4))
    )
    shuffle_credit(trees, settings)
    assert [t.plans[1].sample.reward for t in trees if t.plans[1].sample] == [0.0, 0.0]


def test_task_success_reaches_the_executor_where_it_is_weighted(tokens: Tokens) -> None:
    settings = small_settings(rewards={"w_task": 1.0})
    # sample 0 does both sub-tasks wrong or right by turns: only `find` is ever right here
    [tree], _, _ = _roll(tokens, [GOLD] * 2, [FIND_OSLO, BOOK_1], settings)
    find, book = tree.plans[0].nodes
    assert [r.success for r in find.rewards] == [0.0, 0.0]  # rows (find, find) and (book, book)
    recombined = small_settings(rewards={"w_task": 1.0}, recombine=True)
    [tree], _, _ = _roll(tokens, [GOLD] * 2, [FIND_OSLO, BOOK_1], recombined)
    find, book = tree.plans[0].nodes
    # find is right in sample 0, book in sample 1: the pairing (0, 1) succeeds
    assert [r.success for r in find.rewards] == [0.5, 0.0]
    assert [r.success for r in book.rewards] == [0.0, 0.5]
    assert tree.plans[0].reward is not None
    assert tree.plans[0].reward.success == 0.25


def test_outcomes_count_by_gold_tool(tokens: Tokens) -> None:
    [tree], _, _ = _roll(tokens, [GOLD, "nonsense"], [FIND_OSLO, BOOK_1])
    assert outcomes([tree]) == {"find": (1.0, 1.0), "book": (1.0, 1.0)}


# --- dynamic sampling, arms ----------------------------------------------------------------------


def test_a_dynamic_role_trains_on_the_first_trees_with_signal(tokens: Tokens) -> None:
    settings = small_settings(planner={"dynamic_sampling": True, "max_tokens": 24})
    tasks = (TASK, small_task(4), small_task(2))
    trees, _, _ = _roll(tokens, [GOLD, "nonsense"], [FIND_OSLO] * 2, settings, tasks)
    flat = _roll(tokens, [GOLD, GOLD], [FIND_OSLO] * 2, settings)[0]
    every = [flat[0], *trees]
    set_advantages(every, settings, Workers())
    assert signal_trees(every, "planner") == trees
    chosen = training_samples(every, "planner", settings, limit=2)
    assert len(chosen) == 4
    assert {id(s) for s in chosen} == {id(p.sample) for t in trees[:2] for p in t.plans}


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("joint", [("planner", "executor")] * 4),
        ("broadcast", [("planner", "executor")] * 4),
        ("shuffled_credit", [("planner", "executor")] * 4),
        ("freeze_low", [("planner",)] * 4),
        ("freeze_high", [("executor",)] * 4),
        ("alternate_k", [("planner",), ("planner",), ("executor",), ("executor",)]),
    ],
)
def test_who_learns_when(arm: str, expected: list[Any]) -> None:
    settings = small_settings(arm=arm, alternate_every=2)
    assert [learners(settings, step) for step in range(4)] == expected


def test_tools_of_the_small_task_are_what_the_prompts_show(tokens: Tokens) -> None:
    _, source, _ = _roll(tokens, [GOLD] * 2, [FIND_OSLO] * 2)
    for text in (source.prompts["planner"][0], source.prompts["executor"][0]):
        assert FIND.name in text and BOOK.name in text
