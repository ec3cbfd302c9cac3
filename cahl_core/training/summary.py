"""What a training step reports: mean rewards by part and role, sizes, group counts."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from cahl_core.files import atomic_file
from cahl_core.protocol.parsing import ParseFailure
from cahl_core.training.credit import solved
from cahl_core.training.distributed import Workers
from cahl_core.training.tree import PlanNode, SubTaskNode, Tree

Row = dict[str, float]

PLOT = (
    "planner_reward", "executor_reward", "task_success", "plan_validity", "reward_parameters",
    "reward_execution", "reward_form", "reward_syntax", "reward_semantics",
)  # fmt: skip
SUMMARY = (
    *PLOT, "plan_tokens", "plan_truncated", "executor_tokens", "executor_truncated", "sub_tasks",
    "sub_task_unaligned",
)  # fmt: skip
TOTALS = ("sampled_tokens", "encoded_prompt_tokens", "skipped_updates", "refills", "void_samples")


def summarise_trees(trees: Sequence[Tree], workers: Workers) -> Row:
    """Means over all samples of all processes; 0 where a role wrote nothing."""
    sums: dict[str, list[float]] = {name: [] for name in SUMMARY}
    void = 0
    for node in (p for tree in trees for p in tree.plans):
        _add_plan(sums, node)
        for sub in node.nodes:
            _add_sub_task(sums, sub, flat=node.sample is None)
            void += sum(s.void for s in sub.samples)
    totals = workers.sum([*(sum(sums[n]) for n in SUMMARY), float(void)])
    sizes = workers.sum([float(len(sums[n])) for n in SUMMARY])
    row = {n: t / s if s else 0.0 for n, t, s in zip(SUMMARY, totals, sizes, strict=False)}
    return row | {"void_samples": totals[-1]}


def _add_plan(sums: dict[str, list[float]], node: PlanNode) -> None:
    if node.sample is None or node.reward is None:
        return
    sums["planner_reward"].append(node.reward.total)
    sums["plan_validity"].append(node.reward.form)
    sums["reward_parameters"].append(node.reward.parameters)
    sums["reward_execution"].append(node.reward.execution)
    sums["task_success"].append(node.reward.success)
    sums["plan_tokens"].append(len(node.sample.completion.token_ids))
    sums["plan_truncated"].append(not node.sample.completion.finished)
    if not isinstance(node.plan, ParseFailure):
        sums["sub_tasks"].append(len(node.plan.sub_tasks))


def _add_sub_task(sums: dict[str, list[float]], sub: SubTaskNode, flat: bool) -> None:
    sums["sub_task_unaligned"].append(sub.gold is None)
    for sample in sub.samples:
        sums["executor_tokens"].append(len(sample.completion.token_ids))
        sums["executor_truncated"].append(not sample.completion.finished)
    for reward, right in zip(sub.rewards, solved(sub), strict=True):
        sums["executor_reward"].append(reward.total)
        sums["reward_form"].append(reward.form)
        sums["reward_syntax"].append(reward.syntax)
        sums["reward_semantics"].append(reward.semantics)
        if flat:
            sums["task_success"].append(right)


def summarise_run(rows: Sequence[Row], alignment: Sequence[Row]) -> Row:
    """Means over the first and the last quarter of the steps, totals, and alignment at both ends.

    No durations: the same run gives the same numbers.
    """
    width = max(1, len(rows) // 4)
    out: Row = {"steps": float(len(rows))}
    for name in PLOT:
        out[f"{name}_first"] = sum(r[name] for r in rows[:width]) / width
        out[f"{name}_last"] = sum(r[name] for r in rows[-width:]) / width
    for name in TOTALS:
        out[name] = sum(r[name] for r in rows)
    for label, row in zip(("first", "last"), (alignment[:1], alignment[-1:]), strict=True):
        for key, value in (row[0] if row else {}).items():
            if key != "step":
                out[f"{key}_{label}"] = value
    return out


def write_csv(path: Path, rows: Sequence[Mapping[str, float]], columns: Iterable[str]) -> None:
    """One line per row, six decimals; a value that a row lacks is an empty cell."""
    names = list(columns)
    with atomic_file(path) as temporary, temporary.open("w", newline="") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["step", *names])
        for row in rows:
            cells = (f"{row[n]:.6f}" if n in row else "" for n in names)
            writer.writerow([int(row["step"]), *cells])
