"""Hierarchical rollouts: task → G_h plans → sub-tasks → G_l executions, with rewards.

``teacher_forced``: a sub-task that stands for gold call j sees the recorded results of the gold calls
before j, so all samples of a (plan, sub-task) share one prompt. ``free_running``: sample l of a plan's
sub-tasks is one run through the plan; it sees what its own calls returned in the environment.
In the flat forms (``low_only``, ``single_level``) the whole request is the only sub-task.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cahl_core.config import Settings
from cahl_core.datasets.targets import gold_feedback, resolved_gold
from cahl_core.environments.base import (
    BrokenEnvironmentError,
    load_environment,
    resolved_call,
    run_calls,
)
from cahl_core.errors import PromptTooLongError
from cahl_core.policy.engine import Completion
from cahl_core.policy.team import Source
from cahl_core.protocol.forms import flat_prompt, parse_flat, stops
from cahl_core.protocol.parsing import Execution, ParseFailure, parse_execution, parse_plan
from cahl_core.protocol.prompts import executor_prompt, planner_prompt
from cahl_core.records import Plan, SubTask, ToolCall, ToolTask
from cahl_core.rewards import align_plan
from cahl_core.roles import Role
from cahl_core.training.credit import score
from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree

TOO_LONG = ParseFailure("the prompt left no room for a completion", 0)


@dataclass(slots=True)
class _Run:
    """One free-running pass of sample ``number`` through a plan."""

    tree: Tree
    node: PlanNode
    name: str
    number: int
    history: list[tuple[SubTask, Any]] = field(default_factory=list)
    ended: bool = False


class Roller:
    """Samples rollout trees with the current weights of ``source``.

    ``failures`` collects what the environment could not answer; such runs are void.

    Raises:
        ConfigError: ``train.environment`` cannot be imported.
    """

    def __init__(self, source: Source, settings: Settings) -> None:
        self.source = source
        self.settings = settings
        self.form = settings.model.form
        self.tokenizer = source.policy.tokenizer
        self.rendering = settings.model.tool_rendering
        self.environment = load_environment(settings.train.environment)
        self.failures: list[str] = []

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
            seed: with the task's id (and how often it came before in ``tasks``), the role and the
                sample's indices it determines every draw.
        """
        names = _names(tasks, seed)
        if self.form != "hierarchical":
            trees = self._flat(tasks, names, plans * executions, greedy)
        else:
            trees = self._plan(tasks, names, plans, greedy)
            if self.settings.train.history == "free_running":
                self._free_running(trees, names, executions, greedy)
            else:
                self._teacher_forced(trees, names, executions, greedy)
        for tree in trees:
            _void_uncertain(tree)
            score(tree, self.settings, executions)
        return trees

    def _generate(
        self,
        role: Role,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[str],
        samples: int,
        greedy: bool,
    ) -> list[list[Completion]]:
        own = self.settings.train.planner if role == "planner" else self.settings.train.executor
        return self.source.generate(
            prompts,
            role,
            samples=samples,
            max_tokens=self.settings.max_tokens(role),
            temperature=0.0 if greedy else own.temperature,
            seeds=seeds,
            stop=stops(self.form, role),
            # a run's next sub-task repeats the tools and the results so far
            keep=role == "executor" and self.settings.train.history == "free_running",
        )

    def _plan(
        self, tasks: Sequence[ToolTask], names: Sequence[str], count: int, greedy: bool
    ) -> list[Tree]:
        prompts = [
            planner_prompt(self.tokenizer, t.messages, t.tools, self.rendering) for t in tasks
        ]
        self._require_room(tasks, prompts, "planner")
        seeds = [f"{name}/planner" for name in names]
        sampled = self._generate("planner", prompts, seeds, count, greedy)
        trees = []
        for task, prompt, completions in zip(tasks, prompts, sampled, strict=True):
            nodes = [
                PlanNode(Sample(prompt, c, void=c.void), parse_plan(c.text)) for c in completions
            ]
            for node in nodes:
                node.nodes = self._sub_tasks(task, node.plan)
            trees.append(Tree(task, nodes))
        return trees

    def _sub_tasks(self, task: ToolTask, plan: Plan | ParseFailure) -> list[SubTaskNode]:
        if isinstance(plan, ParseFailure):
            return []
        gold = resolved_gold(task)
        nodes = []
        rules = self.settings.train.rewards.values
        aligned = align_plan(plan, task.steps, rules)[: self.settings.train.max_sub_tasks]
        for sub_task, column in zip(plan.sub_tasks, aligned, strict=False):
            wanted: tuple[ToolCall, ...] | None = None if column is None else (gold[column],)
            if sub_task.tool is None:
                wanted = ()
            nodes.append(SubTaskNode(sub_task, wanted, column))
        return nodes

    # --- teacher-forced ---------------------------------------------------------------------------

    def _teacher_forced(
        self, trees: Sequence[Tree], names: Sequence[str], count: int, greedy: bool
    ) -> None:
        jobs: list[tuple[SubTaskNode, ToolTask, list[int], str]] = []
        for tree, name in zip(trees, names, strict=True):
            for i, node in enumerate(tree.plans):
                for k, (sub, prompt) in enumerate(self._gold_prompts(tree.task, node)):
                    if self._fits(prompt):
                        jobs.append((sub, tree.task, prompt, f"{name}/executor/{i}/{k}"))
                    else:
                        # what cannot be executed leaves the group, not the plan's account
                        sub.gold, sub.calls = None, [()] * count
        sampled = self._generate(
            "executor", [j[2] for j in jobs], [j[3] for j in jobs], count, greedy
        )
        for (sub, task, prompt, _), completions in zip(jobs, sampled, strict=True):
            sub.samples = [Sample(prompt, c, void=c.void) for c in completions]
            for completion in completions:
                self._record(sub, task, parse_execution(completion.text), task.results)

    def _gold_prompts(self, task: ToolTask, node: PlanNode) -> list[tuple[SubTaskNode, list[int]]]:
        reached = 0  # gold calls known to be behind us
        prompts = []
        for sub in node.nodes:
            reached = reached if sub.column is None else sub.column
            prompts.append((sub, self._prompt(sub, task, gold_feedback(task, reached))))
            reached += sub.column is not None
        return prompts

    # --- free-running -----------------------------------------------------------------------------

    def _free_running(
        self, trees: Sequence[Tree], names: Sequence[str], count: int, greedy: bool
    ) -> None:
        runs = [
            _Run(tree, node, f"{name}/executor/{i}", number)
            for tree, name in zip(trees, names, strict=True)
            for i, node in enumerate(tree.plans)
            for number in range(count)
        ]
        for k in range(max((len(r.node.nodes) for r in runs), default=0)):
            live = [r for r in runs if k < len(r.node.nodes)]
            prompts = [self._prompt(r.node.nodes[k], r.tree.task, r.history) for r in live]
            for run, prompt in zip(live, prompts, strict=True):
                run.ended |= not self._fits(prompt)
            asked = [i for i, r in enumerate(live) if not r.ended]
            seeds = [f"{live[i].name}/{k}/{live[i].number}" for i in asked]
            done = self._generate("executor", [prompts[i] for i in asked], seeds, 1, greedy)
            written = {i: completions[0] for i, completions in zip(asked, done, strict=True)}
            for i, run in enumerate(live):
                self._advance(run, run.node.nodes[k], prompts[i], written.get(i))

    def _advance(
        self, run: _Run, sub: SubTaskNode, prompt: list[int], completion: Completion | None
    ) -> None:
        """Adds what the run wrote at this sub-task, and what the environment made of it."""
        results = [result for _, result in run.history]
        if completion is None or completion.void:  # the run ends: this sample is in no group
            run.ended = True
            nothing = completion or Completion([], [], "", False)
            sub.samples.append(Sample(prompt, nothing, void=True))
            self._record(sub, run.tree.task, TOO_LONG, results)
            sub.results.append(None)
            return
        sub.samples.append(Sample(prompt, completion))
        self._record(sub, run.tree.task, parse_execution(completion.text), results)
        result = None
        try:
            result = run_calls(self.environment, run.tree.task, sub.calls[-1])
        except BrokenEnvironmentError as failure:
            self.failures.append(str(failure))
            run.ended = True
            void(run.node, run.number)
        sub.results.append(result)
        run.history.append((sub.sub_task, result))

    # --- flat forms -------------------------------------------------------------------------------

    def _flat(
        self, tasks: Sequence[ToolTask], names: Sequence[str], count: int, greedy: bool
    ) -> list[Tree]:
        prompts = [
            flat_prompt(self.form, self.tokenizer, t.messages, t.tools, self.rendering)
            for t in tasks
        ]
        self._require_room(tasks, prompts, "executor")
        seeds = [f"{name}/executor" for name in names]
        sampled = self._generate("executor", prompts, seeds, count, greedy)
        trees = []
        for task, prompt, completions in zip(tasks, prompts, sampled, strict=True):
            request = SubTask(task.messages[-1].content if task.messages else "", None, {})
            sub = SubTaskNode(request, tuple(resolved_gold(task)))
            sub.samples = [Sample(prompt, c, void=c.void) for c in completions]
            for number, completion in enumerate(completions):
                self._record_flat(sub, task, parse_flat(self.form, completion.text), number)
            trees.append(Tree(task, [PlanNode(None, Plan((request,)), [sub])]))
        return trees

    def _record_flat(
        self, sub: SubTaskNode, task: ToolTask, execution: Execution | ParseFailure, number: int
    ) -> None:
        """References of a text with several calls name the results of its own earlier calls."""
        results: list[Any] = []
        calls: list[ToolCall] = []
        for call in () if isinstance(execution, ParseFailure) else execution.calls:
            calls.append(resolved_call(call, task, results))
            try:
                results.append(run_calls(self.environment, task, calls[-1:]))
            except BrokenEnvironmentError as failure:
                sub.samples[number].void = True
                results.append(None)
                self.failures.append(str(failure))
        if isinstance(execution, Execution):
            execution = replace(execution, calls=tuple(calls))
        sub.executions.append(execution)
        sub.calls.append(tuple(calls))
        sub.results.append(results)

    # --- shared -----------------------------------------------------------------------------------

    def _prompt(self, sub: SubTaskNode, task: ToolTask, feedback: Any) -> list[int]:
        return executor_prompt(self.tokenizer, sub.sub_task, task.tools, feedback, self.rendering)

    def _require_room(
        self, tasks: Sequence[ToolTask], prompts: Sequence[Sequence[int]], role: Role
    ) -> None:
        """Raises PromptTooLongError where a task's own prompt leaves no room for a completion."""
        room, context = self.settings.max_tokens(role), self.settings.model.max_context
        for task, prompt in zip(tasks, prompts, strict=True):
            if len(prompt) + room > context:
                raise PromptTooLongError(
                    f"task {task.id}: its prompt has {len(prompt)} tokens; with {room} to generate "
                    f"that exceeds model.max_context={context}",
                    f"raise model.max_context to {len(prompt) + room}, or set "
                    f"prepare.max_prompt_tokens={context - room} and run `cahl prepare`",
                )

    def _fits(self, prompt: Sequence[int]) -> bool:
        return len(prompt) + self.settings.max_tokens("executor") <= self.settings.model.max_context

    def _record(
        self,
        sub: SubTaskNode,
        task: ToolTask,
        execution: Execution | ParseFailure,
        results: Sequence[Any],
    ) -> None:
        if isinstance(execution, Execution):
            calls = tuple(resolved_call(call, task, results) for call in execution.calls)
            execution = replace(execution, calls=calls)
        sub.executions.append(execution)
        sub.calls.append(() if isinstance(execution, ParseFailure) else execution.calls)


def void(node: PlanNode, number: int) -> None:
    """Takes run ``number`` of a plan, and the plan with it, out of all groups."""
    if node.sample is not None:
        node.sample.void = True
    for sub in node.nodes:
        for sample in sub.samples[number : number + 1]:
            sample.void = True


def _void_uncertain(tree: Tree) -> None:
    """A plan with an execution whose tokens are not known for certain is not judged by the others."""
    for node in tree.plans:
        executions = (s for sub in node.nodes for s in sub.samples)
        if node.sample is not None and any(s.completion.void for s in executions):
            node.sample.void = True


def _names(tasks: Sequence[ToolTask], seed: str) -> list[str]:
    """A name per task for its draws; the second time a task occurs it draws anew."""
    seen: Counter[str] = Counter()
    names = []
    for task in tasks:
        again = f"#{seen[task.id]}" if seen[task.id] else ""
        names.append(f"{seed}/{task.id}{again}")
        seen[task.id] += 1
    return names
