"""Chained calls of the project's own sources and of users' files, told apart from what was trained on.

ComplexFuncBench and NESTFUL are training data here: only what preparation held back may be scored
without a warning. Any set of tasks is compared with the training set, request by request.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.config import PrepareSettings, Settings
from cahl_core.datasets.contamination import EXACT_WORDS, normalise
from cahl_core.datasets.intake import read_held_out, read_source
from cahl_core.datasets.raw import read_raw
from cahl_core.datasets.sources import load_sources, pick
from cahl_core.datasets.validity import plain
from cahl_core.errors import DataError, StageInputError
from cahl_core.evaluate_config import Split
from cahl_core.evaluation.chained import ChainedCalls
from cahl_core.evaluation.task_files import TaskFile, findings_notes, read_tasks, stem
from cahl_core.evaluation.task_records import judged
from cahl_core.files import digest, sha256
from cahl_core.records import ToolTask

PREPARED = Path("data") / "prepared"
TITLES = {"complexfuncbench": "ComplexFuncBench", "nestful": "NESTFUL v1"}
WORDS = {
    "held_back": "held back from training: the reserved test split and the dev split",
    "test": "reserved test split (data/holdout.yaml)",
    "dev": "dev split of data/prepared, watched during training",
    "not_trained": "every record that no training task was made of, also those too long to train on",
    "all": "every record, TRAINING RECORDS INCLUDED",
}
LISTED = 10


@dataclass(frozen=True, slots=True)
class Trained:
    """The training set of ``data/prepared``: requests by digest, and the records they were made of."""

    requests: frozenset[str]
    records: frozenset[tuple[str, str]]
    size: int

    @classmethod
    def read(cls, root: Path, settings: PrepareSettings) -> Trained | None:
        """``None`` where nothing is prepared."""
        found = list(_prepared(root, settings, "train"))
        if not found:
            return None
        keys = (request_key(_user_texts(record)) for record in found)
        return cls(frozenset(k for k in keys if k), frozenset(map(_made_of, found)), len(found))

    def has(self, task: ToolTask) -> bool:
        """Whether the request was trained on, or the source's record was."""
        key = request_key([m.content for m in task.messages if m.role == "user"])
        return key in self.requests or (task.source, task.id) in self.records


def request_key(texts: Iterable[str]) -> str:
    """A digest of the users' words; ``""`` below `EXACT_WORDS`, where texts are equal by chance."""
    words = normalise(" ".join(texts))
    return digest(words) if len(words) >= EXACT_WORDS else ""


@dataclass(frozen=True, slots=True)
class TrainingOverlap:
    """Which of ``total`` tasks have a request of the training set; ``trained`` is that set's size."""

    total: int
    ids: tuple[str, ...]
    trained: int | None

    def line(self) -> str:
        """The contamination line of the report."""
        if self.trained is None:
            return "overlap with the training set is NOT CHECKED: there is no data/prepared/train.jsonl"
        where = f"the training set ({PREPARED}, {self.trained} tasks)"
        if not self.ids:
            return f"0 of {self.total} requests are in {where}"
        shown = ", ".join(plain(i) for i in self.ids[:LISTED])
        more = f", … {len(self.ids) - LISTED} more" if len(self.ids) > LISTED else ""
        return (
            f"CONTAMINATED: {len(self.ids)} of {self.total} requests are in {where}: {shown}{more}"
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "tasks": self.total,
            "in_training": list(self.ids),
            "training_tasks": self.trained,
            "line": self.line(),
        }


def training_overlap(tasks: Sequence[ToolTask], trained: Trained | None) -> TrainingOverlap:
    """The tasks whose request, or whose record of the same source, was trained on."""
    ids = () if trained is None else tuple(t.id for t in tasks if trained.has(t))
    return TrainingOverlap(len(tasks), ids, None if trained is None else trained.size)


def _prepared(root: Path, settings: PrepareSettings, split: str) -> Iterable[dict[str, Any]]:
    patterns = (f"{split}.jsonl", f"{split}-*.parquet")
    for raw in read_raw(root / PREPARED, settings.max_text_chars * 4, patterns):
        if not isinstance(raw.value, dict):
            raise DataError(f"{root / PREPARED}: {raw.where} is no record", "run: cahl prepare")
        yield raw.value


def _user_texts(record: dict[str, Any]) -> list[str]:
    return [str(m.get("content") or "") for m in record["messages"] if m.get("role") == "user"]


def _made_of(record: dict[str, Any]) -> tuple[str, str]:
    """Source and id of the source's record that a prepared task was made of."""
    return str(record["source"]), str((record.get("meta") or {}).get("derived_from", record["id"]))


# --- benchmarks ----------------------------------------------------------------------------------


