"""Stage ``prepare``: raw sources to checked `ToolTask` records, plans, derived tasks, two splits.

Every source record ends in exactly one place: kept, quarantined with a reason, or held out.
"""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cahl_core.config import PrepareSettings
from cahl_core.datasets import nestful
from cahl_core.datasets.checks import LIMITS, Quarantined, check, parse, quarantine
from cahl_core.datasets.derive import KINDS, derive, with_plan
from cahl_core.datasets.overlap import Benchmark, normalise, read_bfcl
from cahl_core.datasets.prompts import PromptMeter
from cahl_core.datasets.sources import Source, load_sources, pick
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.files import atomic_dir, digest, read_jsonl, write_json, write_jsonl
from cahl_core.progress import progress
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun

Reader = Callable[[Path, int], Iterator[dict[str, Any]]]
HOLDOUT = Path("data") / "holdout.yaml"
PREPARED = Path("data") / "prepared"
METRICS = Path("metrics") / "prepare.json"


@dataclass
class Sorted:
    """Where the source records went."""

    kept: list[ToolTask] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    seen: Counter[str] = field(default_factory=Counter)
    held_out: Counter[str] = field(default_factory=Counter)
    ids: set[str] = field(default_factory=set)

    @property
    def faulty_share(self) -> float:
        """Share of the records that broke a rule other than the profile's limits of length."""
        judged = sum(self.seen.values()) - sum(self.held_out.values())
        return sum(q.rule not in LIMITS for q in self.quarantined) / max(judged, 1)

    def reconcile(self) -> None:
        """Every record is in one place only; anything else is a defect of this module."""
        for source, count in self.seen.items():
            kept = sum(t.source == source for t in self.kept)
            aside = sum(q.source == source for q in self.quarantined)
            if count != kept + aside + self.held_out[source]:
                raise DataError(
                    f"source '{source}': {count} records in, but {kept} kept + {aside} quarantined "
                    f"+ {self.held_out[source]} held out",
                    "this is a defect of cahl prepare, please report it",
                )


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


def read_held_out(root: Path) -> dict[str, set[str]]:
    """Ids per source of the reserved test split (``data/holdout.yaml``; none without the file)."""
    path = root / HOLDOUT
    if not path.exists():
        return {}
    try:
        listed = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        return {str(source): {str(i) for i in ids} for source, ids in listed.items()}
    except (yaml.YAMLError, AttributeError, TypeError) as error:
        raise DataError(f"{path} is not a mapping of source to ids: {error}") from error


def _read_tasks(folder: Path, _: int) -> Iterator[Any]:
    for file in sorted(folder.glob("*.jsonl")):
        yield from read_jsonl(file)


READERS: dict[str, Reader] = {
    "complexfuncbench": nestful.read_complexfuncbench,
    "nestful": nestful.read_nestful,
    "tool-tasks": _read_tasks,
}


def read_source(root: Path, source: Source, settings: PrepareSettings) -> list[Any]:
    """The records of one source, or ``max_records`` of them chosen by the seed.

    Raises:
        StageInputError: the source was not fetched; ConfigError: its format is not for training.
    """
    folder = root / "data" / "raw" / source.name
    if not folder.is_dir():
        raise StageInputError(f"{folder} does not exist", f"run `cahl fetch` with {source.name}")
    if source.format not in READERS:
        raise ConfigError(
            f"source '{source.name}' has format '{source.format}', not one to train on",
            f"formats: {', '.join(READERS)}",
        )
    records = list(READERS[source.format](folder, settings.max_result_chars))
    limit = settings.max_records
    if limit is None or limit >= len(records):
        return records
    chosen = random.Random(f"{settings.seed} {source.name}").sample(range(len(records)), limit)
    return [records[index] for index in sorted(chosen)]


def sort_records(
    stage: StageRun, settings: PrepareSettings, meter: PromptMeter, benchmark: Benchmark
) -> Sorted:
    """Reads every source and puts each record where it belongs."""
    sources = load_sources(stage.root)
    held_out = read_held_out(stage.root)
    found = Sorted()
    texts: dict[tuple[str, ...], str] = {}
    for name in settings.sources:
        stage.log(f"{name}: reading")
        records = read_source(stage.root, pick(sources, name, ("data",)), settings)
        with progress(f"{name} (records)", len(records)) as bar:
            for index, record in enumerate(records):
                _sort_one(found, record, name, index, held_out.get(name, set()), settings,
                          meter, benchmark, texts)  # fmt: skip
                bar.advance()
        aside = Counter(q.rule for q in found.quarantined if q.source == name)
        stage.log(f"{name}: {found.seen[name]} in, {sum(t.source == name for t in found.kept)} "
                  f"kept, {found.held_out[name]} held out, quarantined {dict(aside)}")  # fmt: skip
    found.reconcile()
    return found


def _sort_one(
    found: Sorted,
    record: Any,
    source: str,
    index: int,
    held_out: set[str],
    settings: PrepareSettings,
    meter: PromptMeter,
    benchmark: Benchmark,
    texts: dict[tuple[str, ...], str],
) -> None:
    found.seen[source] += 1
    given = record.get("id") if isinstance(record, dict) else None
    record_id = str(given) if given is not None else f"{source}-{index}"
    if record_id in held_out:
        found.held_out[source] += 1
        return
    task = parse(record, f"{source} record {index}")
    problem = task if isinstance(task, tuple) else check(task, settings)
    if problem is None and isinstance(task, ToolTask):
        task = ToolTask(
            task.id, source, task.messages, task.tools, task.steps, task.plan, task.meta
        )
        task = task if task.plan is not None else with_plan(task)
        text = normalise(" ".join(m.content for m in task.messages))
        shared = next(filter(None, (benchmark.overlap(m.content) for m in task.messages)), None)
        if text in texts:
            problem = "duplicate", f"same request as {texts[text]}"
        elif task.id in found.ids:
            problem = "duplicate", "the id is taken by an earlier record"
        elif shared is not None:
            problem = "benchmark_overlap", shared
        else:
            problem = meter.problem(meter.measure(task))
            if problem is None:
                texts[text] = task.id
                found.ids.add(task.id)
                found.kept.append(task)
                return
    assert problem is not None
    found.quarantined.append(quarantine(record, source, record_id, problem))


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
