"""Stage ``prepare``: raw sources to checked `ToolTask` records, plans, derived tasks, two splits.

Every source record ends in exactly one place: kept, quarantined with a reason, or held out.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cahl_core.config import PrepareSettings
from cahl_core.datasets.derive import KINDS, derive
from cahl_core.datasets.intake import Sorted, sort_records
from cahl_core.datasets.overlap import Benchmark, normalise, read_bfcl
from cahl_core.datasets.prompts import PromptMeter
from cahl_core.errors import ConfigError, DataError
from cahl_core.files import atomic_dir, digest, write_json, write_jsonl
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun

PREPARED = Path("data") / "prepared"
METRICS = Path("metrics") / "prepare.json"


def run(stage: StageRun) -> None:
    """Writes ``data/prepared/`` and ``metrics/prepare.json``.

    Raises:
        StageInputError: a raw source or the backbone is missing.
        DataError: no record is usable, or a critical expectation failed (outputs are written).
    """
    settings = stage.settings.prepare
    with stage.phase("load"):
        meter = PromptMeter.load(stage.root / "data" / "backbone", stage.settings.model, settings)
        benchmark = _benchmark(stage)
    with stage.phase("check"):
        found = sort_records(stage, settings, meter, benchmark)
    with stage.phase("derive"):
        train, dev, dropped = split(found.kept, settings, meter, benchmark)
    with stage.phase("write"):
        _write(stage, found, meter, train, dev, dropped)


def _benchmark(stage: StageRun) -> Benchmark:
    folder = stage.root / "data" / "raw" / "bfcl-v3"
    if folder.is_dir():
        return read_bfcl(folder)
    stage.log(f"{folder} is missing: overlap with BFCL is NOT checked (fetch.sources: bfcl-v3)")
    return Benchmark()


def split(
    kept: Sequence[ToolTask], settings: PrepareSettings, meter: PromptMeter, benchmark: Benchmark
) -> tuple[list[ToolTask], list[ToolTask], Counter[str]]:
    """Train and dev tasks with their derived ones, and why derived tasks were dropped.

    The dev split has ``dev_tasks`` tasks in the same mixture as train; a derived task is always in
    the split of the record it was derived from, and no request text is in both.

    Raises:
        DataError: no record was kept; ConfigError: the shares leave no place for original records.
    """
    shares = {kind: float(getattr(settings, f"{kind}_share")) for kind in KINDS}
    original = 1 - sum(shares.values())
    if original <= 0:
        raise ConfigError(
            f"the shares of derived tasks sum to {1 - original:g}, must be below 1",
            "lower " + ", ".join(f"prepare.{kind}_share" for kind in KINDS),
        )
    if not kept:
        raise DataError(
            "no record of any source is usable", "data/prepared/quarantine.jsonl has the reasons"
        )
    ordered = sorted(kept, key=lambda t: digest([settings.seed, t.id]))
    size = min(max(round(settings.dev_tasks * original), 1), max(len(ordered) // 4, 1))
    dev_parents, parents = ordered[:size], ordered[size:] or ordered
    dropped: Counter[str] = Counter()
    taken: set[tuple[str, ...]] = set()
    splits = []
    for label, group, total in (
        ("dev", dev_parents, settings.dev_tasks),
        ("train", parents, round(len(parents) / original)),
    ):
        counts = {kind: round(total * share) for kind, share in shares.items()}
        made = derive(group, counts, settings.seed, label)
        dropped["not_made"] += sum(counts.values()) - len(made)
        tasks = list(group)
        for task in made:
            text = normalise(task.messages[-1].content)
            if text in taken:
                dropped["duplicate"] += 1
            elif benchmark.overlap(task.messages[-1].content) is not None:
                dropped["benchmark_overlap"] += 1
            elif (problem := meter.problem(meter.measure(task))) is not None:
                dropped[problem[0]] += 1
            else:
                tasks.append(task)
        taken |= {normalise(t.messages[-1].content) for t in tasks}
        splits.append(sorted(tasks, key=lambda t: digest([settings.seed, "order", t.id])))
    return splits[1], splits[0], +dropped


def _write(
    stage: StageRun,
    found: Sorted,
    meter: PromptMeter,
    train: list[ToolTask],
    dev: list[ToolTask],
    dropped: Counter[str],
) -> None:
    from cahl_core.datasets.expectations import frame, page, validate

    table = frame(train, dev, meter, found.faulty_share)
    report = validate(table, stage.settings)
    with atomic_dir(stage.root / PREPARED) as folder:
        write_jsonl(folder / "train.jsonl", (t.to_json() for t in train))
        write_jsonl(folder / "dev.jsonl", (t.to_json() for t in dev))
        write_jsonl(folder / "quarantine.jsonl", (q.to_json() for q in found.quarantined))
        write_json(folder / "expectations.json", report)
        (folder / "expectations.html").write_text(page(report), encoding="utf-8")
    copies = stage.root / ".cahl" / "prepare"  # DVC empties the outs of a failed stage's next run
    copies.mkdir(parents=True, exist_ok=True)
    for name in ("expectations.html", "expectations.json", "quarantine.jsonl"):
        shutil.copyfile(stage.root / PREPARED / name, copies / name)
    summary = summarise(found, meter, train, dev, dropped)
    write_json(stage.root / METRICS, summary)
    _report(stage, summary, report)


def summarise(
    found: Sorted,
    meter: PromptMeter,
    train: Sequence[ToolTask],
    dev: Sequence[ToolTask],
    dropped: Counter[str],
) -> dict[str, Any]:
    """The content of ``metrics/prepare.json``."""
    sources = {
        name: {
            "in": found.seen[name],
            "kept": sum(t.source == name for t in found.kept),
            "held_out": found.held_out[name],
            "quarantined": dict(
                sorted(Counter(q.rule for q in found.quarantined if q.source == name).items())
            ),
        }
        for name in found.seen
    }
    kinds = Counter(str(t.meta.get("derivation", "original")) for t in train)
    return {
        "train_tasks": len(train),
        "dev_tasks": len(dev),
        "train_by_kind": dict(sorted(kinds.items())),
        "derived_dropped": dict(sorted(dropped.items())),
        "faulty_share": round(found.faulty_share, 4),
        "sources": sources,
        "planner_prompt_tokens": meter.renderings([*train, *dev]),
    }


def _report(stage: StageRun, summary: dict[str, Any], report: dict[str, Any]) -> None:
    stage.log_metrics(
        {
            "train_tasks": summary["train_tasks"],
            "dev_tasks": summary["dev_tasks"],
            "faulty_share": summary["faulty_share"],
        }
    )
    stage.log_artifact(stage.root / PREPARED / "expectations.html")
    stage.metadata(
        train_tasks=summary["train_tasks"],
        dev_tasks=summary["dev_tasks"],
        train_by_kind=str(summary["train_by_kind"]),
        quarantined=sum(sum(s["quarantined"].values()) for s in summary["sources"].values()),
        expectations="passed" if report["success"] else "failed",
    )
    stage.log(
        f"train {summary['train_tasks']} {summary['train_by_kind']}, dev {summary['dev_tasks']}"
    )
    failed = [r for r in report["results"] if not r["success"]]
    for result in failed:
        stage.log(f"expectation failed ({result['severity']}): {result['expectation']} on "
                  f"{result['column']}, observed {result['observed']}")  # fmt: skip
    if not report["success"]:
        names = [
            f"{r['expectation']}({r['column']})" for r in failed if r["severity"] == "critical"
        ]
        raise DataError(
            f"critical expectations failed: {', '.join(names)}",
            f"read expectations.html and quarantine.jsonl in {stage.root / '.cahl' / 'prepare'}",
        )
