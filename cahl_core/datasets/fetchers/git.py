"""Fetcher ``git``: single files of a GitHub repository at a commit, over HTTPS and without a clone."""

from __future__ import annotations

import fnmatch
import re
import shutil
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from cahl_core.datasets.fetchers.base import Context, some, unreachable
from cahl_core.datasets.fetchers.download import download
from cahl_core.datasets.sources import Source
from cahl_core.datasets.wheels import check_sum
from cahl_core.errors import ChecksumError, SourceError
from cahl_core.files import read_json
from cahl_core.progress import track

RAW = "https://raw.githubusercontent.com"
MEDIA = "https://media.githubusercontent.com/media"  # where Git LFS keeps what a pointer names
API = "https://api.github.com/repos"
POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_BYTES = 1024


def fetch(source: Source, target: Path, context: Context) -> str:
    """Writes the declared files below ``target``; returns the commit, which pins their content.

    Files stay in ``.cahl/downloads/git``: what is there is not downloaded again.

    Raises:
        ChecksumError: a file is not the declared one. SourceError: one cannot be had.
    """
    context.log(f"{source.name}: {len(source.files)} files or patterns of {source.origin}")
    try:
        names = _names(source, context)
        for name in track(sorted(names), f"{source.name} (files)", len(names)):
            path = _one(source, name, names[name], context)
            copy = target / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    except ChecksumError:
        raise
    except SourceError as error:
        advice = (
            f"git clone https://github.com/{source.repo} and check out {source.revision}; copy "
            f"{some(list(source.files))} from {source.folder or 'its top'} to DIR/{source.name}/"
        )
        raise unreachable(source, error.what, advice) from error
    return source.revision or ""


def _cache(source: Source, context: Context) -> Path:
    assert source.repo is not None and source.revision is not None
    return context.downloads / "git" / source.repo / source.revision / source.folder


def _names(source: Source, context: Context) -> dict[str, str | None]:
    """The declared files with their sums, patterns replaced by the files they match."""
    names: dict[str, str | None] = {}
    for name, expected in source.files.items():
        if "*" not in name:
            names[name] = expected
            continue
        folder = str(PurePosixPath(name).parent)
        matches = [f"{folder}/{n}" for n in _listing(source, folder, context)]
        matches = fnmatch.filter((str(PurePosixPath(m)) for m in matches), name)
        if not matches:
            raise SourceError(f"no file of {source.repo} matches {name}")
        names |= dict.fromkeys(sorted(matches))
    return names


def _listing(source: Source, folder: str, context: Context) -> list[str]:
    """Names of the files in one folder of the repository."""
    inside = str(PurePosixPath(source.folder) / folder)
    path = _cache(source, context) / folder / ".listing.json"
    if not path.exists():
        url = f"{API}/{source.repo}/contents/{quote(inside)}?ref={source.revision}"
        download(url, path, name=source.name, retries=context.retries)
    entries: Any = read_json(path)
    if not isinstance(entries, list):
        raise SourceError(f"{inside} of {source.repo} is not a folder")
    return [entry["name"] for entry in entries if entry.get("type") == "file"]


def _one(source: Source, name: str, expected: str | None, context: Context) -> Path:
    path = _cache(source, context) / name
    if path.exists():
        try:
            check_sum(path, expected, source.name)
            return path
        except ChecksumError:
            path.replace(path.with_name(f"{path.name}.rejected"))
            context.log(f"{source.name}: {path} has a wrong sum, set aside")
    inside = quote(f"{source.repo}/{source.revision}/{PurePosixPath(source.folder) / name}")
    pointer_or_file = download(
        f"{RAW}/{inside}",
        path.with_name(f"{path.name}.raw"),
        name=source.name,
        retries=context.retries,
    )
    return _resolved(pointer_or_file, path, f"{MEDIA}/{inside}", expected, source, context)


def _resolved(
    raw: Path, path: Path, media: str, expected: str | None, source: Source, context: Context
) -> Path:
    """``raw`` as ``path``, or what it points to where Git LFS keeps the content elsewhere."""
    with raw.open("rb") as stream:
        start = stream.read(POINTER_BYTES)
    if start.startswith(POINTER):
        named = re.search(rb"^oid sha256:([0-9a-f]{64})$", start, re.MULTILINE)
        total = expected or (named[1].decode() if named else None)
        download(media, path, name=source.name, retries=context.retries, expected=total)
        raw.unlink()
        return path
    try:
        check_sum(raw, expected, source.name)
    except ChecksumError:
        raw.replace(path.with_name(f"{path.name}.rejected"))
        raise
    return raw.replace(path)
