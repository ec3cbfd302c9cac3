"""The evaluation as a page for people: Markdown, and one HTML file that needs no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cahl_core.evaluation.report import numbers
from cahl_core.evaluation.report.benchmark import Items, Results, section
from cahl_core.evaluation.report.document import (
    Block,
    Bullets,
    Heading,
    Prose,
    Table,
)
from cahl_core.evaluation.report.document import markdown as render
from cahl_core.evaluation.report.numbers import number
from cahl_core.evaluation.report.page import render_page
from cahl_core.files import atomic_file, dump_json

__all__ = ["html", "markdown", "number", "summary_table", "write"]

TITLE = "Evaluation"
FACTS = ("backbone", "adapters", "form", "kind")
READING = (
    "Intervals: 95 %, from 10,000 resamples of items (all samples of an item together); † Wilson's "
    "interval, where all items are equal and a bootstrap has no width. Wilson's also stands beside "
    "proportions.",
    "Differences are paired: both models on the same items and the same resamples. p is McNemar's exact "
    "two-sided test over the items that changed. Nothing is corrected for looking at many categories: one "
    "interval in twenty leaves out the truth by chance.",
    "An item that could not be answered (a text outside the grammar, a prompt too long for the context) "
    "counts as answered wrongly, except where the official rule pays for it; that is said there.",
)


def markdown(results: Results, items: Items, timing: Mapping[str, Any] | None = None) -> str:
    """The whole report in Markdown."""
    return render(blocks(results, items, timing))


def html(results: Results, items: Items, timing: Mapping[str, Any] | None = None) -> str:
    """The whole report as one self-contained page."""
    return render_page(TITLE, blocks(results, items, timing))


def summary_table(results: Results) -> str:
    """Accuracy of all models on all benchmarks as a Markdown table."""
    return render([numbers.summary(results)])


def write(
    folder: Path, results: Results, items: Items, timing: Mapping[str, Any] | None = None
) -> None:
    """Writes report.md and report.html into ``folder``.

    Raises:
        StorageError: they cannot be written.
    """
    found = blocks(results, items, timing)
    for name, text in (("report.md", render(found)), ("report.html", render_page(TITLE, found))):
        with atomic_file(folder / name) as path:
            path.write_bytes(text.encode(errors="backslashreplace"))


def blocks(results: Results, items: Items, timing: Mapping[str, Any] | None = None) -> list[Block]:
    """The content of the report.

    Args:
        results: `results_file.build`'s.
        items: model → benchmark → lines (`results_file.item_line`); models or benchmarks may be missing.
        timing: model → benchmark → what `numbers.timing` reads; ``None``: no table of times.
    """
    found: list[Block] = [
        Heading(TITLE, 1),
        Prose(_made(results)),
        Heading("Summary", 2, "summary"),
    ]
    found.append(numbers.summary(results))
    tables = (numbers.combined(results), numbers.passes(results), numbers.differences(results))
    found += [table for table in tables if table is not None]
    found += [Bullets(READING), Heading("Efficiency", 2, "efficiency"), numbers.efficiency(results)]
    found.append(Bullets(list(_definitions(results))))
    if timing:
        found += [Heading("Time", 2, "time"), numbers.timing(results, timing)]
    for name in results["benchmarks"]:
        found += section(results, items, name)
    return [*found, *_provenance(results)]


def _made(results: Results) -> str:
    models = "; ".join(f"{name} ({_described(m)})" for name, m in results["models"].items())
    commit = f" at commit {results['git']}" if results["git"] else ""
    return f"Models: {models}. Made{commit}."


def _described(model: Mapping[str, Any]) -> str:
    """The facts that tell models apart at a glance; all of them are at the end of the report."""
    parts = [
        f"{key} {model[key]}" for key in FACTS if isinstance(model.get(key), str | int | float)
    ]
    return ", ".join(parts) or "no description"


def _definitions(results: Results) -> Iterator[str]:
    for name in numbers.MEASURES:
        if text := results["definitions"].get(name):
            yield f"{name.replace('_', ' ')}: {text}."


def _provenance(results: Results) -> list[Block]:
    """What is needed to repeat the run."""
    data = [
        [entry["title"], file, digest]
        for entry in results["benchmarks"].values()
        for file, digest in entry["data"].items()
    ]
    pairs = [["version", *pair] for pair in results["versions"].items()]
    pairs += [["seed", *pair] for pair in results["seeds"].items()]
    pairs += [["setting", *pair] for pair in _settings(results["config"])]
    for model, facts in results["models"].items():
        pairs += [[f"model {model}", *pair] for pair in _settings(facts)]
    return [
        Heading("To repeat it", 2, "repeat"),
        Table(["kind", "name", "value"], [[str(c) for c in row] for row in pairs], 2, (2,)),
        Table(["benchmark", "file", "sha256"], [[str(c) for c in row] for row in data], 3),
    ]


def _settings(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, found in value.items():
        if isinstance(found, Mapping) and found:
            yield from _settings(found, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", found if isinstance(found, str) else dump_json(found)
