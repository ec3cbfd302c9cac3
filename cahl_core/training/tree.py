"""A rollout tree: task → G_h plans → sub-tasks → G_l executions, with rewards and advantages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cahl_core.policy.engine import Completion
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, SubTask, ToolCall, ToolTask
from cahl_core.rewards import ExecutorReward, PlannerReward


@dataclass(slots=True)
class Sample:
    """One completion with what training needs: token ids are kept from sampling to loss.

    ``void`` marks a rollout that the infrastructure broke: it is in no group and no loss.
    """

    prompt: list[int]
    completion: Completion
    reward: float = 0.0
    advantage: float = 0.0
    in_signal_group: bool = False
    void: bool = False


@dataclass(slots=True)
class SubTaskNode:
    """A (plan, sub-task) and its G_l samples; the lists are parallel to ``samples``.

    Attributes:
        gold: the calls that are due, references resolved; ``None`` where no gold step corresponds
            (such samples count for the planner only).
        column: number of the gold call from 0, or ``None``.
        executions: what each sample was parsed to.
        calls: its calls with references replaced by results; empty where nothing was sampled.
        results: what the environment returned (``free_running`` only).
        rewards: of the samples, where ``gold`` is known.
    """

    sub_task: SubTask
    gold: tuple[ToolCall, ...] | None
    column: int | None = None
    samples: list[Sample] = field(default_factory=list)
    executions: list[Execution | ParseFailure] = field(default_factory=list)
    calls: list[tuple[ToolCall, ...]] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    rewards: list[ExecutorReward] = field(default_factory=list)


@dataclass(slots=True)
class PlanNode:
    """One plan and the sub-tasks that were executed.

    ``sample`` is ``None`` where no planner wrote it: in the ``low_only`` and ``single_level`` arms
    the whole request is the only sub-task.
    """

    sample: Sample | None
    plan: Plan | ParseFailure
    nodes: list[SubTaskNode] = field(default_factory=list)
    reward: PlannerReward | None = None


@dataclass(slots=True)
class Tree:
    """All rollouts of one task."""

    task: ToolTask
    plans: list[PlanNode]

    def groups(self, role: str) -> list[list[Sample]]:
        """The samples compared with one another: per task for plans, per sub-task for executions."""
        if role == "planner":
            plans = [p.sample for p in self.plans if p.sample is not None]
            groups = [[s for s in plans if not s.void]]
        else:
            nodes = [n for p in self.plans for n in p.nodes if n.gold is not None]
            groups = [[s for s in node.samples if not s.void] for node in nodes]
        return [group for group in groups if group]
