"""Rewards of planner and executor: pure functions, every part in [0, 1] before weighting.

After CAHL (arXiv 2606.09371), R_h = R_param + R_exe and R_l = R_form + R_syn + R_sem; what the paper
leaves open is decided in docs/method.md. Gold is given as steps of parallel calls, or as calls, each
a step of its own. ``cahl_core/explain.py`` says of one reward where it comes from.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cahl_core.call_schema import fits_schema
from cahl_core.canonical import EXACT, canonical, equal, leaves
from cahl_core.datasets.references import REFERENCE
from cahl_core.matching import (
    Gold,
    align,
    align_plan,
    as_steps,
    assign,
    grouped_like,
    key_match,
    segments,
    value_match,
)
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, ToolCall, ToolSpec
from cahl_core.success import (
    Executions,
    executor_success,
    mean_success,
    sub_task_success,
    task_success,
)
from cahl_core.train_config import RewardSettings, ValueSettings

__all__ = [
    "ExecutorReward", "PlannerReward", "align", "align_plan", "canonical", "equal", "execution_reward",
    "executor_reward", "executor_success", "fits_schema", "leaves", "parameter_reward", "planner_reward",
    "planner_total", "semantic_reward", "sub_task_success", "syntax_reward", "task_success",
]  # fmt: skip


# --- executor ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExecutorReward:
    """Parts of R_l for one completion; ``success`` is the task's, as the caller credits it."""

    form: float
    syntax: float
    semantics: float
    success: float
    total: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def executor_reward(
    execution: Execution | ParseFailure,
    gold: Sequence[ToolCall],
    tools: Sequence[ToolSpec],
    weights: RewardSettings,
    success: float = 0.0,
) -> ExecutorReward:
    """R_l = w_form R_form + [R_form = 1] (w_syn R_syn + w_sem R_sem + w_task success).

    Args:
        gold: the calls that are due, references resolved.
        success: of the task, in [0, 1] (`executor_success`).

    >>> gold = [ToolCall("f", {"a": 1})]
    >>> tool = ToolSpec("f", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
    >>> executor_reward(Execution((ToolCall("f", {"a": 1}),)), gold, [tool], RewardSettings()).total
    2.5
    """
    if isinstance(execution, ParseFailure):
        return ExecutorReward(0.0, 0.0, 0.0, 0.0, 0.0)
    syntax = syntax_reward(execution.calls, gold, tools)
    semantics = semantic_reward(execution.calls, gold, weights.values)
    total = weights.w_form + weights.w_syn * syntax + weights.w_sem * semantics
    return ExecutorReward(1.0, syntax, semantics, success, total + weights.w_task * success)


def syntax_reward(
    calls: Sequence[ToolCall], gold: Sequence[ToolCall], tools: Sequence[ToolSpec]
) -> float:
    """R_syn: share of the emitted calls that fit their tool's schema.

    Without any call it is 1 if none was due, else 0: answering in words must not earn it.
    """
    if not calls:
        return 0.0 if gold else 1.0
    return sum(fits_schema(c, tools) for c in calls) / len(calls)


def semantic_reward(
    calls: Sequence[ToolCall], gold: Sequence[ToolCall], rules: ValueSettings = EXACT
) -> float:
    """R_sem: mean of tool-name IoU, argument-name Jaccard and exact-value match.

    The last two are taken over the best assignment of calls to gold calls of the same tool and
    divided by the larger number of calls, so missing and superfluous calls both cost.

    >>> gold = [ToolCall("f", {"a": 1, "b": 2})]
    >>> round(semantic_reward([ToolCall("f", {"a": 1, "b": 3})], gold), 3)  # (1 + 1 + 1/2) / 3
    0.833
    """
    if not calls or not gold:
        return float(len(calls) == len(gold))
    if len(calls) == len(gold) == 1:
        if calls[0].name != gold[0].name:
            return 0.0
        return (1.0 + key_match(calls[0], gold[0]) + value_match(calls[0], gold[0], rules)) / 3
    names, gold_names = Counter(c.name for c in calls), Counter(c.name for c in gold)
    overlap = (names & gold_names).total() / (names | gold_names).total()
    scores = np.array([[key_match(c, g) + value_match(c, g, rules) for g in gold] for c in calls])
    matched = sum(float(scores[i, j]) for i, j in assign(scores))
    return (overlap + matched / max(len(calls), len(gold))) / 3


# --- planner -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannerReward:
    """Parts of R_h for one plan; ``execution`` and ``success`` are means over the executor's samples."""

    form: float
    parameters: float
    execution: float
    success: float
    total: float

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def planner_reward(
    plan: Plan | ParseFailure,
    gold: Gold,
    executions: Executions,
    weights: RewardSettings,
    resolved: Gold | None = None,
    *,
    recombine: bool = False,
) -> PlannerReward:
    """R_h = [plan parses] (w_param R_param + w_exe mean_g R_exe(g) + w_success success).

    Args:
        gold: steps or calls in order, references as the record has them.
        executions: ``[G_l][sub-task]`` lists of calls made; empty when the plan has no sub-task.
        resolved: the gold with references resolved, which executions are compared with, in the form
            of ``gold`` or as calls in order; ``None`` takes ``gold``.
        recombine: success over all pairings of the sub-tasks' samples instead of the G_l sampled ones.
    """
    if isinstance(plan, ParseFailure):
        return PlannerReward(0.0, 0.0, 0.0, 0.0, 0.0)
    steps = as_steps(gold)
    targets = steps if resolved is None else grouped_like(steps, resolved)
    parameters = parameter_reward(plan, steps, weights.param_match, weights.values)
    idle = float(not steps and not plan.calls_tools)
    scores = [
        execution_reward(made, targets, weights.c_extra, weights.values) for made in executions
    ]
    execution, success = idle, idle
    if executions:
        execution = sum(scores) / len(scores)
        covered, own = sub_task_success(plan, executions, steps, targets, weights.values)
        success = mean_success(covered, own, len(executions), recombine)
    total = planner_total(1.0, parameters, execution, success, weights)
    return PlannerReward(1.0, parameters, execution, success, total)


