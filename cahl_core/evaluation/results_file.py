"""The results of an evaluation as a directory: ``results.json`` and every attempt, for other programs.

::

    results.json                     version, config, git, versions, seeds, models, benchmarks, prompts,
                                     results (model → benchmark → measures with intervals), paired
    items/<model>/<benchmark>.jsonl  one line per attempt: its score, its record, its text for people

Nothing in it depends on time or on the place it was made: the same inputs give the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, Protocol

from cahl_core.errors import DataError
from cahl_core.evaluation.core import ItemScore, Record
from cahl_core.evaluation.pairing import paired
from cahl_core.evaluation.results_schema import VERSION, validate
from cahl_core.evaluation.statistics import DEFINITIONS, by_item, summarise
from cahl_core.files import digest, read_json, read_jsonl, write_json, write_jsonl

NAME = "results.json"
ITEMS = "items"
FIELDS = tuple(ItemScore.__slots__)

Results = dict[str, Any]
Line = dict[str, Any]  # of an items file
Scores = Mapping[str, Mapping[str, Sequence[ItemScore]]]  # by model, then by benchmark
Items = Mapping[str, Mapping[str, Sequence[Line]]]
Prompts = Mapping[str, Mapping[str, Sequence[Mapping[str, str]]]]


class Described(Protocol):
    """The part of `core.Benchmark` that results need."""

    name: str
    title: str

    def summary(self, scores: Sequence[ItemScore]) -> dict[str, Any]: ...

    def about(self) -> dict[str, Any]: ...


# --- making --------------------------------------------------------------------------------------


def build(
    scores: Scores,
    benchmarks: Sequence[Described],
    *,
    models: Mapping[str, Mapping[str, Any]],
    config: Mapping[str, Any],
    versions: Mapping[str, str],
    seeds: Mapping[str, int],
    git: str | None = None,
    prompts: Prompts | None = None,
    contamination: Mapping[str, Any] | None = None,
) -> Results:
    """All results as JSON values.

    Args:
        scores: of every model on every benchmark it was evaluated on; order is that of the report.
        benchmarks: those that occur in ``scores``.
        models: what is known of each model; ``backbone`` and ``billions`` choose published rows.
        config: settings as JSON; of an absolute path only the last part is kept.
        seeds: name → number, of everything that was drawn.
        prompts: model → benchmark → a few exact prompts, each with ``title`` and ``text`` (before a chat
            template, so that two backbones can be compared).
        contamination: the content of reports/data/contamination.json, if there is one.

    Raises:
        DataError: scores of a benchmark or model that is not described, or of an item twice.
    """
    known = {b.name: b for b in benchmarks}
    used = list(dict.fromkeys(name for own in scores.values() for name in own))
    if missing := [n for n in used if n not in known] + [m for m in scores if m not in models]:
        raise DataError(
            f"scores of {', '.join(missing)}, which is not described", "pass it to build"
        )
    results = {
        model: {
            name: {**summarise(found), "own": known[name].summary(found)}
            for name, found in own.items()
        }
        for model, own in scores.items()
    }
    return {
        "version": VERSION,
        "git": git,
        "versions": dict(versions),
        "seeds": dict(seeds),
        "config": placeless(config),
        "models": _models({m: models[m] for m in scores}),
        "benchmarks": {n: _benchmark(known[n], scores, contamination) for n in used},
        "prompts": {
            m: {b: [dict(p) for p in ps] for b, ps in own.items()}
            for m, own in (prompts or {}).items()
        },
        "results": results,
        "paired": {name: _pairs(name, scores) for name in used},
        "definitions": DEFINITIONS,
    }


def placeless(value: Any) -> Any:
    """JSON with absolute paths cut to their last part, so that it is the same on every machine.

    >>> placeless({"a": ["/home/me/model", "relative/file", 3]})
    {'a': ['…/model', 'relative/file', 3]}
    """
    if isinstance(value, Mapping):
        return {str(k): placeless(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [placeless(v) for v in value]
    if isinstance(value, str):
        for kind in (PurePosixPath(value), PureWindowsPath(value)):
            if kind.is_absolute() and kind.name:
                return f"…/{kind.name}"
    return value


def _models(models: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Descriptions with the folder of each model's items; names that would share one get a digest."""
    found: dict[str, Any] = {}
    for name, described in models.items():
        folder = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"
        taken = {m["folder"].lower() for m in found.values()}
        if folder.lower() in taken:
            folder = f"{folder}-{digest(name)[:8]}"
        found[name] = {**placeless(described), "folder": folder}
    return found


