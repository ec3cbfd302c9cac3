"""Reading and writing files so that a half-written one is never taken for a whole one."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cahl_core.errors import DataError, StorageError


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError while writing ``path`` into a `StorageError` that says what to free."""
    try:
        yield
    except OSError as error:
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EACCES: "no permission",
            errno.EROFS: "the file system is read-only",
        }.get(error.errno or 0)
        if reason is None:
            raise
        free = shutil.disk_usage(existing_parent(path)).free / 2**20
        raise StorageError(
            f"cannot write {path}: {reason} ({free:.0f} MiB free)",
            "free space or choose another project directory; what was there before is untouched",
        ) from error


def existing_parent(path: Path) -> Path:
    """The nearest ancestor of ``path`` that exists."""
    return next(p for p in [path, *path.absolute().parents] if p.exists())


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path``; renames it over ``path`` only if the body succeeds."""
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            _fsync(temporary)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside ``path``; it replaces ``path`` only if the body succeeds."""
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield temporary
            temporary.chmod(0o755)
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(0o644)
                    _fsync(file)
            _fsync(temporary)
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            if path.exists():
                path.replace(old / path.name)
            temporary.replace(path)
            _fsync(path.parent)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def sweep(path: Path) -> None:
    """Removes what killed writers of ``path`` left beside it. Nobody else may be writing it now."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


_compact = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """JSON with stable key order as given, UTF-8 kept, NaN refused."""
    if indent is None:
        return _compact(value)
    return json.dumps(value, ensure_ascii=False, allow_nan=False, indent=indent)


def write_json(path: Path, value: Any) -> None:
    """Writes indented JSON atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(dump_json(value, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON; a malformed file is a `DataError` with line and column."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from error


def write_jsonl(path: Path, records: Iterable[Any]) -> int:
    """Writes one compact JSON value per line, atomically; returns the number written."""
    count = 0
    with atomic_file(path) as temporary, temporary.open("w", encoding="utf-8") as out:
        for count, record in enumerate(records, 1):  # noqa: B007
            out.write(dump_json(record) + "\n")
    return count


def read_jsonl(path: Path) -> Iterator[Any]:
    """Yields the values of a JSON Lines file; a bad line is a `DataError` naming it."""
    with Path(path).open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{path}:{number}: not JSON: {error.msg}") from error


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(value: Any) -> str:
    """Hex digest (16 characters) of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def tree_digest(path: Path) -> str:
    """Hex digest (16 characters) of a file's or directory's contents and relative names."""
    path = Path(path)
    if path.is_file():
        return sha256(path)[:16]
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return digest([[str(p.relative_to(path)), sha256(p)] for p in files])
