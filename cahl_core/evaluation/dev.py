"""The held-back tasks of the training data: rewards, validity and efficiency of one model.

The rollouts are training's own (`training.rollout`), greedy, one plan and one execution per
sub-task, with teacher-forced histories: ``mean_reward`` is the planner's reward as in training; in
the flat forms, which have no planner, that of the one text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.call_metrics import is_solved, plan_is_valid, redundant_calls
from cahl_core.config import Settings
from cahl_core.errors import StageInputError
from cahl_core.files import read_jsonl
from cahl_core.protocol.forms import openings
from cahl_core.protocol.parsing import ParseFailure, parse_plan, split_single
from cahl_core.records import ToolTask
from cahl_core.rewards import fits_schema
from cahl_core.roles import Role
from cahl_core.train_config import Form

if TYPE_CHECKING:
    from cahl_core.policy.team import Source
    from cahl_core.training.tree import PlanNode, Tree

# The record of one task as kept on disk: JSON values only.
DevRecord = dict[str, Any]


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


def run_dev(source: Source, settings: Settings, tasks: Sequence[ToolTask]) -> list[DevRecord]:
    """One record per task: texts, calls, rewards of both roles, validity."""
    from cahl_core.training.rollout import Roller

    train = settings.train.model_copy(update={"history": "teacher_forced"})
    settings = settings.model_copy(update={"train": train})
    roller = Roller(_EndsEarly(source, settings.model.form), settings)
    trees = roller.rollout(tasks, "dev", plans=1, executions=1, greedy=True)
    return [dev_record(tree, settings.model.form) for tree in trees]


class _EndsEarly:
    """What is sampled from, ending texts that are outside the grammar from their first tokens on."""

    def __init__(self, source: Source, form: Form) -> None:
        self.policy = source.policy
        self._source = source
        self._form = form

    def generate(self, prompts: Any, role: Role, **options: Any) -> Any:
        begin = openings(self._form, role)
        return self._source.generate(prompts, role, openings=begin, **options)


def dev_record(tree: Tree, form: Form = "hierarchical") -> DevRecord:
    """What is kept of a tree with one plan and one execution.

    ``plan_valid`` and ``plan_text`` are ``None`` in ``low_only``, ``planner_reward`` in both flat forms.
    """
    from cahl_core.datasets.targets import resolved_gold

    task, (node,) = tree.task, tree.plans
    gold = resolved_gold(task)
    texts = [s.completion.text for n in node.nodes for s in n.samples]
    calls = [call for n in node.nodes for made in n.calls for call in made]
    broken = sum(isinstance(e, ParseFailure) for n in node.nodes for e in n.executions)
    rewards = [reward.total for n in node.nodes for reward in n.rewards]
    plan_text, plan_valid = _planned(node, task, form, texts)
    return {
        "id": task.id,
        "source": task.source,
        "plan_text": plan_text,
        "texts": texts,
        "calls": [c.to_json() for c in calls],
        "planner_reward": None if node.reward is None else node.reward.total,
        "executor_reward": _mean(rewards),
        "plan_valid": plan_valid,
        "calls_attempted": len(calls) + broken,
        "calls_valid": sum(fits_schema(c, task.tools) for c in calls),
        "solved": not broken and plan_valid is not False and is_solved(calls, gold),
        "redundant_calls": redundant_calls(calls, gold),
    }


def _planned(
    node: PlanNode, task: ToolTask, form: Form, texts: Sequence[str]
) -> tuple[str | None, bool | None]:
    """The plan as it was written, and whether it holds."""
    if node.sample is not None:
        return node.sample.completion.text, plan_is_valid(node.plan, task.tools)
    if form != "single_level":
        return None, None
    written = split_single(texts[0])[0] if texts else ""
    return written, plan_is_valid(parse_plan(written), task.tools)


def dev_summary(records: Sequence[DevRecord]) -> dict[str, Any]:
    """Mean rewards of both roles, solved tasks, calls per (solved) task, redundant-call rate."""
    made = sum(len(r["calls"]) for r in records)
    return {
        "dev_n": len(records),
        "mean_reward": _mean(_reward(r) for r in records) or 0.0,
        "mean_executor_reward": _mean(
            r["executor_reward"] for r in records if r["executor_reward"] is not None
        ),
        "dev_solved": sum(r["solved"] for r in records),
        "calls_per_task": made / len(records) if records else None,
        "calls_per_solved_task": _mean(float(len(r["calls"])) for r in records if r["solved"]),
        "redundant_call_rate": (
            sum(r["redundant_calls"] for r in records) / made if made else None
        ),
    }


def _reward(record: DevRecord) -> float:
    reward = record["planner_reward"]
    return float((record["executor_reward"] or 0.0) if reward is None else reward)


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
