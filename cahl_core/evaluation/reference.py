"""Published numbers beside ours: which rows belong beside a model, and which of our numbers beside them.

`reference.json` holds rows by protocol: a protocol is one way to measure, with its columns and a sentence
on what may be compared, and no column mixes two of them. Values are percentages as published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from cahl_core.errors import DataError
from cahl_core.files import read_json

FILE = Path(__file__).with_name("reference.json")
NEAR = 5.0  # rows within this factor of the size, where the base model itself has none
NEAR_BESIDE = 1.5  # and where it has some
METHOD = "cahl"  # the source whose rows are always shown
ROWS = 12
SIZE = re.compile(r"(\d+(?:\.\d+)?)([bm])(?![a-z0-9])")
TUNED = re.compile(r"-(?:instruct|it|chat|base|sft|fc|hf)$")

Relation = Literal["same base model", "near in size", "the method"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column; ``ours`` says where our number for it is, empty where we have none (`ours`)."""

    key: str
    title: str
    ours: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row:
    """One published result; ``billions`` of parameters, ``None`` where they are not stated."""

    model: str
    backbone: str | None
    billions: float | None
    protocol: str
    source: str
    values: Mapping[str, float]
    note: str = ""


@dataclass(frozen=True, slots=True)
class ProtocolRows:
    """What one protocol offers beside a model.

    Attributes:
        sentence: what may be compared with what.
        statement: whether the base model itself has rows, in words.
        rows: with how each relates to the model, in order of relation.
    """

    key: str
    title: str
    columns: tuple[Column, ...]
    sentence: str
    statement: str
    rows: list[tuple[Relation, Row]] = field(default_factory=list)


@cache
def load() -> dict[str, Any]:
    """The file's content, checked: each row names a protocol, a source, and columns of its protocol.

    Raises:
        DataError: it does not hold together.
    """
    content: dict[str, Any] = read_json(FILE)
    for row in content["rows"]:
        protocol = content["protocols"].get(row["protocol"])
        if protocol is None or row["source"] not in content["sources"]:
            raise DataError(
                f"{FILE.name}: row {row['model']} names no protocol or source of the file"
            )
        known = {c["key"] for c in protocol["columns"]}
        if unknown := sorted(set(row["values"]) - known):
            raise DataError(
                f"{FILE.name}: row {row['model']} has columns {unknown}, not of {sorted(known)}"
            )
    return content


def comparable(benchmark: str, backbone: str, billions: float | None = None) -> list[ProtocolRows]:
    """Published rows to show beside a model, one entry per protocol that has fitting rows.

    Rows of the same base model always, official ones first; models near in size, closely where there are
    such rows and otherwise within a factor of 5 or the nearest there are; the method's own rows always.

    Args:
        backbone: a name such as ``smollm2-135m-instruct`` or ``Qwen/Qwen2.5-7B-Instruct``.
        billions: of its parameters; ``None``: as its name says.
    """
    size = size_of(backbone) if billions is None else billions
    found = []
    for key, protocol in load()["protocols"].items():
        if benchmark not in protocol["benchmarks"]:
            continue
        rows = [Row(**r) for r in load()["rows"] if r["protocol"] == key]
        chosen, statement = _choose(rows, base_name(backbone), size)
        columns = tuple(Column(c["key"], c["title"], tuple(c["ours"])) for c in protocol["columns"])
        if not chosen or (_far(chosen, size) and not any(c.ours for c in columns)):
            continue  # nothing of ours to put beside models of another kind
        sentence = protocol["comparability"]
        found.append(ProtocolRows(key, protocol["title"], columns, sentence, statement, chosen))
    return found


def source_text(name: str) -> str:
    """Where rows of a source are from: work, commit or arXiv identifier, kind."""
    source = load()["sources"][name]
    where = [f"arXiv {source['arxiv']}"] if "arxiv" in source else []
    where += [f"commit {source['commit']} of {source['date']}"] if "commit" in source else []
    return "; ".join([source["what"], *where, source["kind"]])


def base_name(name: str) -> str:
    """A model's name without its organisation and without what says how it was tuned.

    >>> base_name("Qwen/Qwen2.5-7B-Instruct"), base_name("smollm2-135m-instruct")
    ('qwen2.5-7b', 'smollm2-135m')
    """
    short = name.rstrip("/").rpartition("/")[2].rpartition(":")[2].lower()
    while (cut := TUNED.sub("", short)) != short:
        short = cut
    return short


