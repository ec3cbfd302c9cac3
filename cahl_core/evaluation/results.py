"""An evaluation as results.json and its report's directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.evaluation import report, results_file
from cahl_core.evaluation.bfcl.overall import combined
from cahl_core.evaluation.core import OwnRollouts
from cahl_core.evaluation.metrics import SEED
from cahl_core.evaluation.model_keys import versions
from cahl_core.evaluation.prompt_samples import prompts_of
from cahl_core.evaluation.running import Evaluation
from cahl_core.files import atomic_dir, read_json, write_json

CONTAMINATION = Path("reports/data/contamination.json")
NATIVE = {
    "all benchmarks": [
        {
            "title": "native tool calling",
            "text": "The benchmark's messages and tools, in OpenAI's form; no prompt of ours.",
        }
    ]
}


def results_of(root: Path, settings: Settings, done: Evaluation) -> results_file.Results:
    """All results as JSON (`results_file.build`), the prompts of each model's form with them."""
    contamination = root / CONTAMINATION
    facts = {label: model.facts() for label, model in done.models.items()}
    prompts = {
        label: NATIVE
        if facts[label].get("native")
        else {
            name: prompts_of(
                run.benchmark, run.attempts[0].item, model.form, _rendering(facts[label])
            )
            for name, run in done.runs[label].items()
            if run.attempts and not isinstance(run.benchmark, OwnRollouts)
        }
        for label, model in done.models.items()
    }
    scores = {m: {n: run.scores for n, run in own.items()} for m, own in done.runs.items()}
    counts = {b.name: b.about().get("counts", {}) for b in done.benchmarks}
    built = results_file.build(
        scores,
        done.benchmarks,
        models=facts,
        config={
            "profile": settings.profile,
            "model": settings.model.model_dump(mode="json"),
            # of models their facts are told, their addresses may hold paths
            "evaluate": settings.evaluate.model_dump(mode="json") | {"models": list(done.models)},
        },
        versions=versions(),
        seeds={"draws": settings.seed, "bootstrap": SEED},
        prompts=prompts,
        contamination=read_json(contamination) if contamination.exists() else None,
    )
    return built | {"combined": {m: combined(own, counts) for m, own in scores.items()}}


def _rendering(facts: Mapping[str, Any]) -> Any:
    return facts.get("tool_rendering") or "compact"


def write_report(
    folder: Path,
    results: results_file.Results,
    done: Evaluation,
    timing: Mapping[str, Any] | None = None,
) -> None:
    """Writes the whole directory, or leaves what was there.

    Args:
        timing: `Evaluation.timing`, for a directory that may differ from run to run; also in timing.json.
    """
    items = {
        model: {
            name: [
                results_file.item_line(score, record, run.benchmark.example(attempt, record))
                for attempt, record, score in zip(
                    run.attempts, run.records, run.scores, strict=True
                )
            ]
            for name, run in own.items()
        }
        for model, own in done.runs.items()
    }
    with atomic_dir(folder) as temporary:
        results_file.write(temporary, results, items)
        report.write(temporary, results, items, timing)
        if timing is not None:
            write_json(temporary / "timing.json", timing)
