"""A plan against the gold calls, part by part: tools, order, arguments, references, the graph.

Sub-tasks and gold calls are paired one to one, without regard to order: as many pairs of one tool as
there can be, and of these pairings the one with the fewest differences in arguments and references
(`plan_graph.edit`). A sub-task's references are then read as references to gold calls through the same
pairs, so that a plan with independent steps the other way round is the same plan. Sub-tasks without a
tool are no calls and are left out.

Reference paths are compared in the form of `chained_references.path_form`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cahl_core.canonical import EXACT, equal
from cahl_core.datasets.references import REFERENCE, resolve
from cahl_core.datasets.targets import resolved_gold
from cahl_core.evaluation.chained_references import (
    NOWHERE,
    Edge,
    depends,
    graph_of,
    plan_graph,
    reference_edges,
    references,
    renumbered,
)
from cahl_core.evaluation.plan_graph import Costs, edit, graph_distance
from cahl_core.explain import ArgumentVerdict, CallVerdict, Verdict
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.records import Plan, ToolCall, ToolTask
from cahl_core.train_config import ValueSettings

PLAN_SCORES = (
    "plan_tools_precision", "plan_tools_recall", "plan_tools_f1", "plan_order", "plan_sequence",
    "plan_arguments", "plan_references_precision", "plan_references_recall", "plan_references_f1",
    "plan_exact", "plan_distance", "plan_distance_exact",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pairs:
    """Which sub-task stands for which gold call.

    Attributes:
        sub_tasks: for each gold call the index of its sub-task in the plan, or ``None``.
        numbers: number of a sub-task (from 1, as references have it) → number of its gold call.
    """

    sub_tasks: tuple[int | None, ...]
    numbers: Mapping[int, int]


def plan_scores(
    plan: Plan | ParseFailure | None, task: ToolTask, rules: ValueSettings = EXACT
) -> dict[str, float | None]:
    """The parts of plan match, named `PLAN_SCORES`; ``None`` where there is nothing to judge.

    - ``plan_tools_precision``, ``_recall``, ``_f1``: of the multiset of tools named;
    - ``plan_order``: 1 if every paired sub-task stands after all that its gold call depends on,
      directly or through others; ``None`` without two such pairs;
    - ``plan_sequence``: 1 if the paired sub-tasks stand in the order of the gold steps (those of one
      step in any order); ``None`` without pairs of two steps;
    - ``plan_arguments``: share of the gold (call, argument) pairs that the paired sub-tasks give, as
      they are written or with recorded results in place of references;
    - ``plan_references_precision``, ``_recall``, ``_f1``: of (call, argument, from call, path);
    - ``plan_exact``: 1 if every gold call has its sub-task with exactly its arguments, no further
      sub-task names a tool, and the order is kept; where no call is due, if none is planned;
    - ``plan_distance``: edit distance of the dependency graphs, 0 to 1 (`plan_graph.graph_distance`;
      nodes are tools, an edge leads from a call to one that refers to it). ``plan_distance_exact`` is 0
      where it is only known to be at most that.

    A text that is no plan names nothing and is at distance 1.
    """
    if not isinstance(plan, Plan):
        return _nothing(task)
    pairs = pair(plan, task, rules)
    verdicts = plan_verdicts(plan, task, pairs, rules)
    gold_graph, graph = graph_of(task.calls), plan_graph(plan)
    distance = graph_distance(gold_graph, graph)
    tools = _overlap(Counter(graph.labels), Counter(gold_graph.labels))
    named = _overlap(_mapped(plan, pairs), reference_edges(task.calls))
    order = kept(depends(task.calls), pairs)
    given = [a.verdict == "equal" for v in verdicts for a in v.arguments if a.verdict != "extra"]
    whole = all(v.due is not None and v.name is not None for v in verdicts)
    exact = (
        whole and order != 0.0 and all(a.verdict == "equal" for v in verdicts for a in v.arguments)
    )
    arguments = sum(given) / len(given) if given else None
    values = (*tools, order, kept(_in_steps(task), pairs), arguments, *named)
    values = (*values, float(exact), distance.share, float(distance.exact))
    return dict(zip(PLAN_SCORES, values, strict=True))


def _nothing(task: ToolTask) -> dict[str, float | None]:
    scores: dict[str, float | None] = dict.fromkeys(PLAN_SCORES)
    scores |= {"plan_exact": 0.0, "plan_distance": 1.0, "plan_distance_exact": 1.0}
    if task.calls:
        scores |= {"plan_tools_recall": 0.0, "plan_tools_f1": 0.0}
    if any(c.arguments for c in task.calls):
        scores["plan_arguments"] = 0.0
    if reference_edges(task.calls):
        scores |= {"plan_references_recall": 0.0, "plan_references_f1": 0.0}
    return scores


# --- pairs ---------------------------------------------------------------------------------------


def pair(plan: Plan, task: ToolTask, rules: ValueSettings = EXACT) -> Pairs:
    """The pairing that the module describes; of equally good ones, one that keeps the order."""
    nodes = [i for i, s in enumerate(plan.sub_tasks) if s.tool is not None]
    if not nodes or not task.calls:
        return Pairs((None,) * len(task.calls), {})
    made = [ToolCall(str(plan.sub_tasks[i].tool), plan.sub_tasks[i].arguments) for i in nodes]
    first, second = graph_of(task.calls), plan_graph(plan)
    differences = np.array([[_differences(c, g, rules) for c in made] for g in task.calls])
    indel = 1 + first.size + second.size + int(differences.max(initial=0))
    other = np.array([[c.name != g.name for c in made] for g in task.calls])
    costs: Costs = np.where(other, 4 * indel, differences).astype(np.int64)
    mapping = edit(first, second, costs, indel).mapping
    found = [
        None if v is None or other[j, v] else nodes[v] for j, v in enumerate(mapping)
    ]  # fmt: skip
    return Pairs(tuple(found), {i + 1: j + 1 for j, i in enumerate(found) if i is not None})


def _differences(call: ToolCall, gold: ToolCall, rules: ValueSettings) -> int:
    """Arguments that differ, apart from those that refer to results: these are the graph's edges."""
    names = [n for n in {**call.arguments, **gold.arguments}
             if not any(REFERENCE.search(str(c.arguments.get(n))) for c in (call, gold))]  # fmt: skip
    return sum(
        n not in call.arguments
        or n not in gold.arguments
        or not equal(call.arguments[n], gold.arguments[n], rules)
        for n in names
    )


