"""Unpacking zip files (wheels too), tar and tar.gz that nobody has vetted.

All names and sizes are looked at before the first byte is written, and the bytes are counted again
while they are written. Refused: absolute paths, ``..``, backslashes, drives, control characters, links,
devices, sparse and encrypted members, names that repeat, differ only by case or run through a file,
and more than `MAX_MEMBERS` members, `MAX_BYTES` in all or `MAX_RATIO` times the archive's size.
"""

from __future__ import annotations

import gzip
import stat
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import IO, cast

from cahl_core.errors import SourceError
from cahl_core.files import atomic_file

MIB = 2**20
MAX_BYTES = 8 * 2**30
MAX_RATIO = 200  # deflate reaches 1032; the JSON of the sources here stays below 40
RATIO_FREE_BYTES = 32 * MIB  # a small archive may shrink as much as it likes
MAX_MEMBERS = 100_000
GZIP_MAGIC = b"\x1f\x8b"
BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    gzip.BadGzipFile,
    EOFError,
    zlib.error,
    NotImplementedError,
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of an archive: its checked name, its stated size, and how to open it."""

    name: str
    size: int
    open: Callable[[], IO[bytes]]


@contextmanager
def open_archive(path: Path) -> Iterator[tuple[Member, ...]]:
    """Yields the members of ``path``, checked; directories are left out.

    Raises:
        SourceError: not a whole zip, tar or tar.gz, or a member that is refused.
    """
    kind = archive_kind(path)
    if kind is None:
        raise SourceError(f"{path} is not a zip, tar or tar.gz file", "get the file again")
    try:
        with _open_zip(path) if kind == "zip" else _open_tar(path) as members:
            yield members
    except BROKEN as error:
        raise SourceError(
            f"{path} is damaged or ends early: {error or type(error).__name__}",
            "get the file again; a download that was cut looks like this",
        ) from error


def archive_kind(path: Path) -> str | None:
    """``zip``, ``tar`` or ``None``, by content; a gzip counts as tar where its name says so."""
    if zipfile.is_zipfile(path):
        return "zip"
    with path.open("rb") as stream:
        start = stream.read(262)
    if start[:2] == GZIP_MAGIC:
        return "tar" if path.name.endswith((".tar.gz", ".tgz")) else None
    return "tar" if start[257:262] == b"ustar" else None


def unpack_archive(path: Path, target: Path) -> list[str]:
    """Unpacks all files of ``path`` below ``target``; returns their names in archive order."""
    with open_archive(path) as members:
        for member in members:
            write_member(member, target / member.name, path)
        return [member.name for member in members]


def write_member(member: Member, path: Path, archive: Path) -> None:
    """Writes one member to ``path``; more bytes than it stated are a `SourceError`."""
    with member.open() as source, atomic_file(path) as temporary, temporary.open("wb") as out:
        left = member.size
        while block := source.read(MIB):
            left -= len(block)
            if left < 0:
                raise SourceError(
                    f"{archive}: member '{member.name}' is larger than the {member.size} bytes it "
                    "states",
                    "do not use this file",
                )
            out.write(block)
        if left:
            raise EOFError(f"member '{member.name}' lacks {left} bytes")


def check_gzip(path: Path) -> None:
    """Raises `SourceError` unless ``path`` is one whole gzip file within the limits."""
    try:
        with gzip.open(path) as stream:
            _drain(stream, path)
    except BROKEN as error:
        raise SourceError(
            f"{path} is a gzip file that is damaged or ends early: {error}",
            "get the file again; a download that was cut looks like this",
        ) from error


def _drain(stream: gzip.GzipFile, path: Path) -> int:
    total = 0
    while block := stream.read(MIB):
        total += len(block)
        _refuse_size(total, path)
    return total


@contextmanager
def _open_zip(path: Path) -> Iterator[tuple[Member, ...]]:
    with zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if kind not in (0, stat.S_IFREG):
                raise _refused(path, entry.filename, "is a link or a device")
            if entry.flag_bits & 1:
                raise _refused(path, entry.filename, "is encrypted")
        _check_all([(entry.filename, entry.file_size) for entry in entries], path)
        yield tuple(
            Member(_clean(entry.filename), entry.file_size, _zip_opener(archive, entry))
            for entry in entries
        )


def _zip_opener(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Callable[[], IO[bytes]]:
    return lambda: archive.open(entry)


@contextmanager
def _open_tar(path: Path) -> Iterator[tuple[Member, ...]]:
    total = _tar_size(path)
    with tarfile.open(path, "r:*") as archive:
        entries = [entry for entry in archive.getmembers() if not entry.isdir()]
        if total < archive.offset + tarfile.BLOCKSIZE:  # tarfile takes a cut between members as end
            raise EOFError("no end-of-archive block")
        for entry in entries:
            if not entry.isreg() or entry.issparse():
                raise _refused(path, entry.name, "is a link, a device or a sparse file")
        _check_all([(entry.name, entry.size) for entry in entries], path)
        yield tuple(
            Member(_clean(entry.name), entry.size, _tar_opener(archive, entry)) for entry in entries
        )


def _tar_opener(archive: tarfile.TarFile, entry: tarfile.TarInfo) -> Callable[[], IO[bytes]]:
    return lambda: cast("IO[bytes]", archive.extractfile(entry))


def _tar_size(path: Path) -> int:
    """Bytes of the tar itself; tarfile reads a whole tar.gz to list it, so bound that first."""
    with path.open("rb") as stream:
        if stream.read(2) != GZIP_MAGIC:
            return path.stat().st_size
    with gzip.open(path) as unzipped:
        return _drain(unzipped, path)


def _check_all(entries: list[tuple[str, int]], path: Path) -> None:
    if len(entries) > MAX_MEMBERS:
        raise SourceError(f"{path} has {len(entries)} members, {MAX_MEMBERS} allowed")
    _refuse_size(sum(size for _, size in entries), path)
    seen: dict[str, str] = {}
    for name, _ in entries:
        _check_name(name, path)
        key = _key(_clean(name))
        if key in seen:
            raise _refused(path, name, f"has the same name as '{seen[key]}', but for case")
        seen[key] = name
    for key, name in seen.items():
        for parent in PurePosixPath(key).parents:
            if str(parent) in seen:
                raise _refused(path, name, f"lies below the file '{seen[str(parent)]}'")


def _check_name(name: str, path: Path) -> None:
    parts = PurePosixPath(name).parts
    leaves = PurePosixPath(name).is_absolute() or ".." in parts or "\\" in name
    if leaves or PureWindowsPath(name).drive:
        raise _refused(path, name, "points outside the target")
    if not parts or any(unicodedata.category(character) == "Cc" for character in name):
        raise _refused(path, name, "has no usable name")


def _clean(name: str) -> str:
    return str(PurePosixPath(name))


def _key(name: str) -> str:
    """Equal for two names that a file system may take for the same."""
    return unicodedata.normalize("NFC", name.casefold())


def _refuse_size(total: int, path: Path) -> None:
    allowed = min(MAX_BYTES, max(RATIO_FREE_BYTES, MAX_RATIO * path.stat().st_size))
    if total > allowed:
        raise SourceError(
            f"{path} unpacks to more than {allowed // MIB} MiB ({MAX_RATIO} times its size, "
            f"{MAX_BYTES // MIB} MiB at most)",
            "do not use this file; if you trust it, unpack it yourself and give the folder",
        )


def _refused(path: Path, name: str, why: str) -> SourceError:
    return SourceError(f"{path}: member {name!a} {why}", "do not use this file")
