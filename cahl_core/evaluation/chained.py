"""Chained calls as a benchmark: ComplexFuncBench, NESTFUL, or any file of tasks with gold calls.

Each task is worked on in two ways. Free-running: the model plans and calls by itself; recorded results
answer the calls that equal a gold call, nothing answers others. Teacher-forced (hierarchical form only):
the executor is given the gold plan's sub-tasks one by one, after the gold calls and results before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from cahl_core.canonical import EXACT
from cahl_core.environments.base import Environment, replay
from cahl_core.evaluation.chained_metrics import (
    Chain,
    chain_scores,
    failure,
    forced_correct,
    judge_run,
    response_scores,
)
from cahl_core.evaluation.chained_plans import PLAN_SCORES, plan_scores
from cahl_core.evaluation.chained_runs import RecordedResults, forced_request, planned
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.evaluation.outcomes import efficiency, redundant
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.records import ToolTask
from cahl_core.serving.results import AgentResult, Request
from cahl_core.train_config import Form, ValueSettings

SCORES = (
    *PLAN_SCORES, "step_accuracy_forced", "step_accuracy_free", "extra_calls", "response_exact",
    "response_cover",
)  # fmt: skip
SIZES = (
    (0, "no call"),
    (1, "1 call"),
    (2, "2 calls"),
    (3, "3 calls"),
    (5, "4-5 calls"),
    (8, "6-8 calls"),
)
MORE = "9 calls or more"

PROTOCOL = {
    "accuracy": "task success: every text can be read, no call is invalid, and every gold call is made "
    "with exactly its values, references replaced by results; where no call is due, a clean abstention",
    "free-running": "the model's own plan and calls; a call that equals a gold call gets its recorded "
    "result, any other one none",
    "step_accuracy_free": "gold calls made exactly in that run, as a share; extra_calls: further calls",
    "step_accuracy_forced": "share of gold calls that the executor makes exactly, given the gold plan's "
    "sub-task and the gold calls before it with their results; hierarchical form only",
    "plan_tools": "multiset of tools in the plan against that of the gold calls",
    "plan_order": "share of plans where every sub-task stands after those its gold call depends on; "
    "plan_sequence: where they stand in the order of the gold steps",
    "plan_arguments": "share of gold (call, argument) pairs whose value or reference the plan gives",
    "plan_references": "(call, argument, from call, path) in the plan against the gold calls'",
    "plan_exact": "share of plans that are the gold plan, independent steps in any order",
    "plan_distance": "edit distance of the plan's dependency graph from the gold calls' (nodes: tools, "
    "edges: references), over the most it can be; 0 is equal. plan_distance_exact: share not cut short",
    "response": "last answer in words against meta.answer: exact match, or contained in it",
    "equality": "cahl_core/canonical.py; numbers by value, JSON types matter",
}  # fmt: skip


class ChainedCalls:
    """`core.Benchmark` over tasks with gold calls.

    Args:
        name: key in results, such as ``complexfuncbench`` or ``tasks:mine``.
        title: for people.
        tasks: ids are unique, gold calls fit their tools (`task_files` sees to both).
        forced: whether teacher-forced steps are asked for too; they cost one text per gold call.
        rules: when two argument values count as equal.
        notes: sentences that belong beside the numbers.
        data: file → sha256.
        environment: answers the calls; recorded results by default.

    Categories: ``meta.split`` where every task has one and they differ, else the record's source where
    they differ, else the number of gold calls.

    A record is ``{"run": AgentResult, "forced": [text, …] | null}`` as JSON.
    """

    def __init__(
        self,
        name: str,
        title: str,
        tasks: Sequence[ToolTask],
        *,
        forced: bool = True,
        rules: ValueSettings = EXACT,
        notes: Sequence[str] = (),
        data: Mapping[str, str] | None = None,
        environment: Environment = replay,
    ) -> None:
        self.name = name
        self.title = title
        self.tasks = [planned(task) for task in tasks]
        self.forced = forced
        self.rules = rules
        self._remarks = list(notes)
        self.data = dict(data or {})
        self.environment = environment
        self.by, self._category = categories(self.tasks)

    def items(self) -> Sequence[Item]:
        """One per task, in their order."""
        return [Item(t.id, self._category(t), self._shown(t), t) for t in self.tasks]

    def _shown(self, task: ToolTask) -> Any:
        # the recorded results answer by gold call, so that the gold too decides what a model sees
        record = task.to_json()
        meta = {k: task.meta.get(k) for k in ("results", "resolved")}
        return {"forced": self.forced, "meta": meta} | {
            k: record[k] for k in ("messages", "tools", "answers", "plan")
        }

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        """Free runs of all attempts as one batch, then their teacher-forced steps in batches as large."""
        runs = solver.run([self._request(a, solver.form) for a in attempts])
        if solver.form != "hierarchical" or not self.forced:
            for attempt, run in zip(attempts, runs, strict=True):
                emit(attempt, {"run": run.to_json(), "forced": None})
            return
        steps = [(i, k) for i, a in enumerate(attempts) for k in range(len(a.item.data.calls))]
        written: dict[int, list[str | None]] = {i: [] for i in range(len(attempts))}
        for i in (i for i in written if not attempts[i].item.data.calls):
            emit(attempts[i], {"run": runs[i].to_json(), "forced": []})
        for start in range(0, len(steps), len(attempts)):
            part = steps[start : start + len(attempts)]
            results = solver.run(
                [forced_request(attempts[i].item.data, k, attempts[i].seed) for i, k in part]
            )
            for (i, _), result in zip(part, results, strict=True):
                written[i].append(result.steps[0].text if result.steps else None)
                if len(written[i]) == len(attempts[i].item.data.calls):
                    emit(attempts[i], {"run": runs[i].to_json(), "forced": written[i]})

    def _request(self, attempt: Attempt, form: Form) -> Request:
        task: ToolTask = attempt.item.data
        answers = RecordedResults(task, form, self.environment)
        return Request(task.messages, task.tools, answers, attempt.seed)

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        """One score per record; what each measure means is in `PROTOCOL`."""
        return [self._score(a, r) for a, r in zip(attempts, records, strict=True)]

    def _score(self, attempt: Attempt, record: Record) -> ItemScore:
        task: ToolTask = attempt.item.data
        result = AgentResult.from_json(record["run"])
        chain = judge_run(result, task, self.rules)
        wrong = failure(result, chain, task, self.rules)
        plans = dict.fromkeys(PLAN_SCORES) if result.form == "low_only" else plan_scores(
            result.plan, task, self.rules)  # fmt: skip
        scores: dict[str, float | None] = {
            **plans,
            "step_accuracy_forced": self._forced_share(record["forced"], task),
            **chain_scores(chain, task),
            **response_scores(result.response, task.meta),
        }
        return ItemScore(
            task.id,
            attempt.item.category,
            float(wrong is None),
            result.outcome,
            scores=scores,
            error_type=None if wrong is None else wrong[0],
            error="" if wrong is None else wrong[1],
            sample=attempt.sample,
            **efficiency(result, task.tools) | _counts(result, chain, wrong is None),
        )

    def _forced_share(self, texts: Sequence[str | None] | None, task: ToolTask) -> float | None:
        if not texts:
            return None
        return fmean(forced_correct(texts, task, self.rules))

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """Step accuracies over gold calls instead of tasks, and the share of tasks lost to each failure.

        The means of all measures are the harness's; `measures` has them by category.
        """
        failures = Counter(s.error_type for s in scores if s.error_type)
        lost = {kind: count / len(scores) for kind, count in failures.most_common()}
        return {**self._micro(scores), "not_solved": lost}

    def measures(self, scores: Sequence[ItemScore]) -> dict[str, dict[str, Any]]:
        """For all items and each category ``n``, ``success``, and of every measure its mean and the
        number of items it was observed on."""
        # sizes in their order, other categories as they come
        present = dict.fromkeys(s.category for s in scores)
        ordered = [*(w for w in (*(w for _, w in SIZES), MORE) if w in present), *present]
        groups = {"all": list(scores)}
        groups |= {c: [s for s in scores if s.category == c] for c in dict.fromkeys(ordered)}
        return {name: _means(group) for name, group in groups.items()}

    def _micro(self, scores: Sequence[ItemScore]) -> dict[str, float | None]:
        size = {t.id: len(t.calls) for t in self.tasks}
        found: dict[str, float | None] = {}
        for name in ("step_accuracy_forced", "step_accuracy_free"):
            seen = [(v, size[s.id]) for s in scores if (v := s.scores.get(name)) is not None]
            total = sum(n for _, n in seen)
            found[f"{name}_micro"] = sum(v * n for v, n in seen) / total if total else None
        return found

    def about(self) -> dict[str, Any]:
        """Protocol, notes, sums of the files, items by category."""
        protocol = PROTOCOL | {"categories": self.by}
        if not self.forced:
            protocol["step_accuracy_forced"] = "not asked for in this run"
        return {
            "protocol": protocol,
            "notes": [*self._remarks, *_results_notes(self.tasks)],
            "data": self.data,
            "counts": dict(Counter(self._category(t) for t in self.tasks)),
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        """Request, plan and calls with a verdict per argument, the gold beside them."""
        from cahl_core.evaluation.chained_report import example

        return example(attempt.item.data, record, self.rules)


# --- categories ----------------------------------------------------------------------------------


def categories(tasks: Sequence[ToolTask]) -> tuple[str, Callable[[ToolTask], str]]:
    """What the tasks are told apart by, in words, and the category of a task."""
    for words, key in (("meta.split of the record", split_of), ("source of the record", source_of)):
        values = [key(task) for task in tasks]
        if all(values) and len(set(values)) > 1:
            return words, key
    return "number of gold calls", size_of


def split_of(task: ToolTask) -> str:
    found = task.meta.get("split")
    return found if isinstance(found, str) else ""


def source_of(task: ToolTask) -> str:
    """Where the record comes from: what it said itself before a file's name was put in its place."""
    found = task.meta.get("origin", task.source)
    return found if isinstance(found, str) else ""


