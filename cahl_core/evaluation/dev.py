"""The held-back tasks of the training data as a benchmark: rewards, validity and efficiency.

The rollouts are training's own (`training.rollout`), greedy, one plan and one execution per
sub-task, with teacher-forced histories: ``mean_reward`` is the planner's reward as in training; in
the flat forms, which have no planner, that of the one text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.call_metrics import is_solved, plan_is_valid, redundant_calls
from cahl_core.config import Settings
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record
from cahl_core.files import digest, sha256
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


def item_score(category: str, record: DevRecord, sample: int = 0) -> ItemScore:
    """What a record counts as; ``scores`` holds the rewards of both roles."""
    return ItemScore(
        id=record["id"],
        category=category,
        correct=float(record["solved"]),
        outcome="solved" if record["solved"] else "unsolved",
        scores={"reward": _reward(record), "executor_reward": record["executor_reward"]},
        sample=sample,
        attempted=record["calls_attempted"],
        unparsed=record["calls_attempted"] - len(record["calls"]),
        invalid=record["calls_attempted"] - record["calls_valid"],
        redundant=record["redundant_calls"],
        planned=record["plan_valid"],
    )


class DevTasks:
    """The first tasks of the split ``dev`` of ``data/prepared``; correct is what is solved.

    Its records hold rewards, which belong to the rollout, so the reward settings are part of what is
    shown.
    """

    name, title = "dev", "held-back tasks"
    own_rollouts = True

    def __init__(self, folder: Path, count: int, settings: Settings) -> None:
        """
        Args:
            folder: ``data/prepared``; its split ``dev`` may be one file or Parquet shards.
        """
        from cahl_core.training.data import load_split, split_files

        self.settings = settings
        self.files = split_files(folder, "dev")
        self._tasks = list(load_split(folder, "dev")[:count])

    def items(self) -> list[Item]:
        """`core.Benchmark.items`."""
        train = self.settings.train
        rollout = digest(
            [
                train.rewards.model_dump(mode="json"), train.max_sub_tasks, train.environment,
                train.planner.max_tokens, train.executor.max_tokens, train.recombine,
                self.settings.model.form, self.settings.model.tool_rendering,
                self.settings.model.max_context,
            ]
        )  # fmt: skip
        return [Item(t.id, t.source, [rollout, t.to_json()], t) for t in self._tasks]

    def solve(self, solver: Any, attempts: Sequence[Attempt], emit: Emit) -> None:
        """`core.Benchmark.solve`, greedy."""
        records = run_dev(solver.source, self.settings, [a.item.data for a in attempts])
        for attempt, record in zip(attempts, records, strict=True):
            emit(attempt, record)

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """`core.Benchmark.score`."""
        return [
            item_score(attempt.item.category, record, attempt.sample)
            for attempt, record in zip(attempts, records, strict=True)
        ]

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """Mean rewards of both roles."""
        rewards = [s.scores["reward"] for s in scores]
        executor = [s.scores["executor_reward"] for s in scores]
        return {
            "mean_reward": _mean(r for r in rewards if r is not None) or 0.0,
            "mean_executor_reward": _mean(r for r in executor if r is not None),
        }

    def about(self) -> dict[str, Any]:
        """`core.Benchmark.about`."""
        return {
            "protocol": {
                "history": "teacher-forced: each sub-task sees the recorded results before it",
                "decoding": "greedy, one plan, one execution per sub-task",
            },
            "notes": [
                "Tasks of the training sources that no training request shares; solved: every gold "
                "call was made with exactly its values.",
                "The reward is the planner's as in training, in the flat forms that of the one text.",
            ],
            "data": {f"data/prepared/{f.name}": sha256(f) for f in self.files},
            "counts": dict(Counter(t.source for t in self._tasks)),
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        """`core.Benchmark.example`."""
        task: ToolTask = attempt.item.data
        lines = [f"request: {task.messages[-1].content}", f"plan: {record['plan_text']}"]
        lines += [f"text: {text}" for text in record["texts"]]
        gold = [call.to_json() for call in task.calls]
        return "\n".join([*lines, f"gold: {gold}"])


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


def _reward(record: DevRecord) -> float:
    reward = record["planner_reward"]
    return float((record["executor_reward"] or 0.0) if reward is None else reward)


def _mean(values: Iterable[float]) -> float | None:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
