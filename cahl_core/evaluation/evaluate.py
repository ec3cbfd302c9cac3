"""Stage ``evaluate``: base, SFT and CAHL models on BFCL v3 and on the held-back dev tasks.

Writes reports/evaluation/ (results.json, report.md, report.html, items/<model>.jsonl),
metrics/evaluate.json and plots/bfcl_by_category.csv. Nothing in them depends on time or place.
"""

from __future__ import annotations

import csv
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.call_metrics import call_counts, plan_is_valid
from cahl_core.evaluation import bfcl, dev, report
from cahl_core.evaluation.bfcl import BfclItem, Scored
from cahl_core.evaluation.checker import BfclChecker, Verdict
from cahl_core.evaluation.dev import DevRecord
from cahl_core.evaluation.runner import (
    ModelRun,
    answer_of,
    arithmetic,
    bfcl_requests,
    load_model,
    run_key,
    versions,
)
from cahl_core.files import atomic_dir, atomic_file, digest, sha256, write_json, write_jsonl
from cahl_core.records import ToolTask
from cahl_core.serving.results import AgentResult
from cahl_core.stage import StageRun

ADAPTERS = {"base": None, "sft": Path("models/sft"), "cahl": Path("models/cahl")}
DECODING = {
    "hierarchical": "greedy; one plan, then one text per sub-task",
    "low_only": "greedy; one text with all calls, no plan",
    "single_level": "greedy; plan and calls in one text",
}
HEADLINE = ("bfcl_accuracy", "irrelevance_strict", "plan_validity", "call_validity", "mean_reward")


@dataclass(frozen=True, slots=True)
class ModelScores:
    """One model's texts and what became of them."""

    results: list[AgentResult]
    verdicts: list[Verdict]
    dev: list[DevRecord]
    summary: dict[str, Any]


def run(stage: StageRun) -> None:
    """Evaluates every model of ``evaluate.models``.

    Raises:
        EvaluationError: the checkers failed; ModelError: weights cannot be loaded.
    """
    settings, root = stage.settings.evaluate, stage.root
    checker = BfclChecker(root / "data/raw/bfcl-v3", settings.checker_timeout)
    items, counts = bfcl.load_items(checker, None if settings.full else settings.sample)
    tasks = dev.load_tasks(root / "data/prepared/dev.jsonl", settings.dev_tasks)
    stage.log(f"{len(items)} BFCL items, {len(tasks)} dev tasks, models {settings.models}")
    stage.log_input(root / "data/raw/bfcl-v3", "bfcl-v3", "evaluation")
    stage.log_input(root / "data/prepared/dev.jsonl", "dev", "evaluation")
    scores: dict[str, ModelScores] = {}
    for name in settings.models:
        with stage.phase(name):
            scores[name] = evaluate_model(stage, name, checker, items, tasks)
        stage.log(_line(name, scores[name].summary))
        stage.log_metrics(flat({name: scores[name].summary}))
    results = _results(stage, items, tasks, counts, scores)
    _write(root, results, items, scores)
    stage.log_artifact(root / "reports/evaluation", "evaluation")
    stage.metadata(
        bfcl_items=len(items),
        summary=report.summary_table(results),
        **flat({n: {k: s.summary[k] for k in HEADLINE} for n, s in scores.items()}),
    )


def evaluate_model(
    stage: StageRun,
    name: str,
    checker: BfclChecker,
    items: Sequence[BfclItem],
    tasks: Sequence[ToolTask],
) -> ModelScores:
    """Texts of one model (from the cache where they are), official verdicts, measures."""
    settings = stage.settings
    backbone = stage.root / "data/backbone"
    folder = ADAPTERS[name]
    adapters = None if folder is None else stage.root / folder
    cache = stage.cache_dir(run_key(settings, backbone, adapters))
    model = ModelRun(
        name, lambda: load_model(settings, backbone, adapters), cache, settings.evaluate.batch_size
    )
    results = model.answer(bfcl_requests(items))
    records = model.dev(tasks)
    model.close()
    verdicts = checker.score([answer_of(i, r) for i, r in zip(items, results, strict=True)])
    summary = summarise(items, results, verdicts, records, settings.evaluate.full)
    return ModelScores(results, verdicts, records, summary)


