"""Ways to earn reward without solving the task, told from one plan or one execution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from cahl_core.call_metrics import call_key
from cahl_core.canonical import canonical, leaves
from cahl_core.datasets.references import whole_reference
from cahl_core.datasets.targets import resolved_gold
from cahl_core.protocol.parsing import Execution
from cahl_core.records import Plan
from cahl_core.training.tree import PlanNode, Sample, SubTaskNode, Tree

LIST_FACTOR = 2  # a plan with more than this many times the gold calls' values
LIST_SLACK = 3  # and this many more lists them
UNHELD_SHARE = 0.5
SURPLUS = 3  # a value written this many times more often than the gold calls have it

# pattern → (what of, what it does)
PATTERNS = {
    "listed_values": ("plans", "list many values that no gold call holds"),
    "repeated_values": ("plans", "repeat values far more often than the gold calls"),
    "values_in_words": ("plans", "name gold values in words but not in the arguments"),
    "empty_plan": ("plans", "earn reward without a tool where calls are due"),
    "repeated_across": ("plans", "were executed with one call in several sub-tasks"),
    "truncated_plan": ("plans", "earn reward though the token limit cut them"),
    "repeated_call": ("executions", "make the same call more than once"),
    "words_for_calls": ("executions", "earn reward in words where a call is due"),
    "truncated_execution": ("executions", "earn reward though the token limit cut them"),
}


def plan_patterns(tree: Tree, node: PlanNode, sample: Sample) -> dict[str, bool]:
    """Which patterns of plans this one shows; a plan outside the grammar shows none but the cut."""
    plan, gold = node.plan, gold_values(tree)
    if not isinstance(plan, Plan):
        plan = Plan(())
    values = list(planned_values(plan))
    held = held_values(tree)
    unheld = sum(value not in held for value in values)
    surplus = Counter(values) - Counter(gold + list(set(values)))
    return {
        "listed_values": len(values) > LIST_FACTOR * len(gold) + LIST_SLACK
        and unheld > UNHELD_SHARE * len(values),
        "repeated_values": surplus.total() >= SURPLUS,
        "values_in_words": _values_in_words(plan, gold, set(values)),
        "empty_plan": isinstance(node.plan, Plan)
        and not plan.calls_tools
        and bool(tree.task.calls)
        and sample.reward > 0,
        "repeated_across": _repeats_across(tree, node),
        "truncated_plan": not sample.completion.finished and sample.reward > 0,
    }


def execution_patterns(node: SubTaskNode, g: int) -> dict[str, bool]:
    """Which patterns of executions this one shows."""
    sample, execution = node.samples[g], node.executions[g]
    made = Counter(map(call_key, node.calls[g]))
    due = Counter(map(call_key, node.gold or ()))
    return {
        "repeated_call": any(count > max(due[key], 1) for key, count in made.items()),
        "words_for_calls": isinstance(execution, Execution)
        and not execution.calls
        and bool(node.gold)
        and sample.reward > 0,
        "truncated_execution": not sample.completion.finished and sample.reward > 0,
    }


def planned_values(plan: Plan) -> Iterator[str]:
    """Canonical leaf values of the structured arguments; references stand for other values."""
    for sub_task in plan.sub_tasks:
        for value in leaves(sub_task.arguments) if sub_task.arguments else ():
            if whole_reference(value) is None:
                yield canonical(value)


def gold_values(tree: Tree) -> list[str]:
    """Canonical leaf values of the gold calls, those in place of references too."""
    calls = [call for call in resolved_gold(tree.task) if call.arguments]
    return [canonical(value) for call in calls for value in leaves(call.arguments)]


def held_values(tree: Tree) -> set[str]:
    """The values a plan may rightly write: of the gold calls, as recorded and as resolved."""
    recorded = [call for call in tree.task.calls if call.arguments]
    own = {canonical(value) for call in recorded for value in leaves(call.arguments)}
    return own | set(gold_values(tree))


def _values_in_words(plan: Plan, gold: Sequence[str], planned: set[str]) -> bool:
    """More than half of the gold values stand in the sub-tasks' words but in no argument."""
    words = " ".join(sub_task.task for sub_task in plan.sub_tasks)
    wanted = {value for value in gold if len(value.strip('"')) > 1}
    stated = {v for v in wanted - planned if v.strip('"') in words}
    return bool(wanted) and 2 * len(stated) > len(wanted)


def _repeats_across(tree: Tree, node: PlanNode) -> bool:
    """In one of the runs a call is made in more sub-tasks than the gold calls ask for."""
    due = Counter(map(call_key, resolved_gold(tree.task)))
    nodes = [sub for sub in node.nodes if sub.executions]
    for g in range(max((len(sub.executions) for sub in nodes), default=0)):
        made = Counter(key for sub in nodes for key in set(map(call_key, sub.calls[g])))
        if any(count > max(due[key], 1) for key, count in made.items()):
            return True
    return False