class TaskBenchmark(ChainedCalls):
    """`ChainedCalls` with what its tasks' origin has to say; both are what a report needs.

    Attributes:
        overlap: with the training set.
        file: the user's file, where the tasks come from one.
    """

    def __init__(
        self,
        name: str,
        title: str,
        tasks: Sequence[ToolTask],
        *,
        overlap: TrainingOverlap,
        file: TaskFile | None = None,
        notes: Sequence[str] = (),
        **options: Any,
    ) -> None:
        super().__init__(name, title, tasks, notes=notes, **options)
        self.overlap = overlap
        self.file = file

    def about(self) -> dict[str, Any]:
        """`ChainedCalls.about` with ``training_overlap`` and, of a file, ``set_aside`` and ``flaws``."""
        own: dict[str, Any] = {"training_overlap": self.overlap.to_json()}
        if self.file is not None:
            own["set_aside"] = [f.to_json() for f in self.file.aside]
            own["flaws"] = [f.to_json() for f in self.file.flaws]
        return super().about() | own


def file_benchmark(
    root: Path,
    settings: Settings,
    path: Path,
    *,
    strict: bool = False,
    format: str | None = None,
    forced: bool = True,
) -> TaskBenchmark:
    """A user's file as the benchmark ``tasks:<stem>`` (errors: `task_files.read_tasks`)."""
    file = read_tasks(path, settings.prepare, format=format, strict=strict)
    overlap = training_overlap(file.tasks, Trained.read(root, settings.prepare))
    return TaskBenchmark(
        f"tasks:{stem(path)}",
        f"Tasks of {path.name}",
        file.tasks,
        overlap=overlap,
        file=file,
        notes=file.notes(),
        data={path.name: file.sha256},
        forced=forced,
    )


def source_benchmark(
    root: Path,
    settings: Settings,
    name: str,
    *,
    forced: bool = True,
) -> TaskBenchmark:
    """ComplexFuncBench or NESTFUL as fetched into ``data/raw``: records of ``evaluate.chained_split``.

    Records that were trained on are only in the split ``all``.

    Args:
        name: ``complexfuncbench`` or ``nestful``.

    Raises:
        StageInputError: the source is not fetched, or nothing is prepared.
        DataError: no record of the split can be scored, or one of a held-back split was trained on.
    """
    split = settings.evaluate.chained_split
    trained = Trained.read(root, settings.prepare)
    ids = _ids(root, settings, name, split, trained)
    whole = settings.prepare.model_copy(update={"max_records": None})
    records = read_source(root, pick(load_sources(root), name, ("data",)), whole)
    places = (
        (f"{name}[{n}]", r) for n, r in enumerate(records) if ids is None or str(r["id"]) in ids
    )
    found, aside, flaws = judged(places, settings.prepare)
    tasks = [task for task, _ in found]
    if split == "not_trained" and trained is not None:
        tasks = [task for task in tasks if not trained.has(task)]
    _require_some(name, split, tasks, len(aside))
    overlap = training_overlap(tasks, trained)
    if overlap.ids and split != "all":
        raise DataError(
            f"{name}, split {split}: {overlap.line()}",
            "data/prepared was made with another data/holdout.yaml: run `cahl prepare`",
        )
    title = f"{TITLES.get(name, name)} ({split.replace('_', ' ')})"
    notes = [f"{len(tasks)} records, {WORDS[split]}", *findings_notes(aside, flaws)]
    if absent := 0 if ids is None else len(ids) - len(tasks) - len(aside):
        notes.append(f"{absent} more records of the split are not in data/raw/{name}")
    if split == "not_trained":
        notes.append(
            "which records these are depends on data/prepared: compare runs with equal sums"
        )
    return TaskBenchmark(
        name, title, tasks, overlap=overlap, notes=notes, data=_sums(root, name), forced=forced
    )


def _ids(
    root: Path, settings: Settings, name: str, split: Split, trained: Trained | None
) -> frozenset[str] | None:
    """Ids of the split's records; ``None``: all there are."""
    if split == "all":
        return None
    if split != "test" and trained is None:
        raise StageInputError(
            f"{root / PREPARED} holds no training set, so it is not known what is held back",
            "run: cahl prepare; or --set evaluate.chained_split=test, which is never trained on",
        )
    if split == "not_trained":
        return None
    reserved = frozenset(read_held_out(root).get(name, ()))
    if split == "test":
        return reserved
    kept = (
        _prepared(root, settings.prepare, "dev"),
        _prepared(root, settings.prepare, "dev_unseen_tools"),
    )
    dev = frozenset(i for records in kept for source, i in map(_made_of, records) if source == name)
    return dev if split == "dev" else dev | reserved


def _require_some(name: str, split: Split, tasks: Sequence[ToolTask], aside: int) -> None:
    if tasks:
        return
    if aside:
        raise DataError(f"{name}, split {split}: none of {aside} records can be scored")
    others = " or ".join(s for s in ("held_back", "not_trained") if s != split)
    raise StageInputError(
        f"{name} has no record of the split '{split}' in data/raw/{name}",
        "mirrors leave the reserved test split out: fetch upstream's files, or set "
        f"evaluate.chained_split to {others}",
    )


def _sums(root: Path, name: str) -> dict[str, str]:
    folder = root / "data" / "raw" / name
    files = sorted(p for p in folder.rglob("*.json*") if p.is_file())
    return {str(p.relative_to(root)): sha256(p) for p in files}
