"""Two evaluations against each other as a page: `evaluation.comparison` finds what is shown here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from cahl_core.evaluation.report.benchmark import changed
from cahl_core.evaluation.report.document import (
    Block,
    Chart,
    Heading,
    Mark,
    Prose,
    Table,
    slug,
)
from cahl_core.evaluation.report.numbers import MEASURES, difference_row, percent, signed

if TYPE_CHECKING:
    from cahl_core.evaluation.comparison import Compared, Comparison


def blocks(comparison: Comparison) -> list[Block]:
    """Its content for the renderers: what differs first, then numbers, then items that changed."""
    return list(_blocks(comparison))


def _blocks(comparison: Comparison) -> Iterator[Block]:
    yield Heading("Comparison of two evaluations", 1)
    yield Prose(f"{comparison.sides[1]} less {comparison.sides[0]}.")
    yield Heading("What differs", 2, "differs")
    rows = [
        [d.benchmark or "all", d.what, d.one, d.other, "yes" if d.matters else "no"]
        for d in sorted(comparison.differences, key=lambda d: not d.matters)
    ]
    header = ["benchmark", "what", *comparison.sides, "changes what is measured"]
    yield (
        Table(header, rows, 5, (2, 3))
        if rows
        else Prose("Nothing: same data, items, prompts, settings, versions and models.")
    )
    yield from map(Prose, comparison.only)
    yield Heading("Differences", 2, "differences")
    yield _summary(comparison)
    for part in comparison.parts:
        yield from _part(part)


def _summary(comparison: Comparison) -> Table:
    header = ["benchmark", "comparable", *comparison.sides, "models", "n", "difference", "better", "worse",
              "p (McNemar)"]  # fmt: skip
    rows = []
    for part in comparison.parts:
        found = part.found or {"refused": "items differ"}
        means = [percent(found.get(k)) for k in ("one", "other")]
        verdict = "no" if part.reasons else "yes"
        row = difference_row({**found, "models": [m.partition(": ")[2] for m in part.models]})
        rows.append([part.title, verdict, *means, *row])
    caption = "Accuracy in %, differences in points; * the 95 % interval leaves out 0"
    return Table(header, rows, 2, (4,), caption=caption)


def _part(part: Compared) -> Iterator[Block]:
    yield Heading(
        f"{part.title}: {part.models[1]} less {part.models[0]}",
        2,
        slug("".join(part.models) + part.title),
    )
    if part.reasons:
        rest = part.refused or "The numbers compare the two systems as they were run"
        said = "; ".join(part.reasons)
        yield Prose(f"Not comparable as models, as these differ: {said}. {rest}.", "warning")
    if part.found is None:
        return
    found = part.found
    rows = [
        [c, *difference_row({**own, "models": part.models})[1:]]
        for c, own in found["by_category"].items()
    ]
    rows.append(["all items", *difference_row({**found, "models": part.models})[1:]])
    header = ["category", "n", "difference", "better", "worse", "p (McNemar)"]
    yield _chart(found)
    yield Table(header, rows, strong=frozenset({len(rows) - 1}))
    yield _measures(found)
    yield from changed(part.better, part.worse, *part.models, most=None)


def _chart(found: Mapping[str, Any]) -> Chart:
    parts = {**found["by_category"], "all items": found}
    marks = {
        c: Mark(d["value"], d["low"], d["high"], 1, f"{signed(d)}, n = {own['n']}")
        for c, own in parts.items()
        for d in [own["difference"]]
    }
    caption = "Paired differences in points, with 95 % intervals"
    return Chart([(c, [m]) for c, m in marks.items()], signed=True, caption=caption)


def _measures(found: Mapping[str, Any]) -> Table:
    rows = [
        [heading, signed(found["measures"][name], kind)]
        for name, (heading, kind) in MEASURES.items()
    ]
    return Table(["measure", "difference"], rows, caption="Other measures, in their own unit")
