"""Raw sources to kept, quarantined and held-out prompts: each ends in exactly one place.

Records stream from the adapters through the judges to a file; memory holds a few hundred bytes for
each. Duplicates are decided here, in the order of the records.
"""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import READERS, ReadLimits, Record
from cahl_core.datasets.checks import EXCERPT, LIMITS, Quarantined
from cahl_core.datasets.contamination import Overlap, source_format
from cahl_core.datasets.dedup import Signatures, near_duplicates
from cahl_core.datasets.judge import JudgedRecord, Prompt
from cahl_core.datasets.parallel import Run
from cahl_core.datasets.sources import Source
from cahl_core.datasets.splits import Member
from cahl_core.datasets.store import LineStore
from cahl_core.errors import ConfigError, DataError, StageInputError
from cahl_core.records import ToolTask
from cahl_core.stage import StageRun

MAX_ASKS = 20_000
HOLDOUT = Path("data") / "holdout.yaml"


@dataclass
class Counts:
    """Where the prompts of one source went: ``tasks = kept + held_out + quarantined``."""

    records: int = 0
    tasks: int = 0
    kept: int = 0
    held_out: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "tasks": self.tasks,
            "kept": self.kept,
            "held_out": self.held_out,
            "quarantined": dict(sorted(self.quarantined.items())),
        }


@dataclass
class Intake:
    """What became of the records: tasks in ``tasks``, their rows in ``facts``, in one order.

    ``kept[n]`` tells whether task n is still kept once near duplicates are removed. Where a task was
    augmented, ``plain[plain_of[n]]`` is what it was before (-1: it was not), and ``added[n]`` names the
    tools it was given.
    """

    tasks: LineStore
    facts: LineStore
    plain: LineStore
    plain_of: array[int] = field(default_factory=lambda: array("q"))
    added: list[tuple[str, ...]] = field(default_factory=list)
    members: list[Member] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    asks: list[ToolTask] = field(default_factory=list)
    records: list[int] = field(default_factory=list)  # row of each task's record in the signatures
    kept: list[bool] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    contaminated: list[tuple[str, str, Overlap]] = field(default_factory=list)
    counts: dict[str, Counts] = field(default_factory=dict)
    raw: list[tuple[str, str, str, bool, int]] = field(default_factory=list)
    _ids: set[str] = field(default_factory=set)
    _texts: dict[bytes, int] = field(default_factory=dict)
    _tools: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)
    _signatures: list[Signatures] = field(default_factory=list)
    _judged: int = -1  # number of the record that is being added: its row in the signatures

    def hold_out(self, record: Record) -> None:
        counts = self.counts[str(record["source"])]
        counts.records += 1
        counts.tasks += 1
        counts.held_out += 1
        self.raw.append((str(record["source"]), str(record["id"]), "", True, 0))

    def add(self, judged: list[JudgedRecord], found: Signatures) -> None:
        """Takes judged records in their order."""
        self._signatures.append(found)
        for record in judged:
            counts = self.counts[record.source]
            counts.records += 1
            self._judged += 1
            rules = [self._prompt(record, prompt, counts) for prompt in record.prompts]
            if not all(rules) and len(self.asks) < MAX_ASKS:
                self.asks += record.asks
            rule = rules[0] if all(rules) else ""
            self.raw.append((record.source, record.id, rule, False, record.size))

    def _prompt(self, record: JudgedRecord, prompt: Prompt, counts: Counts) -> str:
        """Keeps a prompt or sets it aside; returns the rule it broke, ``""`` for none."""
        counts.tasks += 1
        aside = prompt.quarantined
        if prompt.overlap is not None:
            self.contaminated.append((record.source, prompt.id, prompt.overlap))
        if aside is None and prompt.text_key in self._texts:
            first = self.members[self._texts[prompt.text_key]].id
            aside = _repeated(record.source, prompt, "duplicate", f"same request as {first}")
        if aside is None and prompt.id in self._ids:
            detail = "the id is taken by an earlier record"
            aside = _repeated(record.source, prompt, "duplicate_id", detail)
        if aside is not None:
            self._set_aside(aside, counts)
            return aside.rule
        self._texts[prompt.text_key] = self.tasks.append(prompt.line)
        self.facts.append(prompt.facts)
        self.plain_of.append(self.plain.append(prompt.plain) if prompt.plain else -1)
        self.added.append(prompt.added)
        self._ids.add(prompt.id)
        gold_tools = self._tools.setdefault(prompt.gold_tools, prompt.gold_tools)
        self.members.append(Member(prompt.id, record.id, gold_tools))
        self.sources.append(record.source)
        self.records.append(self._judged)
        self.kept.append(True)
        counts.kept += 1
        return ""

    def before(self, number: int) -> bytes:
        """The JSON line of a task before augmentation."""
        plain = self.plain_of[number]
        return self.tasks.line(number) if plain < 0 else self.plain.line(plain)

    def _set_aside(self, aside: Quarantined, counts: Counts) -> None:
        self.quarantined.append(aside)
        counts.quarantined[aside.rule] += 1

    def remove_near_duplicates(self, threshold: float) -> None:
        """Sets aside the tasks whose record almost repeats an earlier one that was kept."""
        tasks_of: dict[int, list[int]] = {}
        for number, record in enumerate(self.records):
            tasks_of.setdefault(record, []).append(number)
        rows = list(tasks_of)
        if not threshold or not rows:
            return
        found = np.concatenate(self._signatures)[rows]
        for later, earlier in near_duplicates(found, threshold).items():
            first = self.members[tasks_of[rows[earlier]][0]].id
            for number in tasks_of[rows[later]]:
                self._remove(number, "near_duplicate", f"almost the request of {first}")

    def _remove(self, number: int, rule: str, detail: str) -> None:
        source, task_id = self.sources[number], self.members[number].id
        self.kept[number] = False
        self.counts[source].kept -= 1
        excerpt = str(self.facts.value(number)["request"] or "")[:EXCERPT]
        aside = Quarantined(source, task_id, rule, detail, excerpt)
        self._set_aside(aside, self.counts[source])

    def release(self) -> None:
        """Frees what only reading needs; nothing can be added afterwards."""
        self._ids.clear()
        self._texts.clear()
        self._signatures.clear()

    @property
    def faulty_share(self) -> float:
        """Share of the prompts that broke a rule other than the profile's limits of length."""
        judged = sum(c.tasks - c.held_out for c in self.counts.values())
        return sum(q.rule not in LIMITS for q in self.quarantined) / max(judged, 1)

    def reconcile(self) -> None:
        """Every prompt is in one place only; anything else is a defect of this module."""
        for source, counts in self.counts.items():
            kept = sum(k and s == source for k, s in zip(self.kept, self.sources, strict=True))
            aside = sum(q.source == source for q in self.quarantined)
            if (counts.kept, counts.tasks) != (kept, kept + aside + counts.held_out):
                raise DataError(
                    f"source '{source}': {counts.tasks} prompts in, but {kept} kept + {aside} "
                    f"quarantined + {counts.held_out} held out",
                    "this is a defect of cahl prepare, please report it",
                )