def size_of(task: ToolTask) -> str:
    return next((words for most, words in SIZES if len(task.calls) <= most), MORE)


# --- means ---------------------------------------------------------------------------------------


def _counts(result: AgentResult, chain: Chain, solved: bool) -> dict[str, int]:
    """Invalid and redundant calls (`call_metrics`), references replaced by results."""
    broken = sum(isinstance(s.execution, ParseFailure) for s in result.steps)
    calls = [m.compared for m in chain.made]
    return {
        "invalid": broken + sum(m.fault is not None for m in chain.made),
        "redundant": redundant(calls, chain.gold if solved else None),
    }


def _means(scores: Sequence[ItemScore]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "n": len(scores),
        "success": fmean(s.correct for s in scores) if scores else None,
    }
    for name in SCORES:
        seen = [v for s in scores if (v := s.scores.get(name)) is not None]
        found[name] = {"mean": fmean(seen) if seen else None, "n": len(seen)}
    return found


def _results_notes(tasks: Sequence[ToolTask]) -> list[str]:
    """What the recorded results allow."""
    needed = [t for t in tasks if any("$var" in str(c.arguments) for c in t.calls)]
    blind = sum(all(r is None for r in t.results) for t in needed)
    if not blind:
        return []
    return [
        f"{blind} of {len(tasks)} tasks have references but no recorded results: there the executor sees "
        "no results, and a call is right if it refers to the right earlier call."
    ]
