"""What the fetchers share: where to look first, copying with sums, the sentence for offline machines."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cahl_core.datasets.sources import Source
from cahl_core.datasets.wheels import check_sum
from cahl_core.errors import SourceError

Log = Callable[[str], None]
SHOWN = 3


@dataclass(frozen=True)
class Context:
    """What a fetch may use: the project, mirrors in order, attempts after the first, a log."""

    root: Path
    mirrors: tuple[Path, ...]
    retries: int
    log: Log

    @property
    def downloads(self) -> Path:
        """Where finished and unfinished downloads stay between runs."""
        return self.root / ".cahl" / "downloads"


def upstream_in(source: Source, context: Context) -> dict[str, Path] | None:
    """The source's declared files in the first mirror folder that has them all, by name.

    ``MIRROR/<source>/`` and ``MIRROR/<records.folder>/`` are looked at, and ``MIRROR/`` itself where
    every file has a declared sum: a bare ``data.json`` there may belong to any source.
    """
    if not source.files:
        return None
    for folder in _folders(source, context.mirrors):
        found = _all_in(folder, list(source.files), source, context.log)
        if found is not None:
            return found
    return None


def records_in(source: Source, context: Context) -> dict[str, Path] | None:
    """The source in ToolTask form in the first mirror that has all its files, by name."""
    records = source.records
    if records is None or not records.files:
        return None
    for mirror in context.mirrors:
        found = _all_in(mirror / records.folder, list(records.files), source, context.log)
        if found is not None:
            return found
    return None


def _folders(source: Source, mirrors: Sequence[Path]) -> Iterator[Path]:
    for mirror in mirrors:
        yield mirror / source.name
        if source.records and source.records.folder != source.name:
            yield mirror / source.records.folder
        if all(source.files.values()):
            yield mirror


def _all_in(folder: Path, names: list[str], source: Source, log: Log) -> dict[str, Path] | None:
    found: dict[str, Path] = {}
    missing = []
    for name in names:
        matches = [p for p in sorted(folder.glob(name)) if p.is_file()]
        found |= {str(p.relative_to(folder)): p for p in matches}
        missing += [] if matches else [name]
    if found and missing:
        log(
            f"{source.name}: {folder} has {counted(len(found))} but lacks {some(missing)}; not used"
        )
    return None if missing else found


def counted(number: int) -> str:
    """``1 file``, ``2 files``."""
    return f"{number} file" + "s" * (number != 1)


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def copy_files(
    found: Mapping[str, Path],
    sums: Mapping[str, str | None],
    target: Path,
    source: Source,
    context: Context,
) -> None:
    """Copies the files under their names; a declared sum that does not hold is a ChecksumError."""
    for name, path in found.items():
        check_sum(path, sums.get(name), source.name)
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    context.log(f"{source.name}: {counted(len(found))} from {next(iter(found.values())).parent}")


def unreachable(source: Source, reason: str, advice: str) -> SourceError:
    """The error of a machine without network: what was asked, why not, what to do elsewhere."""
    places = f"DIR/{source.name}/<file>"
    if source.records and source.records.files:
        records = f"DIR/{source.records.folder}/{some(list(source.records.files))}"
        places += f", or {records} in the form of cahl_core/records.py"
    return SourceError(
        f"source '{source.name}' could not be downloaded: {source.origin}\n    {reason}",
        f"on a machine with network: {advice}; copy DIR here and set CAHL_MIRROR=DIR "
        f"(looked for: {places}); fetch.mirror in params.yaml does the same",
    )