def _repeated(source: str, prompt: Prompt, rule: str, detail: str) -> Quarantined:
    return Quarantined(source, prompt.id, rule, detail, prompt.excerpt)


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


def read_source(root: Path, source: Source, settings: PrepareSettings) -> Iterator[Record]:
    """The records of one source, or ``max_records`` of them chosen by the seed.

    Raises:
        StageInputError: the source was not fetched; ConfigError: its format is not for training.
    """
    folder = root / "data" / "raw" / source.name
    if not folder.is_dir():
        raise StageInputError(f"{folder} does not exist", f"run `cahl fetch` with {source.name}")
    format_ = source_format(folder, source)
    if format_ not in READERS:
        raise ConfigError(
            f"source '{source.name}' has format '{format_}', not one to train on",
            f"formats: {', '.join(READERS)}",
        )
    limits = ReadLimits(settings.max_result_chars, settings.max_text_chars)
    reader = READERS[format_]
    if settings.max_records is None:
        yield from reader(folder, source.name, limits)
        return
    total = sum(1 for _ in reader(folder, source.name, limits))
    generator = random.Random(f"{settings.seed} {source.name}")
    chosen = set(generator.sample(range(total), min(settings.max_records, total)))
    for index, record in enumerate(reader(folder, source.name, limits)):
        if index in chosen:
            yield record


def take_in(
    stage: StageRun,
    sources: list[Source],
    settings: PrepareSettings,
    judge: Run,
    stores: Sequence[LineStore],
) -> Intake:
    """Reads every source and puts each prompt where it belongs."""
    held_out = read_held_out(stage.root)
    found = Intake(stores[0], stores[1], stores[2])
    for source in sources:
        stage.log(f"{source.name}: reading")
        counts = found.counts.setdefault(source.name, Counts())
        records = _without(held_out.get(source.name, set()), found,
                           read_source(stage.root, source, settings))  # fmt: skip
        for judged, signatures in judge(records):
            found.add(judged, signatures)
        stage.log(f"{source.name}: {counts.records} records, {counts.tasks} prompts, {counts.kept} "
                  f"kept, {counts.held_out} held out, quarantined {dict(counts.quarantined)}")  # fmt: skip
    found.remove_near_duplicates(settings.near_duplicate)
    found.reconcile()
    found.release()
    return found


def _without(ids: set[str], found: Intake, records: Iterator[Record]) -> Iterator[Record]:
    """The records that are not held out; those that are get counted."""
    for record in records:
        if str(record.get("id")) in ids:
            found.hold_out(record)
        else:
            yield record
