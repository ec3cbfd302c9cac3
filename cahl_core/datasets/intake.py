"""Raw sources to kept, quarantined and held-out records: each ends in exactly one place."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import READERS, ReadLimits
from cahl_core.datasets.checks import LIMITS, Quarantined, check, parse, quarantine
from cahl_core.datasets.derive import with_plan
from cahl_core.datasets.overlap import Benchmark, normalise
from cahl_core.datasets.prompts import PromptMeter
from cahl_core.datasets.sources import Source, load_sources, pick
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.progress import progress
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun

HOLDOUT = Path("data") / "holdout.yaml"


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
    limits = ReadLimits(settings.max_result_chars, settings.max_text_chars)
    records = list(READERS[source.format](folder, source.name, limits))
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