def _benchmark(
    benchmark: Described, scores: Scores, contamination: Mapping[str, Any] | None
) -> dict[str, Any]:
    about = dict(benchmark.about())
    own = next(s[benchmark.name] for s in scores.values() if benchmark.name in s)
    items = by_item(own)
    categories = dict.fromkeys(s.category for s in own)
    return {
        "title": benchmark.title,
        **{k: about.pop(k, empty) for k, empty in (("protocol", {}), ("notes", []), ("data", {}))},
        "counts": about.pop("counts", {}),
        "evaluated": {c: sum(i[0].category == c for i in items.values()) for c in categories},
        "items_digest": digest(sorted(items)),
        "contamination": overlap(benchmark.name, contamination, about.pop("source", None)),
        "about": about,
    }


def overlap(
    benchmark: str, contamination: Mapping[str, Any] | None, source: str | None = None
) -> dict[str, Any] | None:
    """What data preparation found of a benchmark in the training data; ``None`` if it did not look.

    Args:
        source: the benchmark's data source; ``None``: that of its name (``bfcl_v3_multi_turn`` is of
            ``bfcl-v3``).
    """
    if contamination is None:
        return None
    wanted = _plain(source or benchmark)
    for name, found in contamination["benchmarks"].items():
        if wanted == _plain(name) or wanted.startswith(_plain(name) + "_"):
            kept = ("questions", "exact", "ten_gram", "by_source", "tool_names_shared")
            return {
                "source": name,
                "method": contamination["method"],
                **{k: found[k] for k in kept},
            }
    return None


def _plain(name: str) -> str:
    return name.replace("-", "_").lower()


def _pairs(name: str, scores: Scores) -> list[dict[str, Any]]:
    """Each model less the first and less the one before it, on the same items."""
    models = [m for m, own in scores.items() if name in own]
    wanted = dict.fromkeys(
        (before, model)
        for i, model in enumerate(models)
        for before in (models[0], models[i - 1])
        if i
    )
    found = []
    for one, other in wanted:
        entry: dict[str, Any] = {"models": [one, other]}
        try:
            entry |= paired(scores[one][name], scores[other][name])
        except DataError as error:
            entry["refused"] = error.what
        found.append(entry)
    return found


def item_line(score: ItemScore, record: Record, example: str) -> Line:
    """One attempt as a line of an items file."""
    return {**asdict(score), "scores": dict(score.scores), "record": record, "example": example}


def score_of(line: Mapping[str, Any]) -> ItemScore:
    """The score in a line."""
    return ItemScore(**{k: line[k] for k in FIELDS if k in line})


# --- files ---------------------------------------------------------------------------------------


def write(folder: Path, results: Results, items: Items) -> None:
    """Writes results.json and the attempts; each file whole or not at all.

    Raises:
        StorageError: the disk is full or closed; DataError: the results are not of this form.
    """
    validate(results, str(folder))
    write_json(folder / NAME, results)
    for model, own in items.items():
        for benchmark, lines in own.items():
            write_jsonl(_items_path(folder, results, model, benchmark), lines)


def read(folder: Path) -> Results:
    """The results of a directory (or of the results.json that is named).

    Raises:
        DataError: they are not there, not of this version, or damaged; says where.
    """
    path = folder if folder.is_file() else folder / NAME
    if not path.is_file():
        raise DataError(
            f"{path} does not exist",
            "name a directory that `cahl evaluate` wrote, reports/evaluation for instance",
        )
    results = read_json(path)
    validate(results, str(path))
    return dict(results)


def read_items(folder: Path, results: Results, model: str, benchmark: str) -> list[Line]:
    """The attempts of one model on one benchmark.

    Raises:
        DataError: they are not there, or a line lacks a part.
    """
    folder = folder.parent if folder.is_file() else folder
    path = _items_path(folder, results, model, benchmark)
    if not path.is_file():
        raise DataError(f"{path} does not exist", "copy the whole directory, or evaluate again")
    return list(_lines(path))


def _lines(path: Path) -> Iterator[Line]:
    needed = ("id", "category", "correct", "outcome")
    for number, line in enumerate(read_jsonl(path), 1):
        if not isinstance(line, dict) or (missing := [f for f in needed if f not in line]):
            lacks = ", ".join(missing) if isinstance(line, dict) else "an object"
            raise DataError(
                f"{path}:{number}: lacks {lacks}", "the file is damaged: evaluate again"
            )
        yield line


def _items_path(folder: Path, results: Results, model: str, benchmark: str) -> Path:
    name = re.sub(r"[^A-Za-z0-9._-]+", "_", benchmark)
    return folder / ITEMS / str(results["models"][model]["folder"]) / f"{name}.jsonl"
