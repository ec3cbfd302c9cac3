"""Rewards and advantages of rollout trees, and which groups a step trains on."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cahl_core.advantages import batch_deviation, group_advantages, zero_variance
from cahl_core.config import Settings
from cahl_core.datasets.targets import resolved_gold
from cahl_core.matching import same_calls
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.records import Plan, ToolCall
from cahl_core.rewards import executor_reward, planner_reward
from cahl_core.roles import ROLES, Role
from cahl_core.success import executor_success
from cahl_core.training.distributed import Workers
from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree

Calls = tuple[ToolCall, ...]


def score(tree: Tree, settings: Settings, executions: int) -> None:
    """Sets the rewards of every sample of the tree (``executions`` = G_l)."""
    task, train = tree.task, settings.train
    gold = resolved_gold(task)
    for node in tree.plans:
        made = _made(node, executions)
        if node.sample is not None:
            node.reward = planner_reward(
                node.plan, task.steps, made, train.rewards, gold, recombine=train.recombine
            )
            node.sample.reward = node.reward.total
        success = _success(node, made, tree, settings)
        for k, sub in enumerate(node.nodes):
            _score_executions(sub, tree, settings, success[k] if success else None)


def _made(node: PlanNode, executions: int) -> list[list[Calls]]:
    """``[G_l][sub-task]`` calls; sub-tasks beyond train.max_sub_tasks were not executed."""
    planned = 0 if isinstance(node.plan, ParseFailure) else len(node.plan.sub_tasks)
    missing: list[Calls] = [()] * (planned - len(node.nodes))
    return [[*(s.calls[g] for s in node.nodes), *missing] for g in range(executions)]


def _success(
    node: PlanNode, made: list[list[Calls]], tree: Tree, settings: Settings
) -> list[list[float]] | None:
    """Task success as each executor sample is credited with it, where that is rewarded."""
    rules = settings.train.rewards.values
    if not settings.train.rewards.w_task or not isinstance(node.plan, Plan):
        return None
    if node.sample is None:  # flat: the sample's own calls are the whole task's
        (sub,) = node.nodes
        return [[float(same_calls(calls, sub.gold or (), rules)) for calls in sub.calls]]
    gold, resolved = tree.task.steps, resolved_gold(tree.task)
    return executor_success(node.plan, made, gold, settings.train.recombine, resolved, rules)


def _score_executions(
    sub: SubTaskNode, tree: Tree, settings: Settings, success: Sequence[float] | None
) -> None:
    sub.rewards = []
    if sub.gold is None:
        return
    for g, (sample, execution) in enumerate(zip(sub.samples, sub.executions, strict=True)):
        reward = executor_reward(
            execution,
            sub.gold,
            tree.task.tools,
            settings.train.rewards,
            success=success[g] if success else 0.0,
        )
        sub.rewards.append(reward)
        sample.reward = reward.total


def solved(sub: SubTaskNode) -> list[bool]:
    """Which samples met their gold exactly."""
    return [reward.semantics == 1.0 and reward.form == 1.0 for reward in sub.rewards]


# --- advantages ----------------------------------------------------------------------------------


def set_advantages(trees: Sequence[Tree], settings: Settings, workers: Workers) -> dict[str, float]:
    """Sets every sample's advantage within its group; returns counts of groups for the log.

    In the ``broadcast`` arm every executor sample takes its plan's advantage instead.
    """
    counts: dict[str, float] = {}
    for role in ROLES:
        groups = [g for tree in trees for g in tree.groups(role)]
        flat = _compare(groups, role, settings, workers)
        counts[f"{role}/groups"] = float(len(groups))
        counts[f"{role}/zero_variance_groups"] = float(flat)
    if settings.train.arm == "broadcast":
        for plan, sample in _executions(trees):
            sample.advantage, sample.in_signal_group = plan.advantage, plan.in_signal_group
    return counts


def _compare(
    groups: Sequence[Sequence[Sample]], role: Role, settings: Settings, workers: Workers
) -> int:
    """Sets the advantages of one role; returns how many groups carry no signal."""
    own = settings.train.planner if role == "planner" else settings.train.executor
    deviation = None
    if own.advantage == "batch_std":
        rewards = [s.reward for group in groups for s in group]
        squares = math.fsum(r * r for r in rewards)
        deviation = batch_deviation(*workers.sum([math.fsum(rewards), squares, len(rewards)]))
    flat = 0
    for group in groups:
        rewards = [s.reward for s in group]
        signal = not zero_variance(rewards)
        flat += not signal
        advantages = group_advantages(rewards, own.advantage, deviation)
        for sample, advantage in zip(group, advantages, strict=True):
            sample.advantage, sample.in_signal_group = float(advantage), signal
    return flat


def _executions(trees: Sequence[Tree]) -> Iterator[tuple[Sample, Sample]]:
    """Each executor sample with the sample of its plan."""
    for plan in (p for tree in trees for p in tree.plans if p.sample is not None):
        for sample in (s for n in plan.nodes for s in n.samples):
            yield plan.sample, sample  # type: ignore[misc]


# --- what a step trains on -----------------------------------------------------------------------


def signal_trees(trees: Sequence[Tree], role: Role) -> list[Tree]:
    """The trees with at least one group of the role that carries signal."""
    return [t for t in trees if any(s.in_signal_group for g in _all(t, role) for s in g)]


def training_samples(
    trees: Sequence[Tree], role: Role, settings: Settings, limit: int
) -> list[Sample]:
    """The completions that train a role.

    With ``dynamic_sampling`` those of the first ``limit`` trees that carry signal for it, so that a
    step which had to draw more tasks does not grow; without, those of all trees.
    """
    own = settings.train.planner if role == "planner" else settings.train.executor
    chosen = signal_trees(trees, role)[:limit] if own.dynamic_sampling else trees
    return [
        s
        for tree in chosen
        for group in _all(tree, role)
        for s in group
        if s.in_signal_group and not s.void and s.completion.token_ids
    ]


def _all(tree: Tree, role: Role) -> list[list[Sample]]:
    """Every group of the role, those whose sub-tasks have no gold step too (``broadcast``)."""
    if role == "planner":
        return tree.groups(role)
    return [node.samples for plan in tree.plans for node in plan.nodes]
