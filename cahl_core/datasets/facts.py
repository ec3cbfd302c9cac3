"""What is known of a prepared task besides its text: one row of ``data/prepared/tasks.parquet``.

The expectations, the statistics and the curriculum read these rows and never the tasks themselves.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from cahl_core.config import RewardSettings
from cahl_core.datasets.prompts import Lengths
from cahl_core.datasets.references import dependencies
from cahl_core.datasets.targets import resolved_gold
from cahl_core.files import digest
from cahl_core.protocol.parsing import Execution, parse_execution, parse_plan
from cahl_core.protocol.prompts import execution_text, plan_text
from cahl_core.records import Plan, ToolCall, ToolTask
from cahl_core.rewards import executor_reward, planner_reward

COLUMNS = (
    "id", "source", "split", "kind", "weight", "request", "n_messages", "n_tools", "n_steps", "n_calls",
    "depth", "parallel", "n_references", "planner_tokens", "executor_tokens", "plan_tokens",
    "execution_tokens", "gold_tools", "offered_tools", "gold_tools_offered", "plan_is_gold",
    "targets_parse", "gold_planner_reward", "gold_executor_reward", "text_digest",
)  # fmt: skip


def kind(task: ToolTask) -> str:
    """``original``, or how the task was derived."""
    return str(task.meta.get("derivation", "original"))


def request(task: ToolTask) -> str:
    """The last text of the user."""
    return next((m.content for m in reversed(task.messages) if m.role == "user"), "")


def curriculum(task: ToolTask) -> dict[str, int]:
    """What makes a task hard before anything is known of the model: steps, depth, tools."""
    levels = task.meta.get("levels") or [0] * len(task.calls)
    return {
        "steps": len(task.steps),
        "depth": 1 + max(levels, default=-1),
        "tools": len(task.tools),
    }


def facts(task: ToolTask, lengths: Lengths) -> dict[str, Any]:
    """The row of one task, without its split."""
    levels = task.meta.get("levels") or [0] * len(task.calls)
    gold_tools = sorted({call.name for call in task.calls})
    offered = sorted({tool.name for tool in task.tools})
    shape = curriculum(task)
    planned, executed = gold_rewards(task, RewardSettings())
    return {
        "id": task.id,
        "source": task.source,
        "kind": kind(task),
        "weight": float(task.meta.get("weight", 1.0)),
        "request": request(task).strip() or None,
        "n_messages": len(task.messages),
        "n_tools": shape["tools"],
        "n_steps": shape["steps"],
        "n_calls": len(task.calls),
        "depth": shape["depth"],
        "parallel": max(Counter(levels).values(), default=0),
        "n_references": len(dependencies(task.calls)),
        "planner_tokens": lengths.planner,
        "executor_tokens": lengths.executor,
        "plan_tokens": lengths.plan,
        "execution_tokens": lengths.execution,
        "gold_tools": gold_tools,
        "offered_tools": offered,
        "gold_tools_offered": set(gold_tools) <= set(offered),
        "plan_is_gold": _plan_is_gold(task),
        "targets_parse": _targets_parse(task),
        "gold_planner_reward": planned,
        "gold_executor_reward": executed,
        "text_digest": digest([m.content for m in task.messages]),
    }


def gold_rewards(task: ToolTask, weights: RewardSettings) -> tuple[float, float]:
    """What gold plan and gold calls earn, as shares of the maximum: 1 unless gold cannot be met.

    Whether it is 1 does not depend on the weights, so preparation takes the default ones.
    """
    plan = task.plan or Plan(())
    gold = resolved_gold(task)
    remaining = iter(gold)
    made: list[list[ToolCall]] = [
        [] if sub_task.tool is None else [next(remaining, ToolCall("", {}))]
        for sub_task in plan.sub_tasks
    ]
    planned = planner_reward(plan, task.calls, [made], weights, gold).total
    earned = [
        executor_reward(Execution((call,)), [call], task.tools, weights).total for call in gold
    ]
    best_plan = weights.w_param + weights.w_exe
    best_call = weights.w_form + weights.w_syn + weights.w_sem
    executed = sum(earned) / len(earned) if earned else best_call
    return round(planned / best_plan, 6), round(executed / best_call, 6)


def _plan_is_gold(task: ToolTask) -> bool:
    """Whether the sub-tasks that call tools are the gold calls, in order."""
    planned = [] if task.plan is None else [s for s in task.plan.sub_tasks if s.tool is not None]
    gold = [(call.name, call.arguments) for call in task.calls]
    return task.plan is not None and [(s.tool, s.arguments) for s in planned] == gold


def _targets_parse(task: ToolTask) -> bool:
    plan = task.plan or Plan(())
    if parse_plan(plan_text(plan)) != plan:
        return False
    return all(
        parse_execution(execution_text([call])) == Execution((call,))
        for call in resolved_gold(task)
    )
