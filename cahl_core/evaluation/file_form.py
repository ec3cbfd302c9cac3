"""What kind of file a user gave, by its content: names lie, and so does the end of a name.

``datasets.raw`` chooses its reader by the name; here the file gets a name that fits what is in it.
"""

from __future__ import annotations

import difflib
import gzip
import json
import zlib
from pathlib import Path
from typing import IO, cast

from cahl_core.errors import ConfigError, DataError

PARQUET, GZIP = b"PAR1", b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
OTHER_ENCODINGS = {
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
    b"\x00\x00\xfe\xff": "UTF-32",
}
BINARY = {
    b"PK\x03\x04": "a ZIP archive",
    b"%PDF": "a PDF document",
    b"\x80\x04": "a Python pickle, which is never read",
    b"\x80\x05": "a Python pickle, which is never read",
    b"\x28\xb5\x2f\xfd": "compressed with zstd",
    b"BZh": "compressed with bzip2",
    b"\xfd7zXZ": "compressed with xz",
}  # fmt: skip
FIRST = 1 << 20  # bytes in which the first line must end for its form to be told


def require_file(path: Path) -> None:
    """
    Raises:
        ConfigError: ``path`` is no readable file; names what is there instead.
    """
    if path.is_dir():
        inside = sorted(
            p.name for p in path.iterdir() if p.suffix in (".jsonl", ".json", ".parquet")
        )
        raise ConfigError(
            f"{path} is a folder, a file of tasks is needed",
            f"give one of its files: {', '.join(inside[:5])}" if inside
            else "it holds no .jsonl, .json or .parquet file",
        )  # fmt: skip
    if not path.exists():
        folder = path.parent if path.parent.is_dir() else None
        names = [p.name for p in folder.iterdir() if p.is_file()] if folder else []
        near = difflib.get_close_matches(path.name, names, 1)
        raise ConfigError(
            f"{path} does not exist" + ("" if folder else f", nor does its folder {path.parent}"),
            f"did you mean {path.parent / near[0]}?" if near else "check the path",
        )
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}", "check its permissions"
        ) from error


def readable_form(path: Path, scratch: Path) -> Path:
    """The file under a name that `datasets.raw.read_file` reads rightly: a link, or a copy without BOM.

    Raises:
        DataError: empty, or no text and no Parquet.
    """
    with path.open("rb") as stream:
        start = stream.read(8)
    _refuse(path, start)
    if start.startswith(PARQUET):
        return _linked(path, scratch / "tasks.parquet")
    zipped = start.startswith(GZIP)
    if path.suffix == ".gz" and not zipped:
        raise DataError(f"{path} is named .gz but is not compressed", "rename it, or compress it")
    head = _head(path, zipped)
    if not head.strip():
        raise DataError(f"{path} is empty", "write one JSON record per line")
    _refuse(path, head)
    kind = "jsonl" if _in_lines(head) else "json"
    if head.startswith(BOM):
        with _opened(path, zipped) as stream:
            copy = scratch / f"tasks.{kind}"
            copy.write_bytes(stream.read().removeprefix(BOM))
        return copy
    return _linked(path, scratch / f"tasks.{kind}{'.gz' if zipped else ''}")


def _refuse(path: Path, start: bytes) -> None:
    for mark, kind in BINARY.items():
        if start.startswith(mark):
            raise DataError(
                f"{path} is {kind}", "give JSON Lines, JSON or Parquet; the text may be gzipped"
            )
    for mark, encoding in OTHER_ENCODINGS.items():
        if start.startswith(mark):
            raise DataError(f"{path} is written in {encoding}", "save it as UTF-8")


def _head(path: Path, zipped: bool) -> bytes:
    """The first megabyte, or what can be had of it: damage further on is told by the reader."""
    try:
        with _opened(path, zipped) as stream:
            return stream.read(FIRST)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged: {error}", "compress or copy it again") from error


def _opened(path: Path, zipped: bool) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(path) if zipped else path.open("rb"))


def _in_lines(head: bytes) -> bool:
    """Whether a text holds one JSON value per line, rather than one value over many lines.

    A list is one value; an object alone on the first line begins JSON Lines, and so does a first line
    that is broken unless it only ends too early.
    """
    text = head.removeprefix(BOM).lstrip()
    if text.startswith(b"["):
        return False
    first, _, rest = text.partition(b"\n")
    if not rest.strip():
        return True
    try:
        json.loads(first)
    except (ValueError, RecursionError):
        return not first.rstrip().endswith((b"{", b"[", b","))
    return True


def _linked(path: Path, link: Path) -> Path:
    link.symlink_to(path.absolute())
    return link
