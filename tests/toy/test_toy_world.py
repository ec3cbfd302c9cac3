"""Arms in the toy world (docs/toy-world.md): training's own code, and a right plan that is known."""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import runs, world
from transformers import AutoTokenizer

from cahl_core.protocol.parsing import Execution, parse_execution, parse_plan
from cahl_core.records import Plan, SubTask, ToolCall
from cahl_core.rewards import planner_reward
from cahl_core.training.examples import examples

LAST = 10


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """The sizes here are too small for more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return runs.warm_start(tmp_path_factory.mktemp("start"), "hierarchical")


@pytest.fixture(scope="module")
def curve(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[float]]:
    """The rewards of an arm's steps."""

    def run(arm: str, **changes: Any) -> list[float]:
        out = tmp_path_factory.mktemp(arm)
        rows = runs.train(start, out, runs.settings(arm, 0, **changes))
        return [runs.earned(row, "hierarchical") for row in rows]

    return run


# --- the world itself ----------------------------------------------------------------------------


def _reward(call: ToolCall, goal: int) -> float:
    """What a plan of that tool earns for ``goal`` if the executor carries it out by ``call``."""
    weights = runs.settings("joint", 0).train.rewards
    plan = Plan((SubTask("do", call.name, {}),))
    return planner_reward(plan, [world.gold_call(goal)], [[[call]]], weights).total


def test_optimum_chance_and_ceiling_follow_from_the_rewards() -> None:
    goals = range(len(world.GOALS))
    gold = [world.gold_call(g) for g in goals]
    assert [_reward(gold[g], g) for g in goals] == [world.OPTIMUM] * len(world.GOALS)
    # whatever the tool, and with its right setting, a call that does not depend on the goal
    for call in gold:
        assert statistics.fmean(_reward(call, g) for g in goals) == pytest.approx(world.CHANCE)
    unset = [
        _reward(ToolCall(gold[g].name, {"set": setting}), g)
        for g in goals
        for setting in world.SETTINGS
    ]
    assert statistics.fmean(unset) == pytest.approx(world.FROZEN_EXECUTOR)
    assert world.FROZEN_EXECUTOR < 0.95 * world.OPTIMUM


def test_the_warm_start_says_nothing_about_the_goals() -> None:
    seen: dict[str, Counter[tuple[str, str]]] = {}
    for task in world.warm_start_tasks(2):
        call = task.calls[0]
        pairs = seen.setdefault(task.messages[0].content, Counter())
        pairs[call.name, call.arguments["set"]] += 1
    even = Counter(dict.fromkeys(itertools.product(world.TOOLS, world.SETTINGS), 2))
    assert seen == dict.fromkeys(world.GOALS, even)


def test_plans_and_calls_are_a_few_tokens_that_read_back(start: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(str(start / "data/backbone"))
    chosen = runs.settings("joint", 0)
    for task in world.goal_tasks():
        (plan,) = examples(tokenizer, task, "planner", chosen)
        (call,) = examples(tokenizer, task, "executor", chosen)
        assert (len(plan.target), len(call.target)) == (4, 6)  # with the end-of-turn token
        assert tokenizer.unk_token_id not in plan.prompt + plan.target + call.prompt + call.target
        assert parse_plan(tokenizer.decode(plan.target[:-1])) == task.plan
        execution = parse_execution(tokenizer.decode(call.target[:-1]))
        assert isinstance(execution, Execution)
        assert execution.calls == task.calls


# --- the arms ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_joint_gets_above_95_percent_of_the_optimum(curve: Callable[..., list[float]]) -> None:
    rewards = curve("joint")
    assert statistics.fmean(rewards[:3]) < world.CHANCE + 0.05
    assert statistics.fmean(rewards[-LAST:]) > 0.95 * world.OPTIMUM


@pytest.mark.slow
def test_shuffled_credit_stays_at_chance(curve: Callable[..., list[float]]) -> None:
    rewards = curve("shuffled_credit", steps=50)
    assert statistics.fmean(rewards) < world.CHANCE + 0.05
    assert statistics.fmean(rewards[-LAST:]) < world.CHANCE + 0.12


@pytest.mark.slow
def test_freeze_low_learns_to_plan_and_stays_below_what_its_executor_allows(
    curve: Callable[..., list[float]],
) -> None:
    rewards = curve("freeze_low", steps=70)
    windows = [statistics.fmean(rewards[i : i + LAST]) for i in range(len(rewards) - LAST)]
    assert windows[-1] > world.CHANCE + 0.2
    assert max(windows) < world.FROZEN_EXECUTOR + 0.02 < 0.95 * world.OPTIMUM
