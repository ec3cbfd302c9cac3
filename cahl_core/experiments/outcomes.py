"""What a model does with one task, as counts from which every table entry can be recomputed.

A *run* is one plan with one execution of each of its sub-tasks; in the flat forms, one text. All arms
share ``reward``: R_sem of all the run's calls against all gold calls of the task, 0 where nothing
could be read. It needs no planner, so it compares arms of every form; the rewards of training are kept
beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cahl_core.call_metrics import call_counts, is_solved, plan_is_valid, redundant_calls
from cahl_core.canonical import EXACT
from cahl_core.config import Settings
from cahl_core.datasets.targets import resolved_gold
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import ToolTask
from cahl_core.rewards import semantic_reward
from cahl_core.serving.agent import AgentResult, StepResult
from cahl_core.train_config import ValueSettings
from cahl_core.training.alignment import adheres, sub_task_solves
from cahl_core.training.tree import PlanNode, SubTaskNode, Tree

# The JSON value of one run.
Outcome = dict[str, Any]


def runs_of(tree: Tree, rules: ValueSettings = EXACT) -> list[Outcome]:
    """One outcome per run of the tree, in the order of plans and samples.

    Args:
        rules: when two values are equal (``train.rewards.values``).
    """
    return [_outcome(tree, node, g, rules) for node in tree.plans for g in range(_width(node))]


def _width(node: PlanNode) -> int:
    """Runs of a plan: one where it has no sub-task that was executed."""
    return max([len(sub.executions) for sub in node.nodes] + [1])


def _outcome(tree: Tree, node: PlanNode, g: int, rules: ValueSettings) -> Outcome:
    task, gold = tree.task, resolved_gold(tree.task)
    steps = [_step(sub, g) for sub in node.nodes if sub.executions]
    result = AgentResult(steps=steps)
    calls = result.calls
    valid, attempted = call_counts([s.execution for s in result.steps], task.tools)
    planned = node.sample is not None
    sound = not planned or plan_is_valid(node.plan, task.tools)
    unread = isinstance(node.plan, ParseFailure) or (attempted > len(calls) and not calls)
    success = sound and attempted == len(calls) and is_solved(calls, gold)
    judged = [
        sub_task_solves(sub)[g] for sub in node.nodes if sub.gold is not None and sub.executions
    ]
    executed = [adheres(sub, g) for sub in node.nodes if planned and sub.executions]
    rewards = [sub.rewards[g].total for sub in node.nodes if sub.rewards]
    samples = [sub.samples[g] for sub in node.nodes if sub.samples]
    return {
        "task": task.id,
        "void": any(s.void for s in [*samples, *([node.sample] if node.sample else [])]),
        "runs": 1,
        "reward": 0.0 if unread else semantic_reward(calls, gold, rules),
        "success": int(success),
        "plans": int(planned),
        "plan_valid": int(planned and sound),
        "planner_reward": node.reward.total if planned and node.reward else 0.0,
        "executed": len(executed),
        "adherent": sum(executed),
        "sub_judged": len(judged),
        "sub_solved": sum(judged),
        "executor_rewards": len(rewards),
        "executor_reward": sum(rewards),
        "calls": len(calls),
        "solved_calls": len(calls) if success else 0,
        "attempted": attempted,
        "invalid": attempted - valid,
        "redundant": redundant_calls(calls, gold),
    }


def _step(node: SubTaskNode, g: int) -> StepResult:
    execution = node.executions[g]
    if isinstance(execution, Execution):  # with references replaced by what they stand for
        execution = replace(execution, calls=tuple(node.calls[g]))
    return StepResult(node.sub_task, node.samples[g].completion.text, execution)


def evaluate(
    source: Any, settings: Settings, tasks: Sequence[ToolTask], samples: int
) -> Iterator[Outcome]:
    """Greedy runs of all tasks, then ``samples`` sampled runs of each; ``mode`` says which.

    Args:
        source: what `training.rollout.Roller` samples from. Draws depend on the task and the sample's
            number alone, so all models are compared on the same random numbers.
    """
    from cahl_core.training.rollout import Roller

    roller = Roller(source, settings)
    for mode, count in (("greedy", 1), ("sampled", samples)):
        if not count:
            continue
        trees = roller.rollout(
            tasks, "experiment", plans=count, executions=1, greedy=mode == "greedy"
        )
        for tree in trees:
            for number, outcome in enumerate(runs_of(tree, settings.train.rewards.values)):
                yield {"mode": mode, "sample": number, **outcome}
