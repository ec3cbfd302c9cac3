"""Two evaluations against each other: protocol differences first, then paired differences and flips."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cahl_core.errors import DataError
from cahl_core.evaluation import results_file
from cahl_core.evaluation.pairing import paired
from cahl_core.evaluation.report import examples
from cahl_core.evaluation.report.compared import blocks
from cahl_core.evaluation.report.document import Fold, console, markdown
from cahl_core.evaluation.report.numbers import DASH
from cahl_core.evaluation.report.page import render_page
from cahl_core.evaluation.results_file import Line, Results
from cahl_core.files import atomic_file, dump_json

# Settings that change what every model is asked, or how its texts are drawn; what only some benchmarks
# depend on (search, judge) is in their protocols.
ASKED = ("tokens", "max_context", "tool_rendering", "temperature", "samples")
SECTIONS = ("evaluate", "model")
SHOWN = 160  # characters of a value in the table of differences


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not the same on both sides.

    Attributes:
        benchmark: that it concerns, empty for all.
        matters: it changes what is measured, so that scores are not comparable.
        model: whose pair it concerns, by its name in the first directory; empty for all.
    """

    benchmark: str
    what: str
    one: str
    other: str
    matters: bool
    model: str = ""


@dataclass(frozen=True, slots=True)
class Compared:
    """One benchmark with one model of each side.

    Attributes:
        models: label of each side.
        reasons: what differs that changes what is measured; empty where the two are comparable.
        found: `pairing.paired`; ``None`` where it was ``refused``, as the items differ.
        better, worse: items that changed, with both texts.
    """

    benchmark: str
    title: str
    models: tuple[str, str]
    reasons: list[str]
    found: dict[str, Any] | None
    refused: str = ""
    better: list[Fold] = field(default_factory=list)
    worse: list[Fold] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Comparison:
    """`compare`'s result."""

    sides: tuple[str, str]
    differences: list[Difference]
    parts: list[Compared]
    only: list[str]


def compare_reports(
    one: Path, other: Path, models: Sequence[str] = (), out: Path | None = None
) -> str:
    """`compare` for the console; with ``out`` also as compare.md and compare.html in that directory.

    Raises:
        DataError: as `compare`; StorageError: ``out`` cannot be written.
    """
    found = blocks(compare(one, other, models))
    if out is not None:
        texts = {"compare.md": markdown(found), "compare.html": render_page("Comparison", found)}
        for name, text in texts.items():
            with atomic_file(out / name) as path:
                path.write_bytes(text.encode(errors="backslashreplace"))
    return console(found)


def compare(one: Path, other: Path, models: Sequence[str] = ()) -> Comparison:
    """Everything that differs between two directories of results (`results_file`).

    Args:
        models: one of the first and one of the second; of a single name, that one on both sides; none:
            models of the same name, or the only ones there are.

    Raises:
        DataError: a directory holds no results, they lack the model, or have no benchmark in common.
    """
    first, second = results_file.read(one), results_file.read(other)
    sides = _labels(one, other)
    pairs = _pairs(first, second, models)
    differences = list(_differences(first, second, pairs))
    parts = [
        _compared(
            Side(one, first, a, sides[0]), Side(other, second, b, sides[1]), name, differences
        )
        for a, b in pairs
        for name in first["results"][a]
        if name in second["results"][b]
    ]
    if not parts:
        raise DataError(
            f"{one} and {other} have no benchmark in common for {', '.join(a for a, _ in pairs)}: "
            f"{sorted(first['benchmarks'])} and {sorted(second['benchmarks'])}",
            "evaluate both on the same benchmark",
        )
    return Comparison(sides, differences, parts, list(_only(first, second, pairs, sides)))


@dataclass(frozen=True, slots=True)
class Side:
    """One model of one directory."""

    folder: Path
    results: Results
    model: str
    label: str

    def lines(self, benchmark: str) -> list[Line]:
        return results_file.read_items(self.folder, self.results, self.model, benchmark)


def _labels(one: Path, other: Path) -> tuple[str, str]:
    """Short names of the directories that tell them apart."""
    a, b = (p.parent if p.suffix == ".json" else p for p in (one, other))
    if a.name != b.name:
        return a.name or str(a), b.name or str(b)
    return (str(a), str(b)) if a != b else (f"{a} (1)", f"{b} (2)")


def _pairs(first: Results, second: Results, models: Sequence[str]) -> list[tuple[str, str]]:
    a, b = list(first["results"]), list(second["results"])
    if len(models) > 2:
        raise DataError(f"{len(models)} models are named", "name one of each side, or one for both")
    if models:
        wanted = (models[0], models[-1])
        for name, there in zip(wanted, (a, b), strict=True):
            if name not in there:
                raise DataError(f"no model '{name}' there", f"models: {', '.join(there)}")
        return [wanted]
    same = [(m, m) for m in a if m in b]
    if same or (len(a), len(b)) == (1, 1):
        return same or [(a[0], b[0])]
    raise DataError(
        f"no model has the same name on both sides: {', '.join(a)}; {', '.join(b)}",
        "name one of each: --model A --model B",
    )