# --- references and order -----------------------------------------------------------------------


def _mapped(plan: Plan, pairs: Pairs) -> Counter[Edge]:
    """The plan's references in gold numbers; what has no gold call counts as call 0."""
    calls = [ToolCall(s.tool or "", s.arguments if s.tool else {}) for s in plan.sub_tasks]
    to = pairs.numbers.get
    return Counter(
        (to(number, NOWHERE), leaf, to(source, NOWHERE), path)
        for (number, leaf, source, path), count in reference_edges(calls).items()
        for _ in range(count)
    )


def _in_steps(task: ToolTask) -> set[tuple[int, int]]:
    step = [k for k, calls in enumerate(task.steps) for _ in calls]
    return {(a, b) for a in range(len(step)) for b in range(len(step)) if step[a] < step[b]}


def kept(order: set[tuple[int, int]], pairs: Pairs) -> float | None:
    """1 if the sub-tasks of every (earlier, later) pair of gold calls stand in that order, else 0."""
    places = [(pairs.sub_tasks[a], pairs.sub_tasks[b]) for a, b in order]
    judged = [a < b for a, b in places if a is not None and b is not None]
    return float(all(judged)) if judged else None


# --- arguments -----------------------------------------------------------------------------------


def plan_verdicts(
    plan: Plan, task: ToolTask, pairs: Pairs, rules: ValueSettings = EXACT
) -> list[CallVerdict]:
    """A verdict per gold call with every argument, then one per sub-task that stands for none.

    ``made`` is what the plan says, with its own numbers; ``name`` is ``None`` where no sub-task does.
    """
    out = []
    resolved = resolved_gold(task)
    for j, gold in enumerate(task.calls):
        index = pairs.sub_tasks[j]
        made = {} if index is None else plan.sub_tasks[index].arguments
        names = [*gold.arguments, *(n for n in made if n not in gold.arguments)]
        judge = _Argument(task, gold, resolved[j], made, pairs.numbers, rules)
        judged = tuple(
            ArgumentVerdict(n, made.get(n), gold.arguments.get(n), judge.verdict(n)) for n in names
        )
        name = None if index is None else gold.name
        out.append(CallVerdict(name, gold.name, j, None, "", judged))
    paired = set(pairs.sub_tasks)
    for i, s in enumerate(plan.sub_tasks):
        if s.tool is not None and i not in paired:
            extra = tuple(ArgumentVerdict(n, v, None, "extra") for n, v in s.arguments.items())
            out.append(CallVerdict(s.tool, None, None, None, f"sub-task {i + 1}", extra))
    return out


@dataclass(frozen=True, slots=True)
class _Argument:
    """Judges the arguments of one sub-task against its gold call."""

    task: ToolTask
    gold: ToolCall
    resolved: ToolCall
    made: Mapping[str, Any]
    numbers: Mapping[int, int]
    rules: ValueSettings

    def verdict(self, name: str) -> Verdict:
        if name not in self.gold.arguments:
            return "extra"
        if name not in self.made:
            return "missing"
        own = renumbered(self.made[name], self.numbers)
        wanted = renumbered(self.gold.arguments[name], None)
        same = equal(own, wanted, self.rules) or self._same_value(name, own)
        return "equal" if same else "differs"

    def _same_value(self, name: str, own: Any) -> bool:
        """Equal once references are replaced by what was recorded for the gold calls."""
        wanted = self.resolved.arguments.get(name)
        if name not in self.resolved.arguments or any(references(wanted)):
            return False
        spec = next((t for t in self.task.tools if t.name == self.gold.name), None)
        call = ToolCall(self.gold.name, {name: own})
        found = resolve(call, self.task.results, spec.parameters if spec else {})
        return found is not None and equal(found[name], wanted, self.rules)


# --- shares --------------------------------------------------------------------------------------


def _overlap(made: Counter[Any], due: Counter[Any]) -> tuple[float | None, ...]:
    """Precision, recall and F1 of multisets; ``None`` where their denominator is 0."""
    common = (made & due).total()
    sizes = (made.total(), due.total(), (made.total() + due.total()) / 2)
    return tuple(common / size if size else None for size in sizes)
