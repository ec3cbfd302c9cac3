"""API-Bank as ToolRL tests it: 597 single calls in three levels, judged by ToolRL's rule.

Every attempt counts once. ToolRL's generation passes over items that an earlier run solved, so that
repeating it can only raise the score; there is no such path here.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cahl_core.errors import DataError, StageInputError
from cahl_core.evaluation import api_bank_labels as labels
from cahl_core.evaluation import api_bank_rule as rule
from cahl_core.evaluation.core import Attempt, Emit, Item, ItemScore, Record, Solver
from cahl_core.evaluation.outcomes import efficiency
from cahl_core.files import read_jsonl, sha256
from cahl_core.records import ToolCall, ToolTask
from cahl_core.serving.results import AgentResult, Request

LEVELS = (1, 2, 3)
RULES = {"soft": rule.soft, "strict": rule.strict, "norm": rule.norm}

PROTOCOL = {
    "items": "ToolRL's API-Bank files: one call is due, the dialogue so far and 1 to 4 tools are given",
    "prompt": "the model's own roles and prompts, as for every benchmark here, not ToolRL's",
    "scoring": "the calls are written in ToolRL's text form and judged by its rule; accuracy is its "
    "`soft` (any call of the text equals the gold one). `strict`: exactly one call. `norm`: strict "
    "with scalars as texts, trimmed, without case; diagnostic",
    "overall": "micro average over the items of all levels, as ToolRL",
    "attempts": "one generation per item and sample; no item is asked again",
}


class ApiBank:
    """`core.Benchmark` over the three files of source ``api_bank``.

    Args:
        folder: holds ``level-1.jsonl`` to ``level-3.jsonl``.
    """

    name = "api_bank"
    title = "API-Bank (ToolRL's 597 items)"
    headline = "soft"

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def tasks(self) -> list[ToolTask]:
        """The items in the order of the files."""
        return [task for level in LEVELS for task in self._level(level)]

    def items(self) -> Sequence[Item]:
        return [_item(task) for task in self.tasks]

    def solve(self, solver: Solver, attempts: Sequence[Attempt], emit: Emit) -> None:
        requests = [_request(a) for a in attempts]
        solver.run(requests, lambda i, result: emit(attempts[i], result.to_json()))

    def score(self, attempts: Sequence[Attempt], records: Sequence[Record]) -> list[ItemScore]:
        return [_score(a, r) for a, r in zip(attempts, records, strict=True)]

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]:
        """By rule: each complete level and, where all are complete, the micro average; how many items
        only ``norm`` accepts; the highest score that answerable labels allow.
        """
        complete = [level for level in LEVELS if self._is_complete(scores, level)]
        parts = {f"level-{level}": _of_level(scores, level) for level in complete}
        if len(complete) == len(LEVELS):
            parts["overall"] = list(scores)
        table = {
            name: {
                part: _mean([_measure(s, name) for s in chosen]) for part, chosen in parts.items()
            }
            for name in RULES
        }
        return {
            **table,
            "right_under_norm_only": _only_norm(scores),
            "ceiling": {part: self._ceiling(chosen) for part, chosen in parts.items()},
        }

    def about(self) -> dict[str, Any]:
        counts = labels.counts(self.tasks, LEVELS)
        return {
            "protocol": PROTOCOL,
            "notes": notes(counts, [len(self._tasks_of(level)) for level in LEVELS]),
            "data": {f"level-{level}.jsonl": sha256(self._path(level)) for level in LEVELS},
            "counts": {f"level-{level}": len(self._tasks_of(level)) for level in LEVELS},
            "flaws": counts,
        }

    def example(self, attempt: Attempt, record: Record) -> str:
        task: ToolTask = attempt.item.data
        result = AgentResult.from_json(record)
        lines = [f"{m.role}: {m.content}" for m in task.messages[-4:]]
        lines += [f"tools: {', '.join(t.name for t in task.tools)}"]
        lines += [f"plan: {result.plan_text}"] if result.plan_text is not None else []
        lines += [f"text: {step.text}" for step in result.steps]
        lines += ["judged:", rule.text_of(result.calls) or "(no call)"]
        return "\n".join([*lines, "gold:", rule.text_of([labels.gold_of(task)])])

    def _path(self, level: int) -> Path:
        path = self.folder / f"level-{level}.jsonl"
        if not path.is_file():
            raise StageInputError(
                f"{path} does not exist",
                "fetch source api_bank: `cahl data show api_bank` says how",
            )
        return path

    def _level(self, level: int) -> list[ToolTask]:
        path = self._path(level)
        tasks = [ToolTask.from_json(r, f"{path}:{n}") for n, r in enumerate(read_jsonl(path), 1)]
        for task in tasks:
            if len(task.calls) != 1 or task.meta.get("level") != level:
                raise DataError(
                    f"{path}: '{task.id}' has {len(task.calls)} gold calls and level "
                    f"{task.meta.get('level')}; 1 call and level {level} are due",
                    "fetch source api_bank again",
                )
        return tasks

    def _tasks_of(self, level: int) -> list[ToolTask]:
        return [t for t in self.tasks if t.meta["level"] == level]

    def _is_complete(self, scores: Sequence[ItemScore], level: int) -> bool:
        return {s.id for s in scores} >= {t.id for t in self._tasks_of(level)}

    def _ceiling(self, scores: Sequence[ItemScore]) -> float:
        corrupt = {t.id for t in self.tasks if labels.is_corrupt(t)}
        return _mean([float(s.id not in corrupt) for s in scores])


def notes(counts: labels.Counts, sizes: Sequence[int]) -> list[str]:
    """The sentences that belong beside any API-Bank number."""

    def by_level(name: str) -> str:
        return f"{sum(counts[name])} ({'/'.join(map(str, counts[name]))} by level)"

    total = sum(sizes)
    possible = total - sum(counts["corrupt_label"])
    return [
        f"Ceiling {possible}/{total} = {possible / total:.2%}: {by_level('corrupt_label')} labels are "
        "debris of a failed parse (BookHotel); a model that repeats them would still be paid.",
        f"{by_level('year_nowhere_in_prompt')} items want a year that stands nowhere in the prompt.",
        f"{by_level('values_verbatim_in_dialogue')} items have all their gold values literally in the "
        f"dialogue, {by_level('values_verbatim_ignoring_case')} when case is ignored.",
        f"Gold values are all texts; for {by_level('values_typed_otherwise_in_doc')} of them the tool's "
        "document names another type, and a correctly typed answer scores 0 in soft and strict; "
        "right_under_norm_only counts the items that were lost to type, case or space.",
        f"{by_level('gold_call_breaks_its_schema')} gold calls are invalid calls by our own definition: "
        "no right answer keeps the invalid-call rate at 0.",
        f"{by_level('gold_tool_not_offered')} gold tools are not offered; "
        f"{by_level('undocumented_gold_argument')} gold calls have an argument that is not documented.",
        f"{by_level('copies_of_another_item')} items are another one's exact copy; "
        f"{by_level('get_user_token')} ask for GetUserToken(username, password).",
        "Not comparable with API-Bank's own evaluator, which executes calls, nor with the levels of its "
        "paper. Rows of ToolRL and CAHL come from ToolRL's prompt.",
    ]


def _item(task: ToolTask) -> Item:
    shown = {
        "messages": [m.to_json() for m in task.messages],
        "tools": [t.to_json() for t in task.tools],
    }
    return Item(task.id, f"level-{task.meta['level']}", shown, task)


def _request(attempt: Attempt) -> Request:
    task: ToolTask = attempt.item.data
    return Request(task.messages, task.tools, seed=attempt.seed)


def _score(attempt: Attempt, record: Record) -> ItemScore:
    task: ToolTask = attempt.item.data
    gold, result = labels.gold_of(task), AgentResult.from_json(record)
    text = rule.text_of(result.calls)
    verdicts = {name: judge(text, gold) for name, judge in RULES.items()}
    kind, why = (None, "") if verdicts["soft"] else _fault(result.calls, gold, verdicts["norm"])
    return ItemScore(
        task.id,
        attempt.item.category,
        float(verdicts["soft"]),
        result.outcome,
        scores={name: float(verdicts[name]) for name in ("strict", "norm")},
        error_type=kind,
        error=why,
        sample=attempt.sample,
        **efficiency(result, task.tools, [gold] if verdicts["soft"] else None),
    )


def _fault(calls: Sequence[ToolCall], gold: ToolCall, norm: bool) -> tuple[str, str]:
    """Class and sentence of what keeps the first call from being the gold one."""
    if not calls:
        return "no_call", f"no call; {gold.name} is due"
    call = calls[0]
    if call.name != gold.name:
        return "wrong_tool", f"{call.name} was called; {gold.name} is due"
    if norm:
        return "form_of_a_value", f"equal but for type, case or space: {_differences(call, gold)}"
    if set(call.arguments) != set(gold.arguments):
        return (
            "wrong_arguments",
            f"arguments {sorted(call.arguments)}; due {sorted(gold.arguments)}",
        )
    return "wrong_value", _differences(call, gold)


def _differences(call: ToolCall, gold: ToolCall) -> str:
    pairs = ((k, call.arguments.get(k), v) for k, v in gold.arguments.items())
    return "; ".join(f"{k}={got!r}, due {due!r}" for k, got, due in pairs if got != due)


def _measure(score: ItemScore, name: str) -> float:
    return score.correct if name == "soft" else float(score.scores[name] or 0)


def _only_norm(scores: Sequence[ItemScore]) -> int:
    return sum(bool(s.scores["norm"]) and not s.correct for s in scores)


def _of_level(scores: Sequence[ItemScore], level: int) -> list[ItemScore]:
    return [s for s in scores if s.category == f"level-{level}"]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
