"""Stage ``prepare``: raw sources to checked `ToolTask` records, plans, derived tasks, three splits.

Every prompt that a source gives ends in exactly one place: kept, quarantined with a reason, or held out.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.config import PrepareSettings
from cahl_core.datasets import output
from cahl_core.datasets.assemble import Assembler, Splits
from cahl_core.datasets.change import read_pool
from cahl_core.datasets.contamination import read_benchmarks
from cahl_core.datasets.contamination import report as contamination_report
from cahl_core.datasets.intake import Intake, read_source, take_in
from cahl_core.datasets.judge import Judge
from cahl_core.datasets.parallel import processes, warm
from cahl_core.datasets.prompts import PromptMeter
from cahl_core.datasets.sources import Source, load_sources, pick, require_use
from cahl_core.datasets.splits import DEV, SPLITS, TRAIN, UNSEEN
from cahl_core.datasets.store import LineStore
from cahl_core.errors import DataError
from cahl_core.files import atomic_dir, write_json
from cahl_core.records import ToolSpec
from cahl_core.stage import StageRun

PREPARED = Path("data") / "prepared"
REPORTS = Path("reports") / "data"  # apart from the tasks: a new page is no reason to train again
METRICS = Path("metrics") / "prepare.json"
COPIED = (REPORTS / "report.html", REPORTS / "expectations.json", PREPARED / "quarantine.jsonl")
MEASURED = 200  # tasks whose prompt length is compared under both renderings
MAX_WORKERS = 8


@dataclass
class Prepared:
    """All that the outputs are written from."""

    found: Intake
    splits: Splits
    contamination: dict[str, Any]
    meter: PromptMeter


def run(stage: StageRun) -> None:
    """Writes ``data/prepared/`` and ``metrics/prepare.json``.

    Raises:
        StageInputError: a raw source or the backbone is missing.
        LicenceError: a source may not be trained on, or not for ``fetch.use``.
        DataError: no record is usable, or a critical expectation failed (outputs are written).
    """
    settings = stage.settings.prepare
    sources = _sources(stage)
    warm(_workers(settings))
    with stage.phase("load"):
        meter = PromptMeter.load(stage.root / "data" / "backbone", stage.settings.model, settings)
        benchmarks, unchecked = read_benchmarks(stage.root, _tests(stage))
        for name in unchecked:
            stage.log(f"overlap with {name} is NOT checked")
        judge = Judge(meter, benchmarks, stage.settings, _pool(stage, sources))
    scratch = stage.root / ".cahl" / "prepare" / f"work-{os.getpid()}"
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        stores = [stack.enter_context(LineStore(scratch / f"{n}.jsonl")) for n in range(5)]
        run_judge = stack.enter_context(processes(judge, _workers(settings)))
        with stage.phase("check"):
            found = take_in(stage, sources, settings, run_judge, stores[:3])
        with stage.phase("assemble"):
            splits = Assembler(found, judge, run_judge).assemble(stores[3], stores[4])
        with stage.phase("write"):
            offered = output.offered_tools(splits)
            contamination = contamination_report(benchmarks, unchecked, found.contaminated, offered)
            _write(stage, Prepared(found, splits, contamination, meter))


def _sources(stage: StageRun) -> list[Source]:
    known = load_sources(stage.root)
    sources = [pick(known, name, ("data",)) for name in stage.settings.prepare.sources]
    for source in sources:
        require_use(source, stage.settings.fetch.use, "train")
    return sources


def _pool(stage: StageRun, sources: list[Source]) -> tuple[ToolSpec, ...]:
    """The tools that may join other records, where the settings ask for any."""
    settings = stage.settings.prepare
    if not settings.distractors:
        return ()
    return tuple(read_pool(read_source(stage.root, source, settings) for source in sources))


def _tests(stage: StageRun) -> list[Source]:
    known = load_sources(stage.root)
    return [
        pick(known, name, ("benchmark", "data")) for name in stage.settings.prepare.decontaminate
    ]


def _workers(settings: PrepareSettings) -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return settings.workers or min(cores or 1, MAX_WORKERS)


def _write(stage: StageRun, made: Prepared) -> None:
    from cahl_core.datasets import drift, expectations, report, statistics

    with atomic_dir(stage.root / PREPARED) as folder:
        output.write_splits(folder, made.splits, stage.settings.prepare.shard_rows)
        output.write_quarantine(folder, made.found)
        tasks = output.write_facts(folder, made.splits)
    sources = {name: c.to_json() for name, c in made.found.counts.items()}
    summary = statistics.summarise(tasks, sources, made.contamination)
    frames = {"tasks": tasks, "raw": output.raw_frame(made.found)}
    suites = expectations.run_suites(frames, stage.settings)
    page = report.page(summary, suites, made.contamination, sources, output.examples(made.found))
    with atomic_dir(stage.root / REPORTS) as folder:
        write_json(folder / "contamination.json", made.contamination)
        write_json(folder / "statistics.json", summary)
        write_json(folder / "expectations.json", suites)
        (folder / "report.html").write_text(page, encoding="utf-8")
    copies = stage.root / ".cahl" / "prepare"  # DVC empties the outs of a failed stage's next run
    for path in COPIED:
        shutil.copyfile(stage.root / path, copies / path.name)
    metrics = summarise(made, stage.settings.prepare)
    write_json(stage.root / METRICS, metrics)
    # what failed is no version to compare with
    moved = drift.record(copies, summary) if suites["success"] else {"verdict": "not compared"}
    _report(stage, metrics, suites, moved)


def summarise(made: Prepared, settings: PrepareSettings) -> dict[str, Any]:
    """The content of ``metrics/prepare.json``."""
    order = made.splits.order
    sample = [*order[TRAIN], *order[DEV]][:MEASURED]
    return {
        **{f"{split}_tasks": len(order[split]) for split in SPLITS},
        "train_by_kind": output.kinds(made.splits, TRAIN),
        "derived_dropped": dict(sorted((+made.splits.dropped).items())),
        "faulty_share": round(made.found.faulty_share, 4),
        "sources": {name: c.to_json() for name, c in made.found.counts.items()},
        "contaminated": {
            name: found["exact"] + found["ten_gram"]
            for name, found in made.contamination["benchmarks"].items()
        },
        "planner_prompt_tokens": made.meter.renderings([made.splits.tasks.task(n) for n in sample]),
    }


def _report(
    stage: StageRun, metrics: dict[str, Any], suites: dict[str, Any], moved: dict[str, Any]
) -> None:
    stage.log_metrics(
        {
            "train_tasks": metrics["train_tasks"],
            "dev_tasks": metrics["dev_tasks"],
            "faulty_share": metrics["faulty_share"],
        }
    )
    for name in ("report.html", "contamination.json", "statistics.json"):
        stage.log_artifact(stage.root / REPORTS / name)
    stage.metadata(
        train_tasks=metrics["train_tasks"],
        dev_tasks=metrics["dev_tasks"],
        unseen_tool_tasks=metrics[f"{UNSEEN}_tasks"],
        train_by_kind=str(metrics["train_by_kind"]),
        quarantined=sum(sum(s["quarantined"].values()) for s in metrics["sources"].values()),
        expectations="passed" if suites["success"] else "failed",
        drift=moved["verdict"],
    )
    stage.log(
        f"train {metrics['train_tasks']} {metrics['train_by_kind']}, dev {metrics['dev_tasks']}, "
        f"dev of unseen tools {metrics[f'{UNSEEN}_tasks']}"
    )
    _stop_on_failure(stage, suites)


def _stop_on_failure(stage: StageRun, suites: dict[str, Any]) -> None:
    failed = [
        (name, result)
        for name, suite in suites["suites"].items()
        for result in suite["results"]
        if not result["success"]
    ]
    for name, r in failed:
        stage.log(f"expectation failed ({r['severity']}, {name}): {r['expectation']} on "
                  f"{r['column']}, observed {r['observed']}")  # fmt: skip
    if not suites["success"]:
        names = [
            f"{r['expectation']}({r['column']})" for _, r in failed if r["severity"] == "critical"
        ]
        raise DataError(
            f"critical expectations failed: {', '.join(names)}",
            f"read report.html and quarantine.jsonl in {stage.root / '.cahl' / 'prepare'}",
        )
