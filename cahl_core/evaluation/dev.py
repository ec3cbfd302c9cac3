"""The held-back tasks of the training data: rewards and efficiency of one agent.

Histories are teacher-forced as in training: a sub-task that stands for a gold call hands on that
call's recorded result, whatever the executor wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cahl_core.config import RewardSettings
from cahl_core.datasets.references import resolve
from cahl_core.errors import StageInputError
from cahl_core.evaluation.metrics import is_solved, redundant_calls
from cahl_core.files import read_jsonl
from cahl_core.records import Plan, ToolCall, ToolTask
from cahl_core.rewards import align_plan, execution_reward, executor_reward, parameter_reward
from cahl_core.serving.agent import AgentResult, Environment, Request


def load_tasks(path: Path, count: int) -> list[ToolTask]:
    """The first ``count`` tasks of a prepared file."""
    if not path.exists():
        raise StageInputError(f"{path} does not exist", "run: cahl prepare")
    tasks: list[ToolTask] = []
    for number, record in enumerate(read_jsonl(path), 1):
        if len(tasks) == count:
            break
        tasks.append(ToolTask.from_json(record, f"{path}:{number}"))
    return tasks


def dev_requests(tasks: Sequence[ToolTask]) -> list[Request]:
    """The requests of tasks, answered from the recorded results."""
    return [Request(t.messages, t.tools, replay(t), seed=t.id) for t in tasks]


def replay(task: ToolTask) -> Environment:
    """Gives each sub-task the recorded result of the gold call it stands for."""

    def environment(plan: Plan, number: int, calls: Sequence[ToolCall]) -> Any:
        column = align_plan(plan, task.calls)[number]
        return None if column is None else task.results[column]

    return environment


def resolved_gold(task: ToolTask) -> tuple[ToolCall, ...]:
    """The gold calls with recorded values for references; a call whose value is unknown stays."""
    schemas = {t.name: t.parameters for t in task.tools}
    calls = []
    for call in task.calls:
        arguments = resolve(call, task.results, schemas.get(call.name, {}))
        calls.append(call if arguments is None else ToolCall(call.name, arguments))
    return tuple(calls)


def task_rewards(
    task: ToolTask, result: AgentResult, weights: RewardSettings
) -> tuple[float, float | None]:
    """(R_h of the plan with this one execution, mean R_l over its executor texts).

    R_l is ``None`` where the executor was never asked.
    """
    plan, gold = result.plan, resolved_gold(task)
    if not isinstance(plan, Plan):
        return 0.0, None
    made = [getattr(step.execution, "calls", ()) for step in result.steps]
    execution = execution_reward(made, gold, weights.c_extra)
    parameters = parameter_reward(plan, task.calls, weights.param_match)
    planner = weights.w_param * parameters + weights.w_exe * execution
    aligned = align_plan(plan, task.calls)
    parts = [
        executor_reward(
            step.execution, [] if column is None else [gold[column]], task.tools, weights
        ).total
        for step, column in zip(result.steps, aligned, strict=False)
    ]
    return planner, _mean(parts)


def dev_summary(
    tasks: Sequence[ToolTask], results: Sequence[AgentResult], weights: RewardSettings
) -> dict[str, Any]:
    """Mean rewards of both roles, solved tasks, calls per solved task, redundant-call rate."""
    rewards = [task_rewards(t, r, weights) for t, r in zip(tasks, results, strict=True)]
    calls = [r.calls for r in results]
    gold = [resolved_gold(t) for t in tasks]
    solved = [
        r.outcome in ("calls", "abstained") and is_solved(c, g)
        for r, c, g in zip(results, calls, gold, strict=True)
    ]
    made = sum(map(len, calls))
    redundant = sum(redundant_calls(c, g) for c, g in zip(calls, gold, strict=True))
    return {
        "dev_n": len(tasks),
        "mean_reward": _mean([h for h, _ in rewards]) or 0.0,
        "mean_executor_reward": _mean([e for _, e in rewards if e is not None]),
        "solved": sum(solved),
        "calls_per_task": made / len(tasks) if tasks else None,
        "calls_per_solved_task": _mean(
            [float(len(c)) for c, ok in zip(calls, solved, strict=True) if ok]
        ),
        "redundant_call_rate": redundant / made if made else None,
    }


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
