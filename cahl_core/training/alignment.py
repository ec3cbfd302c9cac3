"""Alignment metrics (method, section 7): does the planner propose what the executor can carry out?

Validity, solved, valid and redundant calls are those of `call_metrics`, taken over whole runs:
run g of a plan is execution g of each of its sub-tasks. Every plan counts the same in
``solved_share``, however many executions it has. In the arms without a planner the metrics of plans
are absent. A metric without observations is absent too, never NaN.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from cahl_core.call_metrics import call_counts, is_solved, plan_is_valid, redundant_calls
from cahl_core.datasets.targets import resolved_gold
from cahl_core.protocol.parsing import Execution, ParseFailure
from cahl_core.records import Plan
from cahl_core.training.credit import solved
from cahl_core.training.tree import PlanNode, SubTaskNode, Tree

MIN_TOOLS = 3  # with two, a rank correlation is 1 or -1 whatever happened
PREFIX = "alignment/"


def alignment_metrics(trees: Sequence[Tree]) -> dict[str, float]:
    """``alignment/…`` metrics of rollout trees, for any arm.

    Returns:
        plan_validity: share of plans that parse and name only tools of the request.
        mean_sub_tasks: per parsed plan.
        plan_adherence: share of executions whose calls all name the planned tool (at least one
            call; none where the sub-task names no tool).
        sub_task_solve_rate: share of executions with a known gold step that made exactly its calls.
        tool_frequency_spearman: over tools, how often plans name one against the executor's solve
            rate on sub-tasks that name it; absent below three tools or when one side is constant.
        solved_share: mean over plans of the share of solved runs.
        calls_per_solved_task: calls made per solved run.
        invalid_call_rate: of calls attempted; redundant_call_rate: of calls made.
    """
    plans = [(tree, n) for tree in trees for n in tree.plans if not (n.sample and n.sample.void)]
    written = [(tree, node) for tree, node in plans if node.sample is not None]
    nodes = [sub for _, node in plans for sub in node.nodes]
    found = {
        "plan_validity": _mean(plan_is_valid(node.plan, t.task.tools) for t, node in written),
        "mean_sub_tasks": _mean(
            len(node.plan.sub_tasks) for _, node in written if isinstance(node.plan, Plan)
        ),
        "plan_adherence": _mean(
            adheres(sub, g) for _, node in written for sub in node.nodes for g in _judged(sub)
        ),
        "sub_task_solve_rate": _mean(solved for sub in nodes for solved in sub_task_solves(sub)),
        "tool_frequency_spearman": _spearman([node for _, node in written]),
        **_run_metrics(plans),
    }
    return {PREFIX + key: value for key, value in found.items() if value is not None}


def adheres(node: SubTaskNode, g: int) -> bool:
    """Whether execution ``g`` uses the planned tool and no other, or none where none is planned."""
    if isinstance(node.executions[g], ParseFailure):
        return False
    names = {call.name for call in node.calls[g]}
    return names == ({node.sub_task.tool} if node.sub_task.tool is not None else set())


def sub_task_solves(node: SubTaskNode) -> list[bool]:
    """For each execution whether it made exactly the calls due; empty where no gold step is known."""
    judged = zip(solved(node), node.samples, strict=True) if node.gold is not None else ()
    return [right for right, sample in judged if not sample.void]


def _judged(node: SubTaskNode) -> list[int]:
    """Numbers of the executions that were sampled and that nothing voided."""
    return [g for g, sample in enumerate(node.samples) if not sample.void]


@dataclass(frozen=True, slots=True)
class _Run:
    """One pass over a plan, by the definitions of `call_metrics`."""

    calls: int
    attempted: int
    valid: int
    redundant: int
    solved: bool


def _run_metrics(plans: Iterable[tuple[Tree, PlanNode]]) -> dict[str, float | None]:
    by_plan = [_runs(tree, node) for tree, node in plans]
    runs = [run for group in by_plan for run in group]
    made, attempted = sum(r.calls for r in runs), sum(r.attempted for r in runs)
    valid, redundant = sum(r.valid for r in runs), sum(r.redundant for r in runs)
    shares = (_mean(run.solved for run in group) for group in by_plan)
    return {
        "solved_share": _mean(share for share in shares if share is not None),
        "calls_per_solved_task": _mean(run.calls for run in runs if run.solved),
        "invalid_call_rate": 1 - valid / attempted if attempted else None,
        "redundant_call_rate": redundant / made if made else None,
    }


def _runs(tree: Tree, node: PlanNode) -> list[_Run]:
    gold, tools = resolved_gold(tree.task), tree.task.tools
    sound = node.sample is None or plan_is_valid(node.plan, tools)
    runs = []
    for executions in _passes(node):
        calls = [c for e in executions if isinstance(e, Execution) for c in e.calls]
        valid, attempted = call_counts(executions, tools)
        broken = attempted - len(calls)
        solved = sound and not broken and is_solved(calls, gold)
        runs.append(_Run(len(calls), attempted, valid, redundant_calls(calls, gold), solved))
    return runs


def _passes(node: PlanNode) -> Iterator[list[Execution | ParseFailure]]:
    """The executions of each run, calls with their references replaced.

    A plan without sub-tasks has one empty run. What was not sampled for its length made no call; in
    the flat arms a void sample is no run (with a planner, a broken environment voids the plan).
    """
    nodes = [sub for sub in node.nodes if sub.samples]
    for g in range(max((len(sub.samples) for sub in nodes), default=1)):
        ran = [sub for sub in nodes if not sub.samples[g].void]
        if ran or node.sample is not None:
            yield [_execution(sub, g) for sub in ran]


def _execution(node: SubTaskNode, g: int) -> Execution | ParseFailure:
    execution = node.executions[g]
    if isinstance(execution, ParseFailure):
        return execution
    return replace(execution, calls=tuple(node.calls[g]))


def _spearman(nodes: Sequence[PlanNode]) -> float | None:
    """Rank correlation of how often a tool is planned with the executor's solve rate on it."""
    planned: Counter[str] = Counter()
    solves: dict[str, list[bool]] = defaultdict(list)
    for node in nodes:
        if isinstance(node.plan, Plan):
            planned.update(s.tool for s in node.plan.sub_tasks if s.tool is not None)
        for sub in node.nodes:
            if sub.sub_task.tool is not None:
                solves[sub.sub_task.tool] += sub_task_solves(sub)
    tools = sorted(tool for tool, seen in solves.items() if seen)
    frequency = [planned[tool] for tool in tools]
    rates = [sum(solves[tool]) / len(solves[tool]) for tool in tools]
    if len(tools) < MIN_TOOLS or len(set(frequency)) < 2 or len(set(rates)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(frequency, rates).statistic)


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
