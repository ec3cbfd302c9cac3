"""Rewards of planner and executor: pure functions, every part in [0, 1] before weighting.

After CAHL (arXiv 2606.09371), R_h = R_param + R_exe and R_l = R_form + R_syn + R_sem; what the paper
leaves open is decided in docs/method.md. Gold calls are numbered from 1 in the order of the record,
one gold step per call.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cahl_core.config import RewardSettings
from cahl_core.datasets.references import whole_reference
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec


def canonical(value: Any) -> str:
    """Equal values give equal text: 5 = 5.0 (but not True), outer white space and key order ignored.

    >>> canonical({"b": 1.0, "a": " x "}) == canonical({"a": "x", "b": 1})
    True
    >>> canonical(True) == canonical(1)
    False
    """
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def leaves(value: Any) -> Iterator[Any]:
    """The scalar values inside a JSON value; an empty container counts as one leaf."""
    children: Sequence[Any] = ()
    if isinstance(value, Mapping):
        children = list(value.values())
    elif isinstance(value, list):
        children = value
    if not children:
        yield value
    for child in children:
        yield from leaves(child)


# --- executor ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ExecutorReward:
    """Parts of R_l for one completion."""

    form: float
    syntax: float
    semantics: float
    total: float


def executor_reward(
    execution: Execution | ParseFailure,
    gold: Sequence[ToolCall],
    tools: Sequence[ToolSpec],
    weights: RewardSettings,
) -> ExecutorReward:
    """R_l = w_form R_form + [R_form = 1] (w_syn R_syn + w_sem R_sem).

    >>> gold = [ToolCall("f", {"a": 1})]
    >>> tool = ToolSpec("f", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
    >>> executor_reward(Execution((ToolCall("f", {"a": 1}),)), gold, [tool], RewardSettings()).total
    2.5
    """
    if isinstance(execution, ParseFailure):
        return ExecutorReward(0.0, 0.0, 0.0, 0.0)
    syntax = syntax_reward(execution.calls, gold, tools)
    semantics = semantic_reward(execution.calls, gold)
    total = weights.w_form + weights.w_syn * syntax + weights.w_sem * semantics
    return ExecutorReward(1.0, syntax, semantics, total)


def syntax_reward(
    calls: Sequence[ToolCall], gold: Sequence[ToolCall], tools: Sequence[ToolSpec]
) -> float:
    """R_syn: share of the emitted calls that fit their tool's schema.

    Without any call it is 1 if none was due, else 0: answering in words must not earn it.
    """
    if not calls:
        return 0.0 if gold else 1.0
    return sum(fits_schema(c, tools) for c in calls) / len(calls)


def fits_schema(call: ToolCall, tools: Sequence[ToolSpec]) -> bool:
    """Known tool, no unknown argument, none missing, JSON types right (references have any type)."""
    spec = next((t for t in tools if t.name == call.name), None)
    if spec is None or set(call.arguments) - set(spec.properties):
        return False
    if set(spec.required) - set(call.arguments):
        return False
    concrete = {
        name: value
        for name, value in call.arguments.items()
        if all(whole_reference(leaf) is None for leaf in leaves(value))
    }
    schema = {"type": "object", "properties": spec.properties}
    return bool(_validator(json.dumps(schema, sort_keys=True))(concrete))


@lru_cache(maxsize=4096)
def _validator(schema: str) -> Callable[[Any], bool]:
    from jsonschema import Draft202012Validator
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    # an empty registry: a $ref in somebody's tool must not make us fetch what it points to
    validator = Draft202012Validator(json.loads(schema), registry=Registry())

    def fits(value: Any) -> bool:
        try:
            return bool(validator.is_valid(value))
        except Unresolvable:
            return False

    return fits


def semantic_reward(calls: Sequence[ToolCall], gold: Sequence[ToolCall]) -> float:
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
        return (1.0 + _key_match(calls[0], gold[0]) + _value_match(calls[0], gold[0])) / 3
    names, gold_names = Counter(c.name for c in calls), Counter(c.name for c in gold)
    overlap = (names & gold_names).total() / (names | gold_names).total()
    keys = np.array([[_key_match(c, g) for g in gold] for c in calls])
    values = np.array([[_value_match(c, g) for g in gold] for c in calls])
    rows, columns = _assign(keys + values)
    size = max(len(calls), len(gold))
    matched = keys[rows, columns].sum() / size, values[rows, columns].sum() / size
    return float((overlap + matched[0] + matched[1]) / 3)


def _assign(score: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if score.shape == (1, 1):
        return np.array([0]), np.array([0])
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(score, maximize=True)
    return rows, columns


def _key_match(call: ToolCall, gold: ToolCall) -> float:
    if call.name != gold.name:
        return 0.0
    union = set(call.arguments) | set(gold.arguments)
    return len(set(call.arguments) & set(gold.arguments)) / len(union) if union else 1.0


def _value_match(call: ToolCall, gold: ToolCall) -> float:
    if call.name != gold.name:
        return 0.0
    union = set(call.arguments) | set(gold.arguments)
    shared = set(call.arguments) & set(gold.arguments)
    equal = sum(canonical(call.arguments[k]) == canonical(gold.arguments[k]) for k in shared)
    return equal / len(union) if union else 1.0


# --- planner -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlannerReward:
    """Parts of R_h for one plan; ``execution`` is the mean over the executor's samples."""

    form: float
    parameters: float
    execution: float
    total: float


def planner_reward(
    plan: Plan | ParseFailure,
    gold: Sequence[ToolCall],
    executions: Sequence[Sequence[Sequence[ToolCall]]],
    weights: RewardSettings,
    resolved: Sequence[ToolCall] | None = None,
) -> PlannerReward:
    """R_h = [plan parses] (w_param R_param + w_exe mean_g R_exe(g)).

    Args:
        gold: the gold calls in order, references as the record has them.
        executions: ``[G_l][sub-task]`` lists of calls made; empty when the plan has no sub-task.
        resolved: the gold calls with references resolved, which executions are compared with;
            ``None`` takes ``gold``.
    """
    if isinstance(plan, ParseFailure):
        return PlannerReward(0.0, 0.0, 0.0, 0.0)
    parameters = parameter_reward(plan, gold, weights.param_match)
    target = gold if resolved is None else resolved
    scores = [execution_reward(calls, target, weights.c_extra) for calls in executions]
    execution = sum(scores) / len(scores) if scores else float(not gold and not plan.calls_tools)
    total = weights.w_param * parameters + weights.w_exe * execution
    return PlannerReward(1.0, parameters, execution, total)


def align(scores: NDArray[np.float64]) -> list[int | None]:
    """Order-preserving alignment of rows (sub-tasks) with columns (gold steps), by score sum.

    Args:
        scores: ``[sub-tasks, gold steps]``, non-negative; pairs that score 0 are never aligned.

    Returns:
        For each row its column, or ``None``.

    >>> align(np.array([[0.0, 1.0], [1.0, 0.0]]))  # crossing is not allowed: the first wins
    [1, None]
    """
    rows, columns = scores.shape
    best = np.zeros((rows + 1, columns + 1))
    for i in range(rows - 1, -1, -1):
        for j in range(columns - 1, -1, -1):
            best[i, j] = max(best[i + 1, j], best[i, j + 1], best[i + 1, j + 1] + scores[i, j])
    aligned: list[int | None] = [None] * rows
    i = j = 0
    while i < rows and j < columns:
        if scores[i, j] > 0 and best[i, j] == best[i + 1, j + 1] + scores[i, j]:
            aligned[i] = j
            i, j = i + 1, j + 1
        elif best[i, j] == best[i, j + 1]:
            j += 1
        else:
            i += 1
    return aligned


def align_plan(plan: Plan, gold: Sequence[ToolCall]) -> list[int | None]:
    """Which gold call each sub-task stands for: same tool, in order, most argument values in common."""
    scores = np.zeros((len(plan.sub_tasks), len(gold)))
    for i, sub_task in enumerate(plan.sub_tasks):
        for j, call in enumerate(gold):
            if sub_task.tool == call.name:
                planned = ToolCall(call.name, sub_task.arguments)
                scores[i, j] = 1.0 + _value_match(planned, call)
    return align(scores)


def execution_reward(
    calls: Sequence[Sequence[ToolCall]], gold: Sequence[ToolCall], c_extra: float
) -> float:
    """R_exe of one execution: mean R_sem over the gold steps, less ``c_extra`` per extra sub-task.

    Args:
        calls: what the executor called for each sub-task, in plan order.
    """
    # where no call is due, one sub-task that answers in words is no extra one
    extra = c_extra * max(0, len(calls) - max(len(gold), 1))
    if not gold:
        return max(0.0, float(not any(calls)) - extra)
    scores = np.array([[semantic_reward(made, [step]) for step in gold] for made in calls])
    if not len(calls):
        return 0.0
    total = sum(scores[i, j] for i, j in enumerate(align(scores)) if j is not None)
    return float(max(0.0, total / len(gold) - extra))


def parameter_reward(plan: Plan, gold: Sequence[ToolCall], match: str) -> float:
    """R_param: share of the gold calls' leaf values that the plan holds.

    ``strict`` looks in the structured arguments of the sub-task aligned with that call, each planned
    value counting once; ``substring`` (the paper's) looks anywhere in the plan's text. A reference
    counts when its path matches and its number names the sub-task aligned with the same gold call.
    """
    if not gold:
        return float(not plan.calls_tools)
    wanted = [[canonical(v) for v in leaves(c.arguments)] if c.arguments else [] for c in gold]
    aligned = align_plan(plan, gold)
    if match == "substring":
        text = json.dumps(plan.to_json(), ensure_ascii=False)
        found = sum(value.strip('"') in text for values in wanted for value in values)
    else:
        found = 0
        for sub_task, column in zip(plan.sub_tasks, aligned, strict=True):
            if column is not None and sub_task.arguments:
                planned = Counter(_planned_leaves(sub_task, aligned))
                found += (planned & Counter(wanted[column])).total()
    total = sum(map(len, wanted))
    if not total:  # calls without arguments: naming the tools is all there is
        return sum(a is not None for a in aligned) / len(gold)
    return found / total


def _planned_leaves(sub_task: SubTask, aligned: Sequence[int | None]) -> Iterator[str]:
    """Canonical leaf values, references renumbered from sub-tasks to gold calls."""
    for value in leaves(sub_task.arguments):
        reference = whole_reference(value)
        if reference is None:
            yield canonical(value)
            continue
        number, path = reference
        target = aligned[number - 1] if 0 < number <= len(aligned) else None
        if target is not None:
            yield canonical(f"$var{target + 1}.{path}$" if path else f"$var{target + 1}$")
