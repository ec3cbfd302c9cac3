"""What a reader of the table must know: what is missing, what was not equal, what a number means."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

FEW_SEEDS = 5


def notes(results: Mapping[str, Any]) -> list[str]:
    """Sentences, the ones about what went wrong first."""
    return [
        *_missing(results),
        *_budget(results),
        *_seeds(results),
        *_origin(results),
        *_meaning(results),
    ]


def _missing(results: Mapping[str, Any]) -> Iterator[str]:
    cells = results["cells"]
    for cell in cells:
        if cell["status"] != "finished":
            reason = f": {cell['error']}" if cell["error"] else ""
            yield f"MISSING: cell {cell['id']} is {cell['status']}{reason}."
    void = sum(r["void"] for t in results["tables"].values() for m in t.values() for r in m)
    if void:
        yield f"{void} runs of the evaluation were broken by their environment and are left out."
    skipped = [c["id"] for c in cells if c["skipped_updates"]]
    if skipped:
        yield f"Updates with a non-finite loss or gradient were skipped in {', '.join(skipped)}."


def _budget(results: Mapping[str, Any]) -> Iterator[str]:
    budget = results["grid"]["budget"]["sampled_tokens"]
    used = {
        c["id"]: c["sampled_tokens"]
        for c in results["cells"]
        if c["trains"] and c["status"] == "finished"
    }
    if not used:
        return
    low, high = min(used.values()), max(used.values())
    yield (
        f"Budget: {budget:,} sampled tokens of training per cell. A cell ends with the step that "
        f"reaches it; used were {low:,.0f} to {high:,.0f} ({low / budget - 1:+.1%} to "
        f"{high / budget - 1:+.1%}). Tokens of SFT and of evaluations are not in it."
    )
    short = [name for name, tokens in used.items() if tokens < budget]
    if short:
        steps = results["grid"]["budget"]["max_steps"]
        yield f"NOT EQUAL: budget.max_steps={steps} ended {', '.join(short)} below the budget."


def _seeds(results: Mapping[str, Any]) -> Iterator[str]:
    grid = results["grid"]
    count = len(grid["seeds"])
    if count == 1:
        yield "One seed: intervals are over tasks only and say nothing about another training run."
    elif count < FEW_SEEDS:
        yield (
            f"{count} seeds: where runs differ more between seeds than between tasks, a bootstrap over "
            "so few seeds is too narrow (docs/experiments.md has its measured coverage)."
        )
    if not grid["sft"]["per_seed"] and count > 1:
        yield (
            "All seeds begin with the same SFT adapters: they differ in the order of tasks and in what "
            "was sampled, not in the warm start."
        )


def _origin(results: Mapping[str, Any]) -> Iterator[str]:
    done = [c for c in results["cells"] if c["status"] == "finished"]
    commits = {c.get("code", {}).get("mlflow.source.git.commit", "unknown")[:10] for c in done}
    if len(commits) > 1:
        yield f"MIXED CODE: the cells were made at different commits ({', '.join(sorted(commits))})."
    elif commits:
        yield f"Made at commit {commits.pop()}."
    if any(c.get("code", {}).get("git.dirty") == "True" for c in done):
        yield "Some cells were made with uncommitted changes of the code."
    for what in ("versions", "numbers"):
        kinds = {str(c.get(what)) for c in done}
        if len(kinds) > 1:
            yield f"MIXED {what.upper()}: {'; '.join(sorted(kinds))}."


def _meaning(results: Mapping[str, Any]) -> Iterator[str]:
    counts = {
        split: modes["greedy"][0]["tasks"]
        for split, modes in results["tables"].items()
        if modes["greedy"]
    }
    scope = ", ".join(f"{count} tasks of {split}" for split, count in counts.items())
    samples = results["grid"]["evaluate"]["samples"]
    sampled = f" Sampled: {samples} runs per task at the roles' temperatures." if samples else ""
    yield (
        f"Evaluation: {scope or 'none yet'}, the same for all cells. Greedy: one run per task.{sampled} "
        "Histories are those of training."
    )
    yield (
        "Intervals: 95 %, percentile bootstrap over seeds and tasks (crossed, 10,000 resamples); "
        "differences are paired on seeds and tasks. In brackets: low to high; † all outcomes are equal, "
        "Wilson's interval over the tasks; [–] no spread to resample; – no observation."
    )
    yield (
        "Reward: R_sem of all calls of the task against all gold calls, in [0, 1], the one that every "
        "arm has; planner and executor reward are those that training used, which differ between forms. "
        "Success: every gold call was made with exactly its values. low_only and single_level write no "
        "plan of their own: plan validity and adherence are – there."
    )
