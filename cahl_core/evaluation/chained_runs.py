"""What a model is asked for a task of chained calls, and who answers its calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cahl_core.datasets.plans import plan_from_gold
from cahl_core.datasets.targets import gold_feedback
from cahl_core.environments.base import (
    BrokenEnvironmentError,
    Environment,
    replay,
    resolved_call,
    run_calls,
)
from cahl_core.errors import EvaluationError
from cahl_core.records import Plan, SubTask, ToolCall, ToolTask
from cahl_core.serving.results import Request
from cahl_core.train_config import Form


@dataclass(slots=True)
class RecordedResults:
    """What a run's calls return; one object per run, it remembers what the run has seen.

    In the hierarchical form ``$varN`` is the result of sub-task N, in one text that of its N-th call.
    """

    task: ToolTask
    form: Form
    environment: Environment = replay
    seen: dict[int, Any] = field(default_factory=dict)

    def __call__(self, plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        """The result of the sub-task's calls; in the flat forms a list with one result per call.

        Raises:
            EvaluationError: the environment failed, other than by refusing the call.
        """
        if self.form != "hierarchical":
            results: list[Any] = []
            for call in calls:
                results.append(self._run([resolved_call(call, self.task, results)]))
            return results
        before = [self.seen.get(n) for n in range(number)]
        self.seen[number] = self._run([resolved_call(c, self.task, before) for c in calls])
        return self.seen[number]

    def _run(self, calls: Sequence[ToolCall]) -> Any:
        try:
            return run_calls(self.environment, self.task, calls)
        except BrokenEnvironmentError as error:
            raise EvaluationError(
                f"the environment failed: {error}",
                "this is no score of the model; correct the environment and run the command again, "
                "finished items are kept",
            ) from error


def planned(task: ToolTask) -> ToolTask:
    """The task with the plan whose sub-tasks the executor is given: one with a tool per gold call.

    Its own plan where that names the gold calls' tools in their order, else the one made by rule
    (`datasets.plans`).
    """
    own = [s.tool for s in task.plan.sub_tasks if s.tool is not None] if task.plan else []
    if task.plan is not None and own == [c.name for c in task.calls]:
        return task
    return replace(task, plan=plan_from_gold(task))


def forced_sub_task(task: ToolTask, number: int) -> SubTask:
    """The gold plan's sub-task for gold call ``number``, counted from 0."""
    assert task.plan is not None
    return [s for s in task.plan.sub_tasks if s.tool is not None][number]


def forced_request(task: ToolTask, number: int, seed: str) -> Request:
    """Gold call ``number`` (from 0) asked for alone, after the gold calls before it."""
    return Request(
        task.messages,
        task.tools,
        seed=f"{seed}/forced/{number}",
        plan=Plan((forced_sub_task(task, number),)),
        feedback=tuple(gold_feedback(task, number)),
    )
