"""``cahl data``: what there is to train on, where it is, and what its records look like.

Mounted by `cahl_core.cli`; imports nothing heavy at module level. Tables are drawn on a terminal,
aligned text goes into a pipe, ``--json`` is for machines.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cahl_core.tables import show_table

if TYPE_CHECKING:
    from cahl_core.config import Settings
    from cahl_core.datasets.fetchers import Context
    from cahl_core.datasets.fetchers.inventory import Holding
    from cahl_core.datasets.sources import Source

Profile = Annotated[str | None, typer.Option(help="Overlay in configs/.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."),
]
Root = Annotated[Path, typer.Option(help="Project directory, with params.yaml and configs/.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for machines.")]
Name = Annotated[str, typer.Argument(help="A source of data/sources.yaml.")]
Names = Annotated[list[str], typer.Argument(help="Sources of data/sources.yaml.")]

HEADINGS = ("name", "kind", "licence", "use", "fetcher", "size", "where")

app = typer.Typer(
    name="data",
    help="Sources: list, fetch, show, count, validate.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list")
def list_sources(
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
    as_json: AsJson = False,
) -> None:
    """Every source: licence, use, size, and whether it is fetched, mirrored or on the network."""
    with _project("data list", root, profile, overrides) as (root, settings):
        found = _holdings(root, settings)
        if as_json:
            _print_json([_entry(holding) for holding in found])
        else:
            show_table(HEADINGS, [_cells(holding) for holding in found])


@app.command()
def fetch(
    names: Names, profile: Profile = None, overrides: Overrides = None, root: Root = Path()
) -> None:
    """Fetch single sources into data/raw, beside what is there.

    `dvc repro` makes data/raw anew from fetch.sources: name a source there to keep it.
    """
    with _project("data fetch", root, profile, overrides) as (root, settings):
        from cahl_core.datasets.fetch import fetch_sources
        from cahl_core.datasets.sources import load_sources
        from cahl_core.stage import StageRun, lock

        with lock(root, "fetch"):  # two downloads must not write to one file
            fetch_sources(StageRun("fetch", root, settings), names, load_sources(root))
        if others := [name for name in names if name not in settings.fetch.sources]:
            print(f"not in fetch.sources, so the next `dvc repro fetch` removes it: {', '.join(others)}",
                  file=sys.stderr)  # fmt: skip


@app.command()
def show(
    name: Name,
    record_id: Annotated[str | None, typer.Option("--id", help="Only this record.")] = None,
    count: Annotated[int, typer.Option("-n", min=0, help="How many records.")] = 3,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
    as_json: AsJson = False,
) -> None:
    """One source: licence, citation, origin, and its first records."""
    with _project("data show", root, profile, overrides) as (root, settings):
        from cahl_core.datasets.sources import load_sources, pick
        from cahl_core.datasets.view import read_records, render

        context = _context(root, settings)
        source = pick(load_sources(root), name)
        held = _hold(source, context)
        records = list(read_records(held, context, settings.prepare, record_id, count))
        if as_json:
            _print_json({"source": _entry(held), "records": records})
            return
        _facts(held)
        for record in records:
            print(f"\n{render(record)}")
        if held.where == "network":
            print(f"\nnot at hand: cahl data fetch {name}")


@app.command()
def stats(
    names: Annotated[
        list[str] | None, typer.Argument(help="Sources; default: all at hand.")
    ] = None,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
    as_json: AsJson = False,
) -> None:
    """Counts by source: records, steps, depth, tools, tokens, languages."""
    with _project("data stats", root, profile, overrides) as (root, settings):
        from cahl_core.datasets.statistics import command

        command(root, settings, names or [], as_json)


@app.command()
def validate(
    target: Annotated[str, typer.Argument(help="A source, a file or a folder.")],
    file_format: Annotated[
        str | None, typer.Option("--format", help="Format of a file, as in data/sources.yaml.")
    ] = None,
    profile: Profile = None,
    overrides: Overrides = None,
    root: Root = Path(),
    as_json: AsJson = False,
) -> None:
    """Which records hold and which break what rule, without preparing anything."""
    with _project("data validate", root, profile, overrides) as (root, settings):
        from cahl_core.datasets.validation import command

        command(root, settings, target, file_format, as_json)


@contextmanager
def _project(
    command: str, root: Path, profile: str | None, overrides: list[str] | None
) -> Iterator[tuple[Path, Settings]]:
    """The project's absolute directory and settings; failures end as those of a stage do."""
    from cahl_core import cli

    root = root.absolute()
    stage = "fetch" if command == "data fetch" else "data"
    with cli._failures(command, root):
        yield root, cli._prepare(stage, root, profile, overrides)


def _context(root: Path, settings: Settings) -> Context:
    from cahl_core.datasets.fetch import context_of
    from cahl_core.stage import StageRun

    return context_of(StageRun("data", root, settings))


def _hold(source: Source, context: Context) -> Holding:
    from cahl_core.datasets.fetchers.inventory import holding

    return holding(source, context)


def _holdings(root: Path, settings: Settings) -> list[Holding]:
    from cahl_core.datasets.sources import load_sources

    context = _context(root, settings)
    return [_hold(source, context) for source in load_sources(root).values()]


def _entry(held: Holding) -> dict[str, Any]:
    entry = held.source.model_dump(mode="json", exclude_none=True)
    return entry | {"where": held.where, "form": held.form, "bytes": held.size}


def _cells(held: Holding) -> tuple[str, ...]:
    source = held.source
    licence = source.licence + (" (share-alike)" if source.share_alike else "")
    licence += "" if "commercial" in source.permits else " (research only)"
    return (
        source.name, source.kind, licence, held.use, source.fetcher, readable(held.size), held.place,
    )  # fmt: skip


def _facts(held: Holding) -> None:
    source = held.source
    facts = [
        ("name", source.name),
        ("about", source.description),
        ("licence", _cells(held)[2]),
        ("permits", ", ".join(source.permits)),
        ("use", held.use),
        ("citation", source.citation or "none given"),
        ("origin", source.origin),
        ("format", source.format),
        ("where", f"{held.place}, {readable(held.size)}"),
    ]
    width = max(len(key) for key, _ in facts)
    for key, value in facts:
        print(f"{key:<{width}}  {value}")


def readable(size: int) -> str:
    """Bytes in words: ``?`` for 0.

    >>> readable(1500), readable(93_000_000), readable(0)
    ('1.5 kB', '93.0 MB', '?')
    """
    if not size:
        return "?"
    amount, unit = float(size), "B"
    for larger in ("kB", "MB", "GB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:.0f} B" if unit == "B" else f"{amount:.1f} {unit}"


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False, indent=2))
