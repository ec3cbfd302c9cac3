"""Stage ``evaluate``, and evaluations on demand: models on benchmarks, a report, metrics.

The stage writes reports/evaluation/ (results.json, report.md, report.html, items/<model>/…), metrics/
evaluate.json and plots/evaluation.csv. Nothing in them depends on time or place; what it took is in
``.cahl/evaluate/timing.json``, in MLflow and in the report of an evaluation on demand.
"""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import ConfigError
from cahl_core.evaluation import metrics_file, report, results_file
from cahl_core.evaluation.bfcl.overall import combined
from cahl_core.evaluation.core import Benchmark, Closes, Item, TextOnly
from cahl_core.evaluation.dev import DevTasks
from cahl_core.evaluation.harness import BenchmarkRun, choose, evaluate
from cahl_core.evaluation.metrics import SEED
from cahl_core.evaluation.model_keys import versions
from cahl_core.evaluation.models import Model, open_model, parse_models
from cahl_core.evaluation.prompt_samples import prompts_of
from cahl_core.evaluation.registry import benchmarks_of
from cahl_core.files import atomic_dir, atomic_file, read_json, write_json
from cahl_core.stage import StageRun

NATIVE = {
    "all benchmarks": [
        {
            "title": "native tool calling",
            "text": "The benchmark's messages and tools, in OpenAI's form; no prompt of ours.",
        }
    ]
}
CONTAMINATION = Path("reports/data/contamination.json")
Runs = dict[str, dict[str, BenchmarkRun]]  # by model, then by benchmark
Log = Callable[[str], None]


@dataclass(slots=True)
class Evaluation:
    """Everything that was evaluated, and the models it was evaluated on."""

    benchmarks: list[Benchmark]
    runs: Runs = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)

    @property
    def timing(self) -> dict[str, dict[str, Any]]:
        """`harness.Timing` by model and benchmark."""
        return {
            model: {name: run.timing.to_json() for name, run in own.items()}
            for model, own in self.runs.items()
        }


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
    with _closing(benchmarks):
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


def evaluate_all(
    root: Path,
    settings: Settings,
    benchmarks: Sequence[Benchmark],
    chosen: Mapping[str, Sequence[Item]],
    *,
    log: Log,
    phase: Callable[[str], AbstractContextManager[None]] | None = None,
) -> Evaluation:
    """Every model of ``evaluate.models`` on every benchmark, model by model.

    Answers are kept below ``.cahl/evaluate/records``, so an evaluation that was ended goes on. A benchmark
    that a model cannot be asked is left out for it, and that is logged (`_left_out`).

    Raises:
        CahlError: of any model that is not there, before the first one is evaluated.
    """
    wanted = settings.evaluate
    done = Evaluation(list(benchmarks))
    specs = parse_models(wanted.models)
    done.models = {spec.label: open_model(spec, settings, root) for spec in specs}
    for model in done.models.values():
        model.key()  # what is missing shows here, not after hours with the models before it
    for spec in specs:
        model = done.models[spec.label]
        own = done.runs[spec.label] = {}
        with phase(spec.label) if phase else nullcontext():
            for benchmark in benchmarks:
                if why := _left_out(model, benchmark):
                    log(f"{spec.label}, {benchmark.name}: left out, {why}")
                    continue
                own[benchmark.name] = evaluate(
                    model,
                    benchmark,
                    chosen[benchmark.name],
                    root / ".cahl/evaluate/records",
                    batch_size=wanted.batch_size,
                    samples=1 if benchmark.name == DevTasks.name else wanted.samples,
                    seed=settings.seed if wanted.temperature else 0,
                )
                log(_line(spec.label, own[benchmark.name]))
        model.close()
    if not any(done.runs.values()):
        raise ConfigError(
            "none of the models can be asked any of the benchmarks",
            "; ".join(
                {why for m in done.models.values() for b in benchmarks if (why := _left_out(m, b))}
            ),
        )
    return done


def _left_out(model: Model, benchmark: Benchmark) -> str | None:
    """Why the model is not asked this benchmark, if it is not."""
    if benchmark.name == DevTasks.name and model.spec.kind != "project":
        return "held-back tasks are rolled out with the project's own models"
    if isinstance(benchmark, TextOnly) and not model.completes:
        return "a planner and an executor answer no plain conversation"
    return None


@contextmanager
def _closing(benchmarks: Sequence[Benchmark]) -> Iterator[None]:
    """Ends the benchmarks' processes after the body."""
    try:
        yield
    finally:
        for benchmark in benchmarks:
            if isinstance(benchmark, Closes):
                benchmark.close()


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
            if run.attempts and name != DevTasks.name
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
    """Writes the whole directory, or leaves what was there."""
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


def on_demand(
    root: Path,
    settings: Settings,
    benchmarks: Sequence[Benchmark],
    out: Path | None,
    *,
    limit: int = 0,
) -> Path:
    """Evaluates outside the pipeline, prints the summary and writes a report with what it took.

    Args:
        out: directory of the report; by default one below reports/evaluations, named by the time.
        limit: so many items of each benchmark, the first by hashed id; 0 takes all.

    Returns:
        The directory.

    Raises:
        ConfigError: ``out`` holds something that is no report.
    """
    made = datetime.now().strftime("%Y%m%d-%H%M%S")
    folder = (out or root / "reports/evaluations" / made).absolute()
    check_replaceable(folder)
    chosen = {b.name: choose(b, {b.name: limit} if limit else None) for b in benchmarks}
    with _closing(benchmarks):
        done = evaluate_all(root, settings, benchmarks, chosen, log=_say)
        results = results_of(root, settings, done) | {"git": _commit(root)}
        write_report(folder, results, done, done.timing)
    print(report.summary_table(results))
    _show_tasks(done)
    print(f"report: {folder / 'report.html'}")
    return folder


def check_replaceable(folder: Path) -> None:
    """Refuses a directory whose files are not a report's: writing a report replaces all of it.

    Raises:
        ConfigError: says what is there.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir() or not (folder / results_file.NAME).is_file():
        raise ConfigError(
            f"--out {folder} is there and is no report; a report would replace all that is in it",
            "name a new or empty directory, or one that `cahl evaluate` wrote",
        )


def _show_tasks(done: Evaluation) -> None:
    """Every measure of chained calls, one table per benchmark and model."""
    from cahl_core.evaluation.chained import ChainedCalls
    from cahl_core.evaluation.chained_report import show

    for model, own in done.runs.items():
        for run in own.values():
            if isinstance(run.benchmark, ChainedCalls):
                about = run.benchmark.about()
                overlap = about.get("training_overlap", {}).get("line")
                title = f"{run.benchmark.title}: {model}"
                said = [*([overlap] if overlap else []), *about["notes"]]
                show(title, run.benchmark.measures(run.scores), run.scores, said)
                print()


def _say(message: str) -> None:
    import sys

    print(f"[evaluate] {message}", file=sys.stderr, flush=True)


def _commit(root: Path) -> str | None:
    """The project's commit, with ``+`` where files differ from it."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _line(label: str, run: BenchmarkRun) -> str:
    right = sum(s.correct for s in run.scores)
    taken = f", {run.timing.seconds:.0f} s" if run.timing.attempts else ", all from earlier runs"
    return f"{label}, {run.benchmark.name}: {right:g} of {len(run.scores)}{taken}"


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
