"""Where each source is at hand: fetched, in a mirror, or only on the network."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cahl_core.datasets.fetchers.base import Context, records_in, upstream_in
from cahl_core.datasets.sources import ORIGIN_FILE, Source, read_origin
from cahl_core.datasets.wheels import find_in_mirrors


@dataclass(frozen=True, slots=True)
class Holding:
    """One source, where it is, in which form, and its size in bytes there (0: not known)."""

    source: Source
    where: Literal["fetched", "mirror", "project", "network"]
    form: Literal["upstream", "records"]
    size: int

    @property
    def place(self) -> str:
        """``where`` and ``form`` in words, for a table."""
        words = {"mirror": "in the mirror", "network": "network", "project": "your path"}
        place = words.get(self.where, self.where)
        return f"{place} (records)" if self.form == "records" else place

    @property
    def use(self) -> str:
        """What the source may be used for."""
        if self.source.kind == "model":
            return "backbone"
        if self.source.kind == "corpus":
            return "search"
        return "test only" if self.source.test_only else "train"


def holding(source: Source, context: Context) -> Holding:
    """Where ``source`` is; what is fetched counts before what a mirror has.

    Raises:
        DataError: SOURCE.yaml of the fetched source does not have its form.
    """
    folder = context.root / "data" / "raw" / source.name
    if folder.is_dir():
        files = [p for p in folder.rglob("*") if p.is_file() and p.name != ORIGIN_FILE]
        return Holding(source, "fetched", read_origin(folder, source).form, _bytes(files))
    if source.fetcher == "path":
        path = context.root / Path(source.path or "").expanduser()
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file()]
        return Holding(source, "project", "upstream", _bytes(files))
    quiet = Context(context.root, context.mirrors, 0, lambda line: None)
    if source.fetcher == "pypi":
        wheel = find_in_mirrors(source, context.mirrors)
        if wheel is not None:
            return Holding(source, "mirror", "upstream", _bytes([wheel]))
    elif found := upstream_in(source, quiet):
        return Holding(source, "mirror", "upstream", _bytes(found.values()))
    if found := records_in(source, quiet):
        return Holding(source, "mirror", "records", _bytes(found.values()))
    return Holding(source, "network", "upstream", source.size)


def _bytes(files: Iterable[Path]) -> int:
    return sum(file.stat().st_size for file in files)
