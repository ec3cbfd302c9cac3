"""Where a reward comes from: a verdict per call and argument that adds up to the reward's parts.

For traces and reports; training never calls this. Every verdict is a JSON object of the form

    {"name": tool called or planned | null, "due": gold tool | null, "number": gold call from 0 | null,
     "valid": fits its schema | null, "note": text,
     "arguments": [{"name", "made", "due", "verdict": equal | differs | missing | extra, "at": path}]}
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from cahl_core.call_schema import schema_fault
from cahl_core.canonical import EXACT, canonical, equal, paths
from cahl_core.matching import (
    Gold,
    align_plan,
    as_steps,
    assign,
    grouped_like,
    key_match,
    value_match,
)
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan, SubTask, ToolCall, ToolSpec
from cahl_core.rewards import comparable, stands_in, step_alignment
from cahl_core.success import Executions, sub_task_success
from cahl_core.train_config import RewardSettings, ValueSettings

Verdict = Literal["equal", "differs", "missing", "extra"]


@dataclass(frozen=True, slots=True)
class ArgumentVerdict:
    """One argument (of a plan: one leaf value); ``at`` is where a plan holds it, if not under ``name``."""

    name: str
    made: Any
    due: Any
    verdict: Verdict
    at: str | None = None


@dataclass(frozen=True, slots=True)
class CallVerdict:
    """One call made and the gold call it was compared with; either may be missing."""

    name: str | None
    due: str | None
    number: int | None
    valid: bool | None
    note: str
    arguments: tuple[ArgumentVerdict, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def explain_execution(
    execution: Execution | ParseFailure,
    gold: Sequence[ToolCall],
    tools: Sequence[ToolSpec],
    rules: ValueSettings = EXACT,
) -> list[CallVerdict]:
    """The calls in the order they were made, then the gold calls that were not; none of a failure.

    R_syn is the share of valid calls; R_sem follows from names and verdicts, since calls are matched as
    in `semantic_reward`.

    >>> tool = ToolSpec("f", "", {"type": "object", "properties": {"a": {"type": "integer"}}})
    >>> made = Execution((ToolCall("f", {"a": "1"}),))
    >>> [call] = explain_execution(made, [ToolCall("f", {"a": 1})], [tool])
    >>> call.arguments[0].verdict, call.note
    ('differs', "argument 'a': '1' is not of type 'integer'")
    """
    if isinstance(execution, ParseFailure):
        return []
    pairs = _matched(execution.calls, gold, rules)
    out = []
    for i, call in enumerate(execution.calls):
        fault, j = schema_fault(call, tools), pairs.get(i)
        due = None if j is None else gold[j]
        judged = _arguments(call.arguments, due.arguments if due else {}, rules)
        name = None if due is None else due.name
        out.append(CallVerdict(call.name, name, j, fault is None, fault or "", judged))
    met = set(pairs.values())
    return out + [_missing(call, j) for j, call in enumerate(gold) if j not in met]


def _matched(
    calls: Sequence[ToolCall], gold: Sequence[ToolCall], rules: ValueSettings
) -> dict[int, int]:
    """The best assignment, then what is left of the same tool; only calls of one tool are paired."""
    if not calls or not gold:
        return {}
    scores = [[key_match(c, g) + value_match(c, g, rules) for g in gold] for c in calls]
    pairs = {i: j for i, j in assign(np.array(scores)) if calls[i].name == gold[j].name}
    free = [j for j in range(len(gold)) if j not in pairs.values()]
    for i in (i for i in range(len(calls)) if i not in pairs):
        j = next((j for j in free if gold[j].name == calls[i].name), None)
        if j is not None:
            pairs[i] = j
            free.remove(j)
    return pairs


def _arguments(
    made: dict[str, Any], due: dict[str, Any], rules: ValueSettings
) -> tuple[ArgumentVerdict, ...]:
    names = [*made, *(name for name in due if name not in made)]
    return tuple(
        ArgumentVerdict(n, made.get(n), due.get(n), _verdict(n, made, due, rules)) for n in names
    )


def _verdict(name: str, made: dict[str, Any], due: dict[str, Any], rules: ValueSettings) -> Verdict:
    if name not in due:
        return "extra"
    if name not in made:
        return "missing"
    return "equal" if equal(made[name], due[name], rules) else "differs"


def _missing(call: ToolCall, number: int) -> CallVerdict:
    judged = tuple(ArgumentVerdict(n, None, v, "missing") for n, v in call.arguments.items())
    return CallVerdict(None, call.name, number, None, "", judged)


# --- plans ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StepVerdict:
    """What one execution did for one gold step: which sub-tasks stood for it, and their R_sem."""

    step: int
    sub_tasks: tuple[int, ...]
    semantics: float


@dataclass(frozen=True, slots=True)
class PlanBreakdown:
    """Where R_h comes from.

    Attributes:
        calls: a verdict per sub-task, with every leaf of its gold call, then the gold calls that no
            sub-task stands for. Of all gold leaves, the share that is ``equal`` is R_param.
        steps: ``[G_l][gold steps]``; their mean ``semantics`` less the cost of extras is R_exe.
        extra: sub-tasks beyond the gold calls.
        covered: whether every gold call has a sub-task.
        succeeded: ``[G_l]`` whether each execution did exactly what was due.
    """

    calls: tuple[CallVerdict, ...]
    steps: tuple[tuple[StepVerdict, ...], ...]
    extra: int
    covered: bool
    succeeded: tuple[bool, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def explain_plan(
    plan: Plan | ParseFailure,
    gold: Gold,
    executions: Executions,
    weights: RewardSettings,
    resolved: Gold | None = None,
) -> PlanBreakdown:
    """The breakdown of `planner_reward` for the same arguments; empty for a failure."""
    if isinstance(plan, ParseFailure):
        return PlanBreakdown((), (), 0, False, ())
    steps, rules = as_steps(gold), weights.values
    targets = steps if resolved is None else grouped_like(steps, resolved)
    calls = [call for step in steps for call in step]
    covered, own = sub_task_success(plan, executions, steps, targets, rules)
    rows = [[row[g] for row in own] for g in range(len(executions))]
    return PlanBreakdown(
        tuple(_plan_verdicts(plan, calls, align_plan(plan, steps, rules), weights)),
        tuple(_step_verdicts(made, targets, rules) for made in executions),
        max(0, len(plan.sub_tasks) - max(len(calls), 1)),
        bool(covered),
        tuple(bool(covered) and all(row) for row in rows),
    )


def _step_verdicts(
    made: Sequence[Sequence[ToolCall]], steps: Sequence[Sequence[ToolCall]], rules: ValueSettings
) -> tuple[StepVerdict, ...]:
    met = {step: (tuple(ks), score) for ks, step, score in step_alignment(made, steps, rules)}
    return tuple(StepVerdict(j, *met.get(j, ((), 0.0))) for j in range(len(steps)))


def _plan_verdicts(
    plan: Plan, calls: Sequence[ToolCall], aligned: Sequence[int | None], weights: RewardSettings
) -> list[CallVerdict]:
    text = canonical(plan.to_json(), weights.values) if weights.param_match == "substring" else None
    unmet = [(SubTask("", None), j) for j in range(len(calls)) if j not in aligned]
    out = []
    for sub_task, column in [*zip(plan.sub_tasks, aligned, strict=True), *unmet]:
        due = None if column is None else calls[column]
        judged = _leaves(sub_task, due, aligned, text, weights.values)
        name = None if due is None else due.name
        out.append(CallVerdict(sub_task.tool, name, column, None, "", judged))
    return out


def _leaves(
    sub_task: SubTask,
    due: ToolCall | None,
    aligned: Sequence[int | None],
    text: str | None,
    rules: ValueSettings,
) -> tuple[ArgumentVerdict, ...]:
    """Every gold leaf, found or not, then the planned leaves that stand for none."""
    planned, wanted = _paths(sub_task.arguments), _paths(due.arguments if due else {})
    places = _places(planned, wanted, aligned, rules)
    free = [k for k in range(len(planned)) if k not in places.values()]
    out = []
    for i, (path, value) in enumerate(wanted):
        own = places.get(i)
        found = own is not None if text is None else stands_in(value, text, rules)
        k = next((k for k in free if planned[k][0] == path), None) if own is None else own
        if k is None or (own is None and found):
            at = "text" if found else None
            out.append(ArgumentVerdict(path, None, value, "equal" if found else "missing", at))
            continue
        if own is None:
            free.remove(k)
        there, made = planned[k]
        at = there if there != path else None
        out.append(ArgumentVerdict(path, made, value, "equal" if found else "differs", at))
    return *out, *(ArgumentVerdict(*planned[k], None, "extra") for k in free)


def _places(
    planned: Sequence[tuple[str, Any]],
    wanted: Sequence[tuple[str, Any]],
    aligned: Sequence[int | None],
    rules: ValueSettings,
) -> dict[int, int]:
    """Which planned leaf is each gold leaf's, each used once; one of the same path before others."""
    mine = [next(comparable({"": value}, rules, aligned), None) for _, value in planned]
    places: dict[int, int] = {}
    for same_path in (True, False):
        for i, (path, value) in enumerate(wanted):
            key = next(comparable({"": value}, rules))
            for k, (there, _) in enumerate(planned):
                fits = mine[k] == key and (there == path or not same_path)
                if fits and i not in places and k not in places.values():
                    places[i] = k
    return places


def _paths(arguments: dict[str, Any]) -> list[tuple[str, Any]]:
    return list(paths(arguments)) if arguments else []
