"""Records of a source's files as they come, one at a time: JSON Lines, JSON, Parquet, each also gzip.

A file or line that cannot be read becomes a `RawRecord` with a problem instead of a value, so that it
is quarantined and counted like any other record and never ends the reading.
"""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn, cast

EXCERPT = 160
PATTERNS = ("*.jsonl", "*.json", "*.parquet", "*.jsonl.gz", "*.json.gz")


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One value of a file with its place (``train.jsonl:12``), or the rule it broke and how."""

    where: str
    value: Any = None
    problem: tuple[str, str] | None = None
    excerpt: str = ""  # how a record with a problem begins


def read_raw(
    folder: Path, max_chars: int, patterns: tuple[str, ...] = PATTERNS
) -> Iterator[RawRecord]:
    """Yields the records of all matching files below ``folder``, files sorted by their path.

    Args:
        max_chars: a longer line (or element of a JSON list) gives ``record_too_large``.
    """
    files = sorted(
        {path for pattern in patterns for path in folder.rglob(pattern) if path.is_file()}
    )
    for path in files:
        yield from read_file(path, str(path.relative_to(folder)), max_chars)


def read_file(path: Path, name: str, max_chars: int) -> Iterator[RawRecord]:
    """Yields the records of one file; ``name`` is the place they report."""
    if path.name.endswith(".parquet"):
        yield from _parquet(path, name, max_chars)
        return
    try:
        with _open(path) as stream:
            if ".jsonl" in path.name:
                yield from _lines(stream, name, max_chars)
            else:
                yield from _whole(stream, name, max_chars)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        yield RawRecord(
            name, problem=("unreadable_file", f"gzip ends early or is damaged: {error}")
        )


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, uncompressed; the caller closes it."""
    return cast("IO[bytes]", gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def _lines(stream: IO[bytes], name: str, max_chars: int) -> Iterator[RawRecord]:
    for number, line in enumerate(stream, 1):
        if line.strip():
            yield parse_line(line, f"{name}:{number}", max_chars)


def parse_line(line: bytes, where: str, max_chars: int) -> RawRecord:
    """One JSON text as a record; never raises.

    >>> parse_line(b'{"a": NaN}', "x:1", 100).problem
    ('not_json', 'NaN is not a JSON value')
    """
    shown = line[: 2 * EXCERPT].decode("utf-8", errors="replace")[:EXCERPT].strip()

    def broken(rule: str, detail: str) -> RawRecord:
        return RawRecord(where, problem=(rule, detail), excerpt=shown)

    if len(line) > 4 * max_chars:  # UTF-8 has at most four bytes a character
        return broken("record_too_large", f"{len(line)} bytes")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        return broken("invalid_utf8", f"byte {error.start} of the record")
    if len(text) > max_chars:
        return broken("record_too_large", f"{len(text)} characters, {max_chars} allowed")
    try:
        value = json.loads(
            text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique
        )
        return RawRecord(where, value)
    except RecursionError:
        return broken("not_json", "nested too deeply")
    except ValueError as error:
        return broken("not_json", str(error))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):  # 1e999 is JSON text, but no number that JSON can be written from
        raise ValueError(f"{digits} is too large a number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"key '{next(n for n in names if names.count(n) > 1)}' is given twice")
    return value


def _whole(stream: IO[bytes], name: str, max_chars: int) -> Iterator[RawRecord]:
    """A JSON file: the elements of its top-level list, or the one value it holds."""
    content = stream.read()
    found = parse_line(content, name, max(len(content), 1))
    if found.problem is not None or not isinstance(found.value, list):
        yield found
        return
    for index, value in enumerate(found.value):
        size = len(json.dumps(value, ensure_ascii=False))
        where = f"{name}[{index}]"
        if size > max_chars:
            yield RawRecord(
                where, problem=("record_too_large", f"{size} characters, {max_chars} allowed")
            )
        else:
            yield RawRecord(where, value)


def _parquet(path: Path, name: str, max_chars: int) -> Iterator[RawRecord]:
    """Rows through ``datasets`` in streaming mode: one batch is in memory at a time."""
    import datasets
    import pyarrow as pa

    try:
        rows = datasets.load_dataset("parquet", data_files=str(path), split="train", streaming=True)
        for index, row in enumerate(rows):
            yield _row(row, f"{name}[{index}]", max_chars)
    except (pa.ArrowInvalid, OSError, ValueError) as error:
        yield RawRecord(name, problem=("unreadable_file", f"not a readable Parquet file: {error}"))


def _row(row: dict[str, Any], where: str, max_chars: int) -> RawRecord:
    """A row, or the record it carries as JSON text (``record``), held to what a line is held to."""
    text = row.get("record")
    if not isinstance(text, str):
        try:
            text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError) as error:  # bytes, times, decimals; NaN
            return RawRecord(where, problem=("not_json", str(error)), excerpt=str(row)[:EXCERPT])
    return parse_line(text.encode("utf-8", errors="surrogatepass"), where, max_chars)
