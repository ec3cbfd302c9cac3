"""Fetcher ``path``: the user's own file, folder or archive."""

from __future__ import annotations

import shutil
from pathlib import Path

from cahl_core.datasets.archives import archive_kind, unpack_archive
from cahl_core.datasets.fetchers.base import Context, counted
from cahl_core.datasets.sources import Source
from cahl_core.datasets.wheels import check_sum
from cahl_core.errors import ChecksumError, SourceError
from cahl_core.files import tree_digest


def fetch(source: Source, target: Path, context: Context) -> str:
    """Copies the file or folder, or unpacks the archive, below ``target``; returns no revision.

    Raises:
        ChecksumError: it is not the declared one. SourceError: it is not there, or is refused.
    """
    path = own_path(source, context.root)
    if path.is_dir():
        _copy_folder(path, target)
    elif archive_kind(path) is not None:
        names = unpack_archive(path, target)
        context.log(f"{source.name}: {counted(len(names))} unpacked from {path.name}")
    else:
        shutil.copyfile(path, target / path.name)
    return ""


def own_path(source: Source, root: Path) -> Path:
    """The declared path of the user, checked against its sum (of a folder: `tree_digest`)."""
    path = root / Path(source.path or "").expanduser()
    if not path.exists():
        raise SourceError(
            f"source '{source.name}': {path} does not exist", "correct path in data/sources.yaml"
        )
    if path.is_file():
        check_sum(path, source.sha256, source.name)
    elif source.sha256 is not None and tree_digest(path) != source.sha256:
        raise ChecksumError(
            f"source '{source.name}': {path} has digest {tree_digest(path)}, "
            f"declared {source.sha256}",
            "restore the directory, or correct sha256 in data/sources.yaml",
        )
    return path


def _copy_folder(path: Path, target: Path) -> None:
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            raise SourceError(f"{file} is a symbolic link", "replace it by the file it points to")
        if file.is_file():
            copy = target / file.relative_to(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