# --- what differs --------------------------------------------------------------------------------


def _differences(
    first: Results, second: Results, pairs: Sequence[tuple[str, str]]
) -> Iterator[Difference]:
    """Of the protocol first, then of settings, versions and models."""
    both = [n for n in first["benchmarks"] if n in second["benchmarks"]]
    for name in both:
        one, other = first["benchmarks"][name], second["benchmarks"][name]
        for key in ("protocol", "data"):
            for what, a, b in _unequal(one[key], other[key], f"{key}: "):
                yield Difference(name, what, a, b, True)
        if one["items_digest"] != other["items_digest"]:
            x, y = (str(sum(e["evaluated"].values())) for e in (one, other))
            yield Difference(name, "items", x, y, True)
        for a, b in pairs:
            prompts = [r["prompts"].get(m, {}).get(name, []) for r, m in ((first, a), (second, b))]
            if prompts[0] != prompts[1]:
                x, y = _first_unequal(prompts[0], prompts[1])
                yield Difference(name, f"prompts of {_both(a, b)}", x, y, True, a)
    for what, a, b in _unequal(first["config"], second["config"], "setting "):
        section = what.removeprefix("setting ").partition(".")[0]
        yield Difference("", what, a, b, section in SECTIONS and _asked(what))
    for key in ("versions", "seeds"):
        for what, a, b in _unequal(first[key], second[key], f"{key}: "):
            yield Difference("", what, a, b, False)
    for a, b in pairs:
        facts = [{**r["models"][m], "folder": ""} for r, m in ((first, a), (second, b))]
        for what, x, y in _unequal(facts[0], facts[1], f"{_both(a, b)}: "):
            yield Difference("", what, x, y, _asked(what), a)


def _asked(name: str) -> bool:
    return any(word in name.rpartition(".")[2] for word in ASKED)


def _both(one: str, other: str) -> str:
    return one if one == other else f"{one} and {other}"


def _unequal(
    one: Mapping[str, Any], other: Mapping[str, Any], prefix: str
) -> Iterator[tuple[str, str, str]]:
    """Nested values that are not equal, as (name, one, other)."""
    for key in dict.fromkeys([*one, *other]):
        a, b = one.get(key), other.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            yield from _unequal(a, b, f"{prefix}{key}.")
        elif a != b:
            yield f"{prefix}{key}", _value(a), _value(b)


def _value(value: Any) -> str:
    if value is None:
        return DASH
    text = value if isinstance(value, str) else dump_json(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _first_unequal(one: Sequence[Any], other: Sequence[Any]) -> tuple[str, str]:
    """Both sides of the first prompt that differs, from a little before the difference on."""
    for a, b in zip(one, other, strict=False):
        if a != b:
            texts = (f"{p['title']}: {p['text']}" for p in (a, b))
            x, y = texts
            same = next((i for i, (c, d) in enumerate(zip(x, y, strict=False)) if c != d), 0)
            start = max(0, same - SHOWN // 4)
            return _value(("…" if start else "") + x[start:]), _value(
                ("…" if start else "") + y[start:]
            )
    return f"{len(one)} prompts", f"{len(other)} prompts"


def _only(
    first: Results, second: Results, pairs: Sequence[tuple[str, str]], sides: tuple[str, str]
) -> Iterator[str]:
    """What is on one side only, and so is not compared."""
    for label, own, rest, place in ((sides[0], first, second, 0), (sides[1], second, first, 1)):
        for name in own["benchmarks"]:
            if name not in rest["benchmarks"]:
                yield f"Only in {label}: benchmark {name}."
        for model in own["results"]:
            if model not in [pair[place] for pair in pairs]:
                yield f"Only in {label}: model {model}, which is not compared."


# --- one benchmark -------------------------------------------------------------------------------


def _compared(one: Side, other: Side, name: str, differences: Sequence[Difference]) -> Compared:
    names = (f"{one.label}: {one.model}", f"{other.label}: {other.model}")
    title = one.results["benchmarks"][name]["title"]
    reasons = [
        d.what
        for d in differences
        if d.matters and d.benchmark in ("", name) and d.model in ("", one.model)
    ]
    lines = one.lines(name), other.lines(name)
    first, second = ([results_file.score_of(x) for x in own] for own in lines)
    try:
        found = paired(first, second)
    except DataError as error:
        return Compared(name, title, names, reasons or ["items"], None, error.what)
    return Compared(
        name, title, names, reasons, found, "", *examples.flips(lines[0], lines[1], names)
    )