def summarise(
    items: Sequence[BfclItem],
    results: Sequence[AgentResult],
    verdicts: Sequence[Verdict],
    records: Sequence[DevRecord],
    full: bool,
) -> dict[str, Any]:
    """The model's entry of metrics/evaluate.json; a rate without observations is ``None``."""
    scored = [
        Scored(i.category, v, r.outcome)
        for i, v, r in zip(items, verdicts, results, strict=True)
    ]  # fmt: skip
    plans = [
        plan_is_valid(r.plan, i.tools)
        for i, r in zip(items, results, strict=True)
        if r.form != "low_only"
    ]
    plans += [r["plan_valid"] for r in records if r["plan_valid"] is not None]
    counts = [
        call_counts([s.execution for s in r.steps], i.tools)
        for i, r in zip(items, results, strict=True)
    ]
    valid = sum(v for v, _ in counts) + sum(r["calls_valid"] for r in records)
    attempted = sum(a for _, a in counts) + sum(r["calls_attempted"] for r in records)
    return {
        **bfcl.summary(scored, full),
        "plan_validity": sum(plans) / len(plans) if plans else None,
        "call_validity": valid / attempted if attempted else None,
        "calls_attempted": attempted,
        **dev.dev_summary(records),
        "by_category": bfcl.by_category(scored),
    }


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers as ``a/b/c`` keys; ``None`` is left out."""
    found: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif value is not None:
            found[f"{prefix}{key}"] = float(value)
    return found


def _results(
    stage: StageRun,
    items: Sequence[BfclItem],
    tasks: Sequence[ToolTask],
    counts: Mapping[str, int],
    scores: Mapping[str, ModelScores],
) -> dict[str, Any]:
    """Everything the report shows, and what is needed to repeat it."""
    settings, root = stage.settings, stage.root
    ids = {c: [i.id for i in items if i.category == c] for c in bfcl.SINGLE_TURN}
    model = settings.model
    return {
        "benchmark": bfcl.VERSION,
        "full": settings.evaluate.full,
        "models": {name: s.summary for name, s in scores.items()},
        "items": {c: {"evaluated": len(ids[c]), "of": counts[c]} for c in ids if ids[c]},
        "not_evaluated": {c: n for c, n in counts.items() if not ids.get(c)},
        "sample_digest": digest(ids),
        "sample_ids": {c: found for c, found in ids.items() if found},
        "dev_ids": [t.id for t in tasks],
        "protocol": {
            "form": model.form,
            "decoding": DECODING[model.form],
            "prompt": "cahl's own prompts, not BFCL's system prompt",
            "tool_rendering": model.tool_rendering,
            "max_context": model.max_context,
            "plan_tokens": settings.evaluate.plan_tokens,
            "call_tokens": settings.evaluate.call_tokens,
            "backbone": model.backbone,
            "device_and_dtype": arithmetic(settings),
        },
        "versions": {**versions(), "python": platform.python_version()},
        "data": {
            "bfcl_checker_sha256": sha256(
                root / "data/raw/bfcl-v3/bfcl_eval/eval_checker/ast_eval/ast_checker.py"
            ),
            "dev_sha256": sha256(root / "data/prepared/dev.jsonl"),
        },
        "settings_digest": digest(
            [settings.evaluate.model_dump(mode="json"), model.model_dump(mode="json")]
        ),
        "seed": settings.seed,
        "unanswerable_labels_kept": list(bfcl.UNANSWERABLE),
    }


def _write(
    root: Path,
    results: dict[str, Any],
    items: Sequence[BfclItem],
    scores: Mapping[str, ModelScores],
) -> None:
    records = {name: item_records(items, s) for name, s in scores.items()}
    with atomic_dir(root / "reports/evaluation") as folder:
        write_json(folder / "results.json", results)
        (folder / "report.md").write_text(report.markdown(results, records), encoding="utf-8")
        (folder / "report.html").write_text(report.html(results, records), encoding="utf-8")
        for name, rows in records.items():
            write_jsonl(folder / "items" / f"{name}.jsonl", rows)
            write_jsonl(folder / "items" / f"{name}-dev.jsonl", scores[name].dev)
    with atomic_file(root / "plots/bfcl_by_category.csv") as path, path.open("w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["model", "category", "accuracy", "n"])
        for name, s in scores.items():
            for category, row in s.summary["by_category"].items():
                writer.writerow([name, category, round(row["accuracy"], 6), row["n"]])
    metrics = {name: s.summary for name, s in scores.items()}
    write_json(root / "metrics/evaluate.json", {"n": len(items), **metrics})


def item_records(items: Sequence[BfclItem], scores: ModelScores) -> list[dict[str, Any]]:
    """One record per BFCL item: request, texts, calls, verdict."""
    return [
        {
            "id": item.id,
            "category": item.category,
            "valid": verdict.valid,
            "outcome": result.outcome,
            "error_type": verdict.error_type,
            "error": result.too_long or verdict.error,
            "request": item.messages[-1].content,
            "tools": [t.name for t in item.tools],
            "plan_text": result.plan_text,
            "texts": [s.text for s in result.steps],
            "calls": [c.to_json() for c in result.calls],
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
        }
        for item, result, verdict in zip(items, scores.results, scores.verdicts, strict=True)
    ]


def _line(name: str, summary: Mapping[str, Any]) -> str:
    return f"{name}: " + ", ".join(f"{key} {report.number(summary[key])}" for key in HEADLINE)
