"""Evaluations outside the pipeline: any benchmarks, a summary on the terminal, a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from cahl_core.config import Settings
from cahl_core.errors import ConfigError
from cahl_core.evaluation import report
from cahl_core.evaluation.chained import ChainedCalls
from cahl_core.evaluation.chained_report import show
from cahl_core.evaluation.core import Benchmark
from cahl_core.evaluation.harness import choose
from cahl_core.evaluation.results import results_of, write_report
from cahl_core.evaluation.running import Evaluation, closing, evaluate_all
from cahl_core.lineage import git_state

REPORT = frozenset({"results.json", "report.md", "report.html", "items", "timing.json"})


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
    with closing(benchmarks):
        done = evaluate_all(root, settings, benchmarks, chosen, log=_say)
        results = results_of(root, settings, done) | {"git": _commit(root)}
        write_report(folder, results, done, done.timing)
    print(report.summary_table(results))
    _show_tasks(done)
    print(f"report: {folder / 'report.html'}")
    return folder


def _commit(root: Path) -> str | None:
    """The project's commit, with ``+`` where files differ from it."""
    state = git_state(root)
    return None if state is None else state[0] + "+" * state[1]


def check_replaceable(folder: Path) -> None:
    """Refuses a directory with other files than a report's: writing a report replaces all of it.

    Raises:
        ConfigError: says what is there.
    """
    if not folder.exists():
        return
    if not folder.is_dir() or {entry.name for entry in folder.iterdir()} - REPORT:
        raise ConfigError(
            f"--out {folder} holds more than a report, which would replace all that is in it",
            "name a new or empty directory, or one that `cahl evaluate` wrote",
        )


def _show_tasks(done: Evaluation) -> None:
    """Every measure of chained calls, one table per benchmark and model."""
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
    print(f"[evaluate] {message}", file=sys.stderr, flush=True)
