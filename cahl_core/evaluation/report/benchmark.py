"""The part of a report about one benchmark: categories, published rows, protocol, texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from cahl_core.evaluation import reference
from cahl_core.evaluation.report import examples
from cahl_core.evaluation.report.document import (
    Block,
    Bullets,
    Chart,
    Fold,
    Folds,
    Heading,
    Mark,
    Prose,
    Table,
    slug,
)
from cahl_core.evaluation.report.numbers import (
    DASH,
    evaluated,
    number,
    percent,
    signed,
    with_interval,
)
from cahl_core.evaluation.report.published import contamination, published
from cahl_core.evaluation.statistics import DECODE_FAILURES

Results = Mapping[str, Any]
Own = Mapping[str, Mapping[str, Any]]  # a model's measures on the benchmark, by model
Items = Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]]


def section(results: Results, items: Items, name: str) -> list[Block]:
    """All blocks about the benchmark ``name``."""
    entry = results["benchmarks"][name]
    own = {m: found[name] for m, found in results["results"].items() if name in found}
    blocks: list[Block] = [Heading(entry["title"], 2, slug(name)), *_scope(results, name)]
    blocks += [categories(results, name, own), category_table(results, name, own)]
    for part in (
        difference_chart(results, name, own),
        scores_table(own),
        own_table(own),
        irrelevance(own),
    ):
        blocks += [part] if part is not None else []
    blocks += unanswerable(own, items, name)
    blocks += published(results, name)
    blocks += protocol(results, name)
    blocks += texts(results, items, name, list(own))
    return blocks


def _scope(results: Results, name: str) -> Iterator[Block]:
    entry = results["benchmarks"][name]
    if not reference.is_whole(results, name):
        yield Prose(
            f"A fixed sample: {evaluated(results, name)} items. Official averages need whole categories, "
            "so those that lack items are left out; the accuracy here is the mean over the sampled items.",
            "warning",
        )
    yield Prose(contamination(entry))
    if entry["notes"]:
        yield Bullets(entry["notes"])


# --- categories ----------------------------------------------------------------------------------


def categories(results: Results, name: str, own: Own) -> Chart:
    """Bars by category and model, with intervals."""
    numbers = {model: i for i, model in enumerate(results["results"])}
    rows = [
        (category, [_mark(found["by_category"].get(category), numbers[m], m) for m, found in own.items()])
        for category in results["benchmarks"][name]["evaluated"]
    ]  # fmt: skip
    caption = "Accuracy by category in %, with 95 % intervals"
    return Chart(rows, [(m, numbers[m]) for m in own], caption=caption)


def _mark(found: Mapping[str, Any] | None, model: int, label: str) -> Mark:
    if found is None:
        return Mark(None, None, None, model)
    interval = found["accuracy"]
    title = f"{label}: {with_interval(interval)}, n = {found['n']}"
    return Mark(interval["value"], interval["low"], interval["high"], model, title)


def category_table(results: Results, name: str, own: Own) -> Table:
    """A row per category and one for all: n, accuracy with interval, and Wilson's where it applies."""
    entry = results["benchmarks"][name]
    header = ["category", "n"]
    for model in own:
        header += [model, "Wilson"]
    rows = []
    for category in entry["evaluated"]:
        done, whole = entry["evaluated"][category], entry["counts"].get(category, 0)
        count = f"{done:,}" if done >= whole else f"{done:,} of {whole:,}"
        parts = [found["by_category"].get(category) for found in own.values()]
        rows.append([category, count, *(c for part in parts for c in _accuracy(part))])
    rows.append(
        ["all items", evaluated(results, name), *(c for f in own.values() for c in _accuracy(f))]
    )
    return Table(header, rows, strong=frozenset({len(rows) - 1}))


def _accuracy(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return [DASH, DASH]
    bounds = found["wilson"]
    return [
        with_interval(found["accuracy"]),
        DASH if bounds is None else f"[{percent(bounds[0])}, {percent(bounds[1])}]",
    ]


def difference_chart(results: Results, name: str, own: Own) -> Chart | None:
    """Paired differences by category between the models of the report."""
    pairs = [p for p in results["paired"].get(name, ()) if "refused" not in p]
    if not pairs:
        return None
    numbers = {model: i for i, model in enumerate(results["results"])}
    rows = [
        (category, [_change(p["by_category"].get(category), p, numbers) for p in pairs])
        for category in results["benchmarks"][name]["evaluated"]
    ]
    rows.append(("all items", [_change(p, p, numbers) for p in pairs]))
    legend = [(f"{p['models'][1]} less {p['models'][0]}", _colour(p, numbers)) for p in pairs]
    return Chart(rows, legend, True, "Paired differences in points, with 95 % intervals")


def _colour(pair: Mapping[str, Any], numbers: Mapping[str, int]) -> int:
    """Of the later model; of a pair that is not with the first model, of its own."""
    one, other = (numbers[m] for m in pair["models"])
    return other if one == 0 else len(numbers) + other


def _change(
    found: Mapping[str, Any] | None, pair: Mapping[str, Any], numbers: Mapping[str, int]
) -> Mark:
    colour = _colour(pair, numbers)
    if found is None:
        return Mark(None, None, None, colour)
    interval = found["difference"]
    title = f"{pair['models'][1]} less {pair['models'][0]}: {signed(interval)}, n = {found['n']}"
    return Mark(interval["value"], interval["low"], interval["high"], colour, title)


# --- the benchmark's own measures ----------------------------------------------------------------


def scores_table(own: Own) -> Table | None:
    """Means of the benchmark's other measures, with intervals, and the kinds of output in percent."""
    measures = list(dict.fromkeys(k for found in own.values() for k in found["scores"]))
    outcomes = list(dict.fromkeys(k for found in own.values() for k in found["outcomes"]))
    nothing = {"value": None}
    rows = [
        [m, *(with_interval(f["scores"].get(m, nothing), "share") for f in own.values())] for m in measures
    ]  # fmt: skip
    for outcome in outcomes:
        shares = [f["outcomes"].get(outcome, 0) / max(1, f["attempts"]) for f in own.values()]
        rows.append([f"output: {outcome} %", *map(percent, shares)])
    return (
        Table(["measure", *own], rows, caption="Other measures, and kinds of output")
        if rows
        else None
    )


def own_table(own: Own) -> Table | None:
    """The benchmark's own aggregates (official formulas), as it gives them."""
    flat = {model: dict(_flat(found["own"])) for model, found in own.items()}
    keys = list(dict.fromkeys(k for found in flat.values() for k in found))
    rows = [[key, *(number(found.get(key)) for found in flat.values())] for key in keys]
    caption = "The benchmark's own aggregates; shares from 0 to 1"
    return Table(["aggregate", *own], rows, caption=caption) if rows else None


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float | int]]:
    for key, found in value.items():
        if isinstance(found, Mapping):
            yield from _flat(found, f"{prefix}{key} / ")
        elif isinstance(found, int | float):
            yield f"{prefix}{key}", found


