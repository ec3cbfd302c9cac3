"""Hierarchical rollouts: task → G_h plans → sub-tasks → G_l executions, with rewards and advantages.

Histories are teacher-forced: a sub-task that stands for gold call j sees the recorded results of the
gold calls before j, so all samples of a (plan, sub-task) share one prompt and are comparable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cahl_core.advantages import group_advantages, zero_variance
from cahl_core.config import Settings
from cahl_core.datasets.references import resolve
from cahl_core.datasets.targets import gold_feedback, resolved_gold
from cahl_core.policy.engine import Completion, Engine
from cahl_core.protocol.parsing import ParseFailure, parse_execution, parse_plan
from cahl_core.protocol.prompts import EXECUTION_STOP, PLAN_STOP, executor_prompt, planner_prompt
from cahl_core.records import Plan, ToolCall, ToolTask
from cahl_core.rewards import align_plan, executor_reward, planner_reward
from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree


class Roller:
    """Samples rollout trees with the current adapters."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine = engine
        self.settings = settings
        self.tokenizer = engine.policy.tokenizer
        self.rendering = settings.model.tool_rendering

    def rollout(
        self,
        tasks: Sequence[ToolTask],
        seed: str,
        *,
        plans: int,
        executions: int,
        greedy: bool = False,
    ) -> list[Tree]:
        """One tree per task, rewarded; advantages are not yet set.

        Args:
            seed: with the task's id, role and indices it determines every draw.
        """
        trees = self._plan(tasks, seed, plans, greedy)
        self._execute(trees, seed, executions, greedy)
        for tree in trees:
            score(tree, self.settings, executions)
        return trees

    def _plan(self, tasks: Sequence[ToolTask], seed: str, count: int, greedy: bool) -> list[Tree]:
        role = self.settings.train.planner
        prompts = [
            planner_prompt(self.tokenizer, t.messages, t.tools, self.rendering) for t in tasks
        ]
        sampled = self.engine.generate(
            prompts,
            "planner",
            samples=count,
            max_tokens=role.max_tokens,
            temperature=0.0 if greedy else role.temperature,
            seeds=[f"{seed}/{t.id}/planner" for t in tasks],
            stop=PLAN_STOP,
        )
        return [
            Tree(task, [PlanNode(Sample(prompt, c), _parsed_plan(c)) for c in completions])
            for task, prompt, completions in zip(tasks, prompts, sampled, strict=True)
        ]

    def _execute(self, trees: Sequence[Tree], seed: str, count: int, greedy: bool) -> None:
        role = self.settings.train.executor
        limit = self.settings.model.max_context - role.max_tokens
        jobs: list[tuple[str, SubTaskNode, list[int]]] = []
        for tree in trees:
            for i, node in enumerate(tree.plans):
                pairs = self._nodes(tree.task, node.plan)
                node.nodes = [sub for sub, _ in pairs]
                for k, (sub, prompt) in enumerate(pairs):
                    # what cannot be executed for its length leaves the group, not the plan's account
                    if len(prompt) > limit:
                        sub.gold = None
                        sub.calls = [()] * count
                    else:
                        jobs.append((f"{seed}/{tree.task.id}/executor/{i}/{k}", sub, prompt))
        sampled = self.engine.generate(
            [prompt for _, _, prompt in jobs],
            "executor",
            samples=count,
            max_tokens=role.max_tokens,
            temperature=0.0 if greedy else role.temperature,
            seeds=[name for name, _, _ in jobs],
            stop=EXECUTION_STOP,
        )
        for (_, sub, prompt), completions in zip(jobs, sampled, strict=True):
            sub.samples = [Sample(prompt, c) for c in completions]

    def _nodes(
        self, task: ToolTask, plan: Plan | ParseFailure
    ) -> list[tuple[SubTaskNode, list[int]]]:
        if isinstance(plan, ParseFailure):
            return []
        gold = resolved_gold(task)
        nodes = []
        reached = 0  # gold calls known to be behind us
        sub_tasks = plan.sub_tasks[: self.settings.train.max_sub_tasks]
        for sub_task, column in zip(sub_tasks, align_plan(plan, task.calls), strict=False):
            if column is not None:
                reached = column
            feedback = gold_feedback(task, reached)
            prompt = executor_prompt(self.tokenizer, sub_task, task.tools, feedback, self.rendering)
            wanted: tuple[ToolCall, ...] | None = None if column is None else (gold[column],)
            if sub_task.tool is None:
                wanted = ()
            nodes.append((SubTaskNode(sub_task, wanted, column), prompt))
            if column is not None:
                reached = column + 1
        return nodes


def score(tree: Tree, settings: Settings, executions: int) -> None:
    """Sets the rewards of every sample of the tree."""
    task, weights = tree.task, settings.train.rewards
    gold = resolved_gold(task)
    for node in tree.plans:
        for sub in node.nodes:
            if sub.samples:
                _score_executions(sub, task, settings)
        # sub-tasks beyond train.max_sub_tasks were not executed, but they are part of the plan
        unexecuted = [()] * (_size(node.plan) - len(node.nodes))
        made = [[*(s.calls[g] for s in node.nodes), *unexecuted] for g in range(executions)]
        node.reward = planner_reward(node.plan, task.calls, made, weights, gold)
        assert node.sample is not None
        node.sample.reward = node.reward.total


def _score_executions(sub: SubTaskNode, task: ToolTask, settings: Settings) -> None:
    sub.calls, sub.rewards = [], []
    for sample in sub.samples:
        execution = parse_execution(sample.completion.text)
        if not isinstance(execution, ParseFailure):
            execution = replace(execution, calls=tuple(_resolved(c, task) for c in execution.calls))
        sub.calls.append(() if isinstance(execution, ParseFailure) else execution.calls)
        if sub.gold is not None:
            reward = executor_reward(execution, sub.gold, task.tools, settings.train.rewards)
            sub.rewards.append(reward)
            sample.reward = reward.total


def _resolved(call: ToolCall, task: ToolTask) -> ToolCall:
    """The call as an environment would run it: references replaced by recorded results."""
    spec = next((t for t in task.tools if t.name == call.name), None)
    arguments = resolve(call, task.results, spec.parameters if spec else {})
    return call if arguments is None else ToolCall(call.name, arguments)


def _size(plan: Plan | ParseFailure) -> int:
    return 0 if isinstance(plan, ParseFailure) else len(plan.sub_tasks)


def _parsed_plan(completion: Completion) -> Plan | ParseFailure:
    return parse_plan(completion.text)


def set_advantages(trees: Sequence[Tree], settings: Settings) -> dict[str, float]:
    """Sets group-relative advantages per role; returns counts of groups for the log."""
    counts: dict[str, float] = {}
    for role in ("planner", "executor"):
        kind = getattr(settings.train, role).advantage
        groups = [g for tree in trees for g in tree.groups(role) if g]
        flat = 0
        for group in groups:
            rewards = [s.reward for s in group]
            signal = not zero_variance(rewards)
            flat += not signal
            for sample, advantage in zip(group, group_advantages(rewards, kind), strict=True):
                sample.advantage, sample.in_signal_group = float(advantage), signal
        counts[f"{role}/groups"] = float(len(groups))
        counts[f"{role}/zero_variance_groups"] = float(flat)
    return counts
