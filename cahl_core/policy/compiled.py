"""C files of this package as libraries: compiled for the machine once, kept in the user's cache."""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

DIGEST = hashlib.sha256().digest_size


def compiler() -> list[str] | None:
    """The words of the C compiler's command; GCC first, whose OpenMP threads are PyTorch's.

    Raises:
        ValueError: $CC has a quotation that does not end.
    """
    chosen = shlex.split(os.environ.get("CC", ""))
    for words in [chosen] if chosen else [["gcc"], ["cc"]]:
        if shutil.which(words[0]):
            return words
    return None


def library(source: Path, compiler: Sequence[str], flags: Sequence[str]) -> ctypes.CDLL:
    """``source`` as a library, from the user's cache or compiled into it.

    A cache that cannot be read, written or trusted is done without.

    Raises:
        subprocess.CalledProcessError: the compiler failed.
        OSError: what it made cannot be loaded.
    """
    name = f"{source.stem}-{_key(source, compiler, flags)}.so"
    with tempfile.TemporaryDirectory() as scratch:
        path = (_cache() or Path(scratch)) / name
        if _trusted(path):
            with suppress(OSError):  # a file system that nothing may be executed from
                return ctypes.CDLL(str(path))
        made = Path(scratch) / f"new-{name}"
        subprocess.run(
            [*compiler, *flags, str(source), "-o", str(made), "-lm"],
            check=True,
            capture_output=True,
            text=True,
            errors="replace",
        )
        found = ctypes.CDLL(str(made))
        with suppress(OSError):  # kept for the next process; it works without
            _put(made, path)
        return found


def _cache() -> Path | None:
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cahl"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # a home that cannot be written, or none
        return None
    return folder


def _key(source: Path, compiler: Sequence[str], flags: Sequence[str]) -> str:
    told = subprocess.run(
        [*compiler, "--version"], capture_output=True, text=True, errors="replace", check=False
    ).stdout
    described = "\0".join([source.read_text(encoding="utf-8"), *flags, told, _processor()])
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _processor() -> str:
    """What the processor can do: a home directory may be shared by machines of different kinds."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith("flags")), platform.processor())


def _trusted(path: Path) -> bool:
    """Whether the file is whole and nobody but this user can have written it.

    A library that was cut short would end the process when it is loaded.
    """
    if not path.exists():
        return False
    private = all(
        found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        for found in (path.stat(), path.parent.stat())
    )
    content = path.read_bytes()
    body, digest = content[:-DIGEST], content[-DIGEST:]
    return private and hashlib.sha256(body).digest() == digest


def _put(made: Path, path: Path) -> None:
    """Copies a whole file into place, its digest behind it: two processes may do so at one time."""
    content = made.read_bytes()
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        whole = Path(scratch) / path.name
        whole.touch(mode=0o600)
        whole.write_bytes(content + hashlib.sha256(content).digest())
        whole.replace(path)
