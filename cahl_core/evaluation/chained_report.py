"""Chained calls for people: a table of the measures, what failed how, single tasks with verdicts.

Model and data texts are shown with control characters escaped (a terminal would act on them).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cahl_core.canonical import EXACT
from cahl_core.datasets.targets import resolved_gold
from cahl_core.datasets.validity import plain
from cahl_core.evaluation.chained_metrics import (
    failure,
    forced_call,
    forced_correct,
    judge_run,
)
from cahl_core.evaluation.chained_plans import pair, plan_verdicts
from cahl_core.evaluation.core import ItemScore, Record
from cahl_core.explain import ArgumentVerdict, CallVerdict
from cahl_core.files import dump_json
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.records import Plan, ToolTask
from cahl_core.serving.results import AgentResult
from cahl_core.tables import show_table
from cahl_core.train_config import ValueSettings

LONG, SHORT = 600, 120
MARKS = {"equal": "=", "differs": "≠", "missing": "–", "extra": "+"}
LEGEND = "= as due   ≠ differs   – missing   + not due"
ROWS = (
    ("task success", "success"),
    ("plan: tools F1", "plan_tools_f1"),
    ("plan: dependencies kept", "plan_order"),
    ("plan: gold sequence kept", "plan_sequence"),
    ("plan: arguments", "plan_arguments"),
    ("plan: references F1", "plan_references_f1"),
    ("plan: exact", "plan_exact"),
    ("plan: graph distance (0 is equal)", "plan_distance"),
    ("steps, teacher-forced", "step_accuracy_forced"),
    ("steps, free-running", "step_accuracy_free"),
    ("calls beyond the gold ones, a task", "extra_calls"),
    ("answer: exact match", "response_exact"),
    ("answer: contained", "response_cover"),
)


def show(
    title: str,
    groups: Mapping[str, Mapping[str, Any]],
    scores: Sequence[ItemScore],
    notes: Sequence[str] = (),
) -> None:
    """Prints the measures overall and by category, then failures and notes.

    Args:
        groups: of `ChainedCalls.measures`, of the same scores.
    """
    names = list(groups) if len(groups) > 2 else ["all"]
    header = ["measure", *(f"{plain(name)} (n={groups[name]['n']})" for name in names)]
    rows = [[words, *(_cell(groups[g], key) for g in names)] for words, key in ROWS]
    show_table(header, [r for r in rows if any(c != "–" for c in r[1:])], plain(title))
    for line in [*failure_lines(scores), *notes]:
        print(line)


def _cell(group: Mapping[str, Any], key: str) -> str:
    """A share in percent, with the number of tasks it was observed on where that is not all."""
    if key == "success":
        return _percent(group["success"])
    mean, n = group[key]["mean"], group[key]["n"]
    if mean is None:
        return "–"
    shown = f"{mean:.2f}" if key in ("plan_distance", "extra_calls") else _percent(mean)
    return shown if n == group["n"] else f"{shown} of {n}"


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def failure_lines(scores: Sequence[ItemScore]) -> list[str]:
    """``not solved: 3 wrong_arguments, 1 missing_call``; nothing where all are solved."""
    failures = Counter(s.error_type for s in scores if s.error_type)
    if not failures:
        return []
    return ["not solved: " + ", ".join(f"{n} {kind}" for kind, n in failures.most_common())]


# --- one task ------------------------------------------------------------------------------------


def example(task: ToolTask, record: Record, rules: ValueSettings = EXACT) -> str:
    """Request, plan, calls and answer of one record, a verdict for every argument, the gold beside."""
    result = AgentResult.from_json(record["run"])
    lines = [f"task {plain(task.id)}"]
    lines += [f"  {m.role}: {_cut(m.content, LONG)}" for m in task.messages[-3:] if m.content]
    lines.append("  tools: " + _cut(", ".join(t.name for t in task.tools), LONG))
    lines += [*_plan_lines(result, task, rules), *_call_lines(result, task, rules)]
    lines += _forced_lines(record.get("forced"), task, rules)
    if isinstance(task.meta.get("answer"), str):
        lines.append(f"answer due: {_cut(task.meta['answer'], LONG)}")
    if result.response is not None:
        lines.append(f"answer given: {_cut(result.response, LONG)}")
    return "\n".join([*lines, LEGEND])


def _plan_lines(result: AgentResult, task: ToolTask, rules: ValueSettings) -> Iterator[str]:
    if result.form == "low_only":
        return
    if not isinstance(result.plan, Plan):
        reason = f": {result.plan.reason}" if isinstance(result.plan, ParseFailure) else ""
        yield f"plan: cannot be read{reason}: {_cut(result.plan_text or '', LONG)}"
        return
    pairs = pair(result.plan, task, rules)
    yield f"plan, {len(result.plan.sub_tasks)} sub-tasks for {len(task.calls)} gold calls:"
    for number, sub_task in enumerate(result.plan.sub_tasks, 1):
        tool = "in words" if sub_task.tool is None else plain(sub_task.tool)
        yield f"  {number}. {tool}: {_cut(sub_task.task, SHORT)}"
    for verdict in plan_verdicts(result.plan, task, pairs, rules):
        index = None if verdict.number is None else pairs.sub_tasks[verdict.number]
        where = "no sub-task" if index is None else f"sub-task {index + 1}"
        yield from _verdict_lines(verdict, where if verdict.number is not None else verdict.note)


def _call_lines(result: AgentResult, task: ToolTask, rules: ValueSettings) -> Iterator[str]:
    chain = judge_run(result, task, rules)
    wrong = failure(result, chain, task, rules)
    yield "calls: " + (
        "solved" if wrong is None else f"not solved, {wrong[0]}: {_cut(wrong[1], LONG)}"
    )
    for verdict in chain.verdicts(task, rules):
        yield from _verdict_lines(verdict, "made" if verdict.name is not None else "not made")
    for number, step in enumerate(result.steps, 1):
        if isinstance(step.execution, ParseFailure):
            yield f"  text {number} cannot be read: {_cut(step.text, LONG)}"
        elif step.result is not None:
            yield f"  result {number}: {_cut(dump_json(step.result), SHORT)}"


def _forced_lines(
    texts: Sequence[str | None] | None, task: ToolTask, rules: ValueSettings
) -> Iterator[str]:
    """One line per teacher-forced step that is wrong, and how many are right."""
    if not texts:
        return
    right = forced_correct(texts, task, rules)
    yield f"teacher-forced: {sum(right)} of {len(right)} steps right"
    for k, due in enumerate(resolved_gold(task)):
        if not right[k]:
            made = forced_call(texts[k], k, task)
            written = f": {_cut(texts[k] or '', SHORT)}" if texts[k] else ""
            shown = f"{made}{written}" if isinstance(made, str) else dump_json(made.to_json())
            yield f"  step {k + 1}: {_cut(shown, 2 * SHORT)}; due {_cut(dump_json(due.to_json()), SHORT)}"


def _verdict_lines(verdict: CallVerdict, where: str) -> Iterator[str]:
    due = "not due" if verdict.number is None else f"gold call {verdict.number + 1}"
    fault = f"; invalid: {_cut(verdict.note, SHORT)}" if verdict.valid is False else ""
    yield f"  {plain(verdict.due or verdict.name or '?')}: {due}, {where}{fault}"
    yield from (f"      {_argument(a)}" for a in verdict.arguments)


def _argument(verdict: ArgumentVerdict) -> str:
    made, due = (_cut(dump_json(v), SHORT) for v in (verdict.made, verdict.due))
    shown = {
        "equal": made,
        "differs": f"{made}, due {due}",
        "missing": f"due {due}",
        "extra": made,
    }[verdict.verdict]
    return f"{MARKS[verdict.verdict]} {plain(verdict.name)}: {shown}"


def _cut(text: str, size: int) -> str:
    shown = plain(text).replace("\n", "⏎")
    return shown if len(shown) <= size else f"{shown[: size - 1]}…"
