"""What others published beside our numbers, and what the training data shares with a benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cahl_core.evaluation import reference
from cahl_core.evaluation.report.document import Block, Heading, Prose, Table
from cahl_core.evaluation.report.numbers import DASH, percent

Results = Mapping[str, Any]


def contamination(entry: Mapping[str, Any]) -> str:
    """One sentence about what of the benchmark was found in the training data."""
    checked = entry["about"].get("training_overlap")
    if checked is not None:  # of the tasks themselves, with the training set of the project
        line = str(checked["line"])
        return f"{line[:1].upper()}{line[1:]}. What a backbone saw before is not known."
    found = entry["contamination"]
    if found is None:
        return (
            "Contamination: not known; data preparation did not look for this benchmark's questions "
            "(prepare.decontaminate names those it looks for)."
        )
    told = ", ".join(f"{source} {count}" for source, count in found["by_source"].items())
    removed = found["exact"] + found["ten_gram"]
    how = f"{found['exact']} equal, {found['ten_gram']} with ten words in a row"
    return (
        f"Contamination: {removed} records of the training sources repeated one of {found['source']}'s "
        f"{found['questions']:,} questions ({how}{'; ' + told if told else ''}) and were set aside before "
        f"training; {found['tool_names_shared']} tool names occur in both. Compared: {found['method']}. "
        "What a backbone saw before is not known."
    )


def published(results: Results, name: str) -> list[Block]:
    """Published rows by protocol, each with its source and what may be compared; ours above them."""
    models = [m for m, own in results["results"].items() if name in own]
    backbones = {m: results["models"][m].get("backbone") for m in models}
    chosen = list(dict.fromkeys(b for b in backbones.values() if b))
    sized = {b: results["models"][m].get("billions") for m, b in backbones.items() if b}
    blocks: list[Block] = []
    for backbone in chosen or [""]:
        for found in reference.comparable(name, backbone, sized.get(backbone)):
            shown = [m for m in models if backbones[m] in (backbone, None)]
            blocks += _protocol_rows(results, found, shown)
    if not blocks:
        return [
            Prose("Published: no row for this benchmark is recorded in evaluation/reference.json.")
        ]
    said = "Beside published numbers, in %" + ("" if chosen else " (which backbone is not known)")
    return [Heading(said, 3), *blocks]


def _protocol_rows(
    results: Results, found: reference.ProtocolRows, models: list[str]
) -> list[Block]:
    if not any(c.ours for c in found.columns):
        models = []  # the sentence below says why
    rows = [_ours(results, found, model) for model in models]
    sources = list(dict.fromkeys(row.source for _, row in found.rows))
    for relation, row in found.rows:
        values = [row.values.get(c.key) for c in found.columns]
        cells = [DASH if v is None else f"{v:.2f}" for v in values]
        rows.append(
            [row.model, relation, *cells, f"{row.note} ({sources.index(row.source) + 1})".strip()]
        )
    header = ["model", "relation", *(c.title for c in found.columns), "notes (source)"]
    strong = frozenset(range(len(models)))
    table = Table(header, rows, 2, (len(header) - 1,), strong, caption=found.title)
    listed = "; ".join(f"({i}) {reference.source_text(s)}" for i, s in enumerate(sources, 1))
    return [table, Prose(f"{found.statement} {found.sentence} Sources: {listed}.")]


def _ours(results: Results, found: reference.ProtocolRows, model: str) -> list[str]:
    """Our row; a column that needs every item of its categories is a dash where some were left out."""
    values = [reference.ours(results, model, column) for column in found.columns]
    needed = {place.partition(":")[0] for c in found.columns for place in c.ours if ":" in place}
    lacking = sorted(
        n for n in needed if n in results["benchmarks"] and not reference.is_whole(results, n)
    )
    note = f"only part of {', '.join(lacking)} was evaluated" if lacking and None in values else ""
    return [model, "ours", *map(percent, values), note]
