"""One rollout tree as a JSON record (`schema.TraceRecord`), with what each argument was judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from cahl_core.config import Settings
from cahl_core.datasets.targets import resolved_gold
from cahl_core.explain import explain_execution, explain_plan
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, ToolCall, ToolTask
from cahl_core.traces.schema import (
    VERSION,
    CallTrace,
    FailureTrace,
    PlanSampleTrace,
    PlanTrace,
    SampledTrace,
    SampleTrace,
    SubTaskTrace,
    TaskTrace,
    TraceRecord,
)

if TYPE_CHECKING:
    from cahl_core.rewards import ExecutorReward, PlannerReward
    from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree


def trace_record(
    tree: Tree, step: int, settings: Settings, tokenizer: Any | None = None
) -> dict[str, Any]:
    """One tree as a `TraceRecord` of JSON values only; it never fails for what a model wrote.

    Args:
        step: training step, from 0.
        tokenizer: decodes the prompts into the record; ``None`` leaves them out (they are most of
            a record's length).
    """
    first = next((p.sample for p in tree.plans if p.sample is not None), None)
    record: TraceRecord = {
        "version": VERSION,
        "arm": settings.train.arm,
        "seed": settings.seed,
        "step": step,
        "task": _task(tree.task),
        "weights": settings.train.rewards.model_dump(mode="json"),
        "prompt": _decoded(first, tokenizer),
        "plans": [_plan(node, tree.task, settings, tokenizer) for node in tree.plans],
    }
    return cast(dict[str, Any], plain_json(record))


def _task(task: ToolTask) -> TaskTrace:
    return {
        "id": task.id,
        "source": task.source,
        "messages": [m.to_json() for m in task.messages],
        "tools": [t.name for t in task.tools],
        "gold": _calls(task.calls),
        "resolved": _calls(resolved_gold(task)),
    }


def _plan(node: PlanNode, task: ToolTask, settings: Settings, tokenizer: Any | None) -> PlanTrace:
    return {
        "sample": _plan_sample(node, task, settings),
        "plan": node.plan.to_json() if isinstance(node.plan, Plan) else None,
        "sub_tasks": [_sub_task(sub, task, settings, tokenizer) for sub in node.nodes],
    }


def _plan_sample(node: PlanNode, task: ToolTask, settings: Settings) -> PlanSampleTrace | None:
    if node.sample is None:
        return None
    breakdown: Any = None
    if isinstance(node.plan, Plan):
        weights, gold = settings.train.rewards, resolved_gold(task)
        made = _made(node, node.plan)
        breakdown = explain_plan(node.plan, task.calls, made, weights, gold).to_json()
    return {**_sampled(node.sample, _failure(node.plan), node.reward), "breakdown": breakdown}


def _made(node: PlanNode, plan: Plan) -> list[list[tuple[ToolCall, ...]]]:
    """``[G_l][sub-task]`` calls, none of sub-tasks that were not executed; one run without any."""
    runs = max((len(sub.calls) for sub in node.nodes), default=1)
    missing: list[tuple[ToolCall, ...]] = [()] * (len(plan.sub_tasks) - len(node.nodes))
    return [[*(sub.calls[g] for sub in node.nodes), *missing] for g in range(runs)]


def _sub_task(
    node: SubTaskNode, task: ToolTask, settings: Settings, tokenizer: Any | None
) -> SubTaskTrace:
    first = node.samples[0] if node.samples else None
    return {
        "task": node.sub_task.task,
        "tool": node.sub_task.tool,
        "arguments": node.sub_task.arguments,
        "column": node.column,
        "gold": None if node.gold is None else _calls(node.gold),
        "prompt": _decoded(first, tokenizer),
        "samples": [_sample(node, g, task, settings) for g in range(len(node.samples))],
    }


def _sample(node: SubTaskNode, g: int, task: ToolTask, settings: Settings) -> SampleTrace:
    execution = node.executions[g]
    reward = node.rewards[g] if node.rewards else None
    breakdown: Any = None
    if node.gold is not None:
        rules = settings.train.rewards.values
        judged = explain_execution(
            _resolved(execution, node.calls[g]), node.gold, task.tools, rules
        )
        breakdown = [verdict.to_json() for verdict in judged]
    return {
        **_sampled(node.samples[g], _failure(execution), reward),
        "breakdown": breakdown,
        "calls": _calls(node.calls[g]),
        "response": execution.response if isinstance(execution, Execution) else None,
        "result": node.results[g] if node.results else None,
    }


def _resolved(
    execution: Execution | ParseFailure, calls: Sequence[ToolCall]
) -> Execution | ParseFailure:
    return replace(execution, calls=tuple(calls)) if isinstance(execution, Execution) else execution


def _sampled(
    sample: Sample, failure: FailureTrace | None, reward: ExecutorReward | PlannerReward | None
) -> SampledTrace:
    done = sample.completion
    record: SampledTrace = {
        "text": done.text,
        "prompt_tokens": len(sample.prompt),
        "tokens": len(done.token_ids),
        "finished": done.finished,
        "failure": failure,
        "reward": sample.reward,
        "advantage": sample.advantage,
        "in_signal": sample.in_signal_group,
        "void": sample.void,
        "parts": None if reward is None else reward.to_json(),
    }
    if done.version is not None:
        record["version"] = done.version
    return record


def _failure(parsed: object) -> FailureTrace | None:
    if isinstance(parsed, ParseFailure):
        return {"reason": parsed.reason, "position": parsed.position}
    return None


def _calls(calls: Sequence[ToolCall]) -> list[CallTrace]:
    return [{"name": call.name, "arguments": call.arguments} for call in calls]


def _decoded(sample: Sample | None, tokenizer: Any | None) -> str | None:
    if sample is None or tokenizer is None:
        return None
    return str(tokenizer.decode(sample.prompt))


def plain_json(value: Any) -> Any:
    """``value`` with what JSON cannot hold as text: an environment may return anything.

    >>> plain_json({"a": (float("nan"), {1})})
    {'a': ['nan', '{1}']}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    return str(value)
