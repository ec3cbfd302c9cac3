"""Stage ``evaluate``: the models of the profile on its benchmarks, a report, metrics.

Writes reports/evaluation/ (results.json, report.md, report.html, items/<model>/…), metrics/evaluate.json
and plots/evaluation.csv. Nothing in them depends on time or place; what it took is in
``.cahl/evaluate/timing.json`` and in MLflow.
"""

from __future__ import annotations

import csv
from pathlib import Path

from cahl_core.evaluation import metrics_file, report, results_file
from cahl_core.evaluation.dev import DevTasks
from cahl_core.evaluation.harness import choose
from cahl_core.evaluation.registry import benchmarks_of
from cahl_core.evaluation.results import results_of, write_report
from cahl_core.evaluation.running import closing, evaluate_all
from cahl_core.files import atomic_file, write_json
from cahl_core.stage import StageRun


def run(stage: StageRun) -> None:
    """Evaluates every model of ``evaluate.models`` on ``evaluate.benchmarks`` and the dev tasks.

    Raises:
        EvaluationError: the checkers failed; ModelError: weights cannot be loaded.
    """
    settings, root = stage.settings.evaluate, stage.root
    benchmarks = benchmarks_of(root, stage.settings)
    if settings.dev_tasks:
        dev = DevTasks(root / "data/prepared", settings.dev_tasks, stage.settings)
        benchmarks.append(dev)
        for file in dev.files:
            stage.log_input(file, "dev", "evaluation")
    chosen = {b.name: choose(b, None if settings.full else settings.sample) for b in benchmarks}
    stage.log(", ".join(f"{name}: {len(items)} items" for name, items in chosen.items()))
    with closing(benchmarks):
        done = evaluate_all(
            root, stage.settings, benchmarks, chosen, log=stage.log, phase=stage.phase
        )
        results = results_of(root, stage.settings, done)
        write_report(root / "reports/evaluation", results, done)
    metrics = metrics_file.metrics_of(results)
    stage.log_metrics(metrics_file.flat(metrics))
    write_json(root / "metrics/evaluate.json", metrics)
    _write_plot(root / "plots/evaluation.csv", results)
    write_json(root / ".cahl/evaluate/timing.json", done.timing)
    stage.log_metrics(metrics_file.flat({"timing": done.timing}))
    stage.log_artifact(root / "reports/evaluation", "evaluation")
    stage.metadata(
        items=sum(map(len, chosen.values())),
        summary=report.summary_table(results),
        **metrics_file.headline(metrics),
    )


def _write_plot(path: Path, results: results_file.Results) -> None:
    with atomic_file(path) as temporary, temporary.open("w") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["model", "category", "accuracy", "low", "high", "n"])
        for model, own in results["results"].items():
            for name, summary in own.items():
                for category, row in summary["by_category"].items():
                    found = row["accuracy"]
                    values = [round(found[k], 6) for k in ("value", "low", "high")]
                    writer.writerow([model, f"{name}/{category}", *values, row["n"]])