def planner_total(
    form: float, parameters: float, execution: float, success: float, weights: RewardSettings
) -> float:
    """R_h from its parts.

    >>> planner_total(1.0, 0.5, 1.0, 0.0, RewardSettings(w_param=1.0, w_exe=1.5))
    2.0
    """
    earned = weights.w_param * parameters + weights.w_exe * execution + weights.w_success * success
    return earned if form == 1.0 else 0.0


def execution_reward(
    calls: Sequence[Sequence[ToolCall]], gold: Gold, c_extra: float, rules: ValueSettings = EXACT
) -> float:
    """R_exe of one execution: mean R_sem over the gold steps, less ``c_extra`` per extra sub-task.

    Sub-tasks are aligned with steps in order. A step of several calls may be shared by as many
    neighbouring sub-tasks as it has calls; their calls are judged together. Sub-tasks beyond the number
    of gold calls are extra.

    Args:
        calls: what the executor called for each sub-task, in plan order.

    >>> f, g = ToolCall("f", {}), ToolCall("g", {})
    >>> execution_reward([[f], [g]], [f, g], 0.1), execution_reward([[g], [f]], [f, g], 0.1)
    (1.0, 0.5)
    >>> execution_reward([[g], [f]], [[f, g]], 0.1), execution_reward([[g, f]], [[f, g]], 0.1)
    (1.0, 1.0)
    """
    steps = as_steps(gold)
    # where no call is due, one sub-task that answers in words is no extra one
    extra = c_extra * max(0, len(calls) - max(sum(map(len, steps)), 1))
    if not steps:
        return max(0.0, float(not any(calls)) - extra)
    total = sum(score for _, _, score in step_alignment(calls, steps, rules))
    return max(0.0, total / len(steps) - extra)


def step_alignment(
    calls: Sequence[Sequence[ToolCall]], steps: Sequence[Sequence[ToolCall]], rules: ValueSettings
) -> list[tuple[list[int], int, float]]:
    """The alignment behind R_exe: (sub-tasks, step, R_sem) of each met step."""
    made = [k for k, some in enumerate(calls) if some]

    def score(start: int, stop: int, step: int) -> float:
        together = [call for k in made[start:stop] for call in calls[k]]
        return semantic_reward(together, steps[step], rules)

    found = segments(len(made), [len(step) for step in steps], score)
    return [(made[f.start : f.stop], f.column, f.score) for f in found]


def parameter_reward(plan: Plan, gold: Gold, match: str, rules: ValueSettings = EXACT) -> float:
    """R_param: share of the gold calls' leaf values that the plan holds.

    ``strict`` looks in the structured arguments of the sub-task aligned with that call, each planned
    value counting once; ``substring`` (the paper's) looks anywhere in the plan's text. A reference
    counts when its path matches and its number names the sub-task aligned with the same gold call.
    """
    steps = as_steps(gold)
    calls = [call for step in steps for call in step]
    if not calls:
        return float(not plan.calls_tools)
    if match == "substring":
        text = canonical(plan.to_json(), rules)
        wanted = [value for call in calls for value in _argument_leaves(call.arguments)]
        total, found = len(wanted), sum(stands_in(value, text, rules) for value in wanted)
    else:
        aligned = align_plan(plan, steps, rules)
        gold_values = [Counter(comparable(call.arguments, rules)) for call in calls]
        total, found = sum(v.total() for v in gold_values), 0
        for sub_task, column in zip(plan.sub_tasks, aligned, strict=True):
            if column is not None:
                planned = Counter(comparable(sub_task.arguments, rules, aligned))
                found += (planned & gold_values[column]).total()
    if not total:  # calls without arguments: naming the tools is all there is
        return sum(a is not None for a in align_plan(plan, steps, rules)) / len(calls)
    return found / total


def comparable(
    arguments: dict[str, Any], rules: ValueSettings, aligned: Sequence[int | None] | None = None
) -> Iterator[str]:
    """The leaf values of arguments as canonical text, references in one form.

    Args:
        aligned: for a sub-task's arguments, the plan's alignment: sub-task numbers in references
            become those of gold calls. A value that refers to anything else gives nothing.
    """
    for value in _argument_leaves(arguments):
        if not isinstance(value, str) or REFERENCE.search(value) is None:
            yield canonical(value, rules)
        elif (text := _renumbered(value, aligned)) is not None:
            yield canonical(text)  # paths are exact, whatever the rules


def _argument_leaves(arguments: dict[str, Any]) -> Iterator[Any]:
    return leaves(arguments) if arguments else iter(())


def _renumbered(text: str, aligned: Sequence[int | None] | None) -> str | None:
    numbers = [m[1].lstrip("0") for m in REFERENCE.finditer(text)]
    if aligned is not None:  # as texts: a model may write a number of any length
        known = {str(i + 1): str(j + 1) for i, j in enumerate(aligned) if j is not None}
        if not all(number in known for number in numbers):
            return None
        numbers = [known[number] for number in numbers]
    following = iter(numbers)
    return REFERENCE.sub(lambda m: f"$var{next(following)}.{m[2] or ''}$", text)


def stands_in(value: Any, text: str, rules: ValueSettings) -> bool:
    """Whether a value stands in a canonical text, a text without its quotes."""
    wanted = canonical(value, rules)
    return (wanted[1:-1] if wanted.startswith('"') else wanted) in text
