"""Having a source: a mirror's upstream files, else a mirror's records, else the network.

One module per fetcher (`pypi`, `huggingface`, `git`, `path`). Each writes upstream's files into a
folder and returns the revision it found; what is common to them is here and in `base`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from cahl_core.datasets.archives import check_gzip
from cahl_core.datasets.fetchers import git, hub, own, pypi
from cahl_core.datasets.fetchers.base import Context, copy_files, counted, records_in, upstream_in
from cahl_core.datasets.sources import ORIGIN_FILE, Origin, Source
from cahl_core.errors import SourceError
from cahl_core.files import sha256

FETCHERS: dict[str, Callable[[Source, Path, Context], str]] = {
    "pypi": pypi.fetch,
    "huggingface": hub.fetch,
    "git": git.fetch,
    "path": own.fetch,
}

__all__ = ["FETCHERS", "Context", "fetch_into"]


def fetch_into(source: Source, target: Path, context: Context) -> Origin:
    """Writes the files of ``source`` and SOURCE.yaml into the empty folder ``target``.

    Raises:
        ChecksumError: a file is not the declared one; nothing else is tried in its place.
        SourceError: the source cannot be had, or a file of it is damaged.
    """
    form, revision = _obtain(source, target, context)
    for path in sorted(target.rglob("*.gz")):
        if not path.name.endswith(".tar.gz"):
            check_gzip(path)
    files = {str(p.relative_to(target)): p for p in sorted(target.rglob("*")) if p.is_file()}
    if not files:
        raise SourceError(
            f"source '{source.name}': {source.origin} has no file that matches "
            f"{', '.join(source.files) or 'a data file'}",
            "correct files and folder in data/sources.yaml",
        )
    records = source.records
    origin = Origin(
        source.name,
        "records" if form == "records" else "upstream",
        records.format if form == "records" and records else source.format,
        source.licence,
        source.citation,
        revision,
        {name: sha256(path) for name, path in files.items()},
    )
    (target / ORIGIN_FILE).write_text(origin.to_yaml(), encoding="utf-8")
    context.log(f"{source.name}: {counted(len(files))} ({origin.form}), {source.licence}")
    return origin


def _obtain(source: Source, target: Path, context: Context) -> tuple[str, str]:
    """Puts the files into ``target``; returns their form and revision."""
    if source.fetcher == "path":
        return "upstream", own.fetch(source, target, context)
    declared = source.package or source.revision or ""
    if source.fetcher == "pypi":
        if pypi.from_mirror(source, target, context):
            return "upstream", declared
    elif found := upstream_in(source, context):
        copy_files(found, source.files, target, source, context)
        return "upstream", declared
    if source.records and (found := records_in(source, context)):
        copy_files(found, source.records.files, target, source, context)
        return "records", declared
    return "upstream", FETCHERS[source.fetcher](source, target, context)