def irrelevance(own: Own) -> Table | None:
    """Where no call is due: clean abstentions, decode failures (officially right), wrong calls."""
    rows = []
    for model, found in own.items():
        for category, part in found["by_category"].items():
            if "irrelevance" in category:
                rows.append([category, model, *_split(part)])
    header = ["category", "model", "n", "clean abstention %", "decode failure %", "wrong call %", "other %",
              "official score %"]  # fmt: skip
    caption = (
        "Where no call is due; the official rule counts output that cannot be decoded as right"
    )
    return Table(header, rows, 2, caption=caption) if rows else None


def _split(part: Mapping[str, Any]) -> list[str]:
    kinds, attempts = part["outcomes"], max(1, part["attempts"])
    clean, calls = kinds.get("abstained", 0), kinds.get("calls", 0)
    failed = sum(kinds.get(k, 0) for k in DECODE_FAILURES)
    rest = sum(kinds.values()) - clean - calls - failed
    shares = [percent(k / attempts) for k in (clean, failed, calls, rest)]
    return [f"{part['n']:,}", *shares, percent(part["accuracy"]["value"])]


def unanswerable(own: Own, items: Items, name: str) -> list[Block]:
    """Items whose labels no answer can meet, and what each model scored there."""
    ids = list(dict.fromkeys(i for f in own.values() for i in f["own"].get("unanswerable", ())))
    if not ids:
        return []
    lines = {m: items.get(m, {}).get(name, ()) for m in own}
    scores = {(m, i): [x["correct"] for x in lines[m] if x["id"] == i] for m in own for i in ids}
    rows = [[i, *(number(fmean(scores[m, i]) if scores[m, i] else None) for m in own)] for i in ids]
    caption = (
        "Items whose labels no answer, or only a degenerate one, can meet; they stay in every score"
    )
    return [Table(["unanswerable item", *own], rows, caption=caption)]


# --- protocol and texts --------------------------------------------------------------------------


def protocol(results: Results, name: str) -> list[Block]:
    """What was done and how, and the exact prompts."""
    entry = results["benchmarks"][name]
    rows = [[key, str(text)] for key, text in entry["protocol"].items()]
    blocks: list[Block] = [Heading("Protocol", 3)]
    blocks += [Table(["part", "how"], rows, wide=(1,))] if rows else []
    folds = prompts(results["prompts"], name)
    return (
        [*blocks, Heading("Prompts, as they were sent", 3), Folds(folds, brief=2)]
        if folds
        else blocks
    )


def prompts(found: Mapping[str, Any], name: str) -> list[Fold]:
    """Each distinct prompt once, with the models that were sent it."""
    models: dict[tuple[str, str], list[str]] = {}
    for model, own in found.items():
        for prompt in own.get(name, ()):
            models.setdefault((prompt["title"], prompt["text"]), []).append(model)
    return [Fold(title, text, using) for (title, text), using in models.items()]


def texts(results: Results, items: Items, name: str, models: Sequence[str]) -> list[Block]:
    """Right and wrong examples of each model, and items on which two models differ."""
    blocks: list[Block] = []
    for model in models:
        lines = items.get(model, {}).get(name, ())
        if lines:
            blocks += [Heading(f"Examples: {model}", 3), examples.examples(model, lines)]
    for pair in results["paired"].get(name, ()):
        one, other = pair["models"]
        if "refused" not in pair:
            first, second = (items.get(m, {}).get(name, ()) for m in (one, other))
            blocks += changed(*examples.flips(first, second, (one, other)), one, other)
    return blocks


def changed(
    better: list[Fold], worse: list[Fold], one: str, other: str, most: int | None = examples.FLIPS
) -> list[Block]:
    """Items that changed, both ways, the largest changes first.

    Args:
        most: shown each way; ``None`` shows all.
    """
    blocks: list[Block] = []
    for kind, folds in (("better", better), ("worse", worse)):
        if folds:
            shown = folds[:most]
            more = "" if len(shown) == len(folds) else f", {len(shown)} shown (all: items/)"
            title = f"{len(folds)} items on which {other} is {kind} than {one}{more}"
            blocks += [Heading(title, 3), Folds(shown, brief=1, searchable=True)]
    return blocks