def size_of(name: str) -> float | None:
    """Billions of parameters as a name says.

    >>> size_of("SmolLM2-135M"), size_of("Qwen2.5-0.5B-Instruct"), size_of("gpt-4o")
    (0.135, 0.5, None)
    """
    found = SIZE.findall(base_name(name))
    if not found:
        return None
    number, unit = found[-1]
    return float(number) / (1000 if unit == "m" else 1)


def _choose(
    rows: Sequence[Row], base: str, size: float | None
) -> tuple[list[tuple[Relation, Row]], str]:
    official = load()["sources"]
    same = [r for r in rows if r.backbone == base]
    same.sort(key=lambda r: official[r.source]["kind"] != "official")
    method = [r for r in rows if r.source == METHOD and r not in same]
    others = [r for r in rows if r not in same and r not in method]
    near, statement = _near(others, size, bool(same))
    if not same:
        statement = f"No published row for {base} under this protocol; {statement}."
    else:
        statement = f"{_rows(len(same))} of the same base model, {base}."
    marked: list[tuple[Relation, Row]] = [("same base model", r) for r in same]
    marked += [("near in size", r) for r in near]
    return marked + [("the method", r) for r in method], statement


def _near(rows: Sequence[Row], size: float | None, beside: bool) -> tuple[list[Row], str]:
    """Rows of models about as large, nearest first, and which they are in words."""
    if size is None:
        return [], "its size is not known, so none are chosen by size"
    sized = [(abs(math.log(r.billions / size)), r) for r in rows if r.billions]
    if not sized:
        return [], "no other row states a size"
    limit = math.log(NEAR_BESIDE if beside else NEAR)
    within = sorted((p for p in sized if p[0] <= limit + 1e-9), key=lambda p: p[0])
    if within:
        return [r for _, r in within[:ROWS]], f"shown are models within {NEAR:.0f} times its size"
    if beside:
        return [], ""
    closest = min(d for d, _ in sized)
    rows = [r for d, r in sized if d <= closest + 1e-9]
    factor = max(rows[0].billions or 0, size) / min(rows[0].billions or size, size)
    return rows, f"the nearest in size, {rows[0].billions:g}B, differ by a factor of {factor:.0f}"


def _far(rows: Sequence[tuple[Relation, Row]], size: float | None) -> bool:
    """Whether all rows are there only because no nearer one is."""
    sizes = [row.billions for relation, row in rows if relation == "near in size"]
    return len(sizes) == len(rows) and all(
        b and size and abs(math.log(b / size)) > math.log(NEAR) for b in sizes
    )


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


# --- our numbers for their columns ---------------------------------------------------------------


def ours(results: Mapping[str, Any], model: str, column: Column) -> float | None:
    """Our share in [0, 1] for a published column; ``None`` where it does not exist or was only sampled."""
    for place in column.ours:
        found = _at(results, model, place)
        if isinstance(found, int | float):
            return float(found)
    return None


def is_whole(results: Mapping[str, Any], benchmark: str, category: str | None = None) -> bool:
    """Whether all items of a benchmark, or of a category, were evaluated."""
    entry = results["benchmarks"].get(benchmark)
    if entry is None:
        return False
    counts, evaluated = entry["counts"], entry["evaluated"]
    if category is not None:
        return bool(evaluated.get(category)) and evaluated.get(category) == counts.get(category)
    return bool(counts) and all(evaluated.get(c) == n for c, n in counts.items())


def _at(results: Mapping[str, Any], model: str, place: str) -> Any:
    """``benchmark:kind.key…`` or ``combined:score.key``; own aggregates and combined scores leave out by
    themselves what was not evaluated whole."""
    benchmark, _, path = place.partition(":")
    if benchmark == "combined":
        return _dig(results.get("combined", {}).get(model), path.split("."))
    entry = results["results"][model].get(benchmark)
    kind, *keys = path.split(".")
    if entry is None or (kind == "own" and not keys):
        return None
    if kind == "own":
        return _dig(entry["own"], keys)
    if not is_whole(results, benchmark, keys[0] if kind == "category" else None):
        return None
    if kind == "whole":
        return _dig(entry["own"], keys)
    if kind == "category":
        return _dig(entry["by_category"], [keys[0], "accuracy", "value"])
    return _dig(entry, [kind, *keys, "value"])


def _dig(value: Any, keys: Sequence[str]) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value
