"""Fetcher ``huggingface``: data sets and models of the hub at a revision, plain files only."""

from __future__ import annotations

import shutil
from pathlib import Path

from cahl_core.datasets.fetchers.base import Context, some, unreachable
from cahl_core.datasets.sources import COMMIT, Source
from cahl_core.datasets.weights import SUFFIXES
from cahl_core.datasets.wheels import check_sum
from cahl_core.errors import ChecksumError, SourceError

DATA = ("*.jsonl", "*.json", "*.parquet", "*.jsonl.gz", "*.json.gz")  # where no files are declared


def fetch(source: Source, target: Path, context: Context) -> str:
    """Writes the data set's declared files (all data files without any); returns the commit.

    Raises:
        ChecksumError: a file is not the declared one. SourceError: it cannot be had.
    """
    snapshot = download_snapshot(source, context)
    folder = snapshot / source.folder
    wanted = list(source.files) or list(DATA)
    found = sorted({p for w in wanted for p in folder.rglob(w) if p.is_file()})
    names = [str(path.relative_to(folder)) for path in found]
    if missing := sorted(n for n in source.files if "*" not in n and n not in names):
        raise SourceError(
            f"source '{source.name}': {source.origin} has no {some(missing)}",
            "correct files, folder or revision in data/sources.yaml",
        )
    for name, path in zip(names, found, strict=True):
        _check(path, source.files.get(name), source)
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    return snapshot.name


def _check(path: Path, expected: str | None, source: Source) -> None:
    """`check_sum`; a wrong file leaves the hub's cache, or every later run would find it there."""
    try:
        check_sum(path, expected, source.name)
    except ChecksumError:
        blob = path.resolve()
        blob.replace(blob.with_name(f"{blob.name}.rejected"))
        if path.is_symlink():
            path.unlink()
        raise


def download_snapshot(source: Source, context: Context) -> Path:
    """The hub's files of ``source`` in ``.cahl/downloads/hub``; the folder's name is the commit."""
    from huggingface_hub import snapshot_download  # it retries and resumes by itself

    assert source.repo is not None and source.revision is not None
    if not COMMIT.fullmatch(source.revision):
        context.log(f"{source.name}: revision '{source.revision}' can move; pin a commit")
    try:
        folder = snapshot_download(
            source.repo,
            repo_type="model" if source.kind == "model" else "dataset",
            revision=source.revision,
            allow_patterns=_patterns(source),
            cache_dir=context.downloads / "hub",
        )
    except Exception as error:  # the hub raises its own, the HTTP client's and OS errors
        raise _failed(source, error) from error
    return Path(folder)


def _patterns(source: Source) -> list[str]:
    if source.kind == "model":
        return [f"*{suffix}" for suffix in SUFFIXES]
    prefix = f"{source.folder}/" if source.folder else ""
    return [f"{prefix}{name}" for name in source.files or DATA]


def _failed(source: Source, error: Exception) -> SourceError:
    lines = str(error).strip().splitlines() or [""]
    kind = "" if source.kind == "model" else "--repo-type dataset "
    wanted = " ".join(source.files)
    advice = (
        f"hf download {kind}{source.repo} {wanted} --revision {source.revision} "
        f"--local-dir DIR/{source.name}"
    )
    if source.gated:
        advice = f"accept the terms on the page of {source.repo}, set HF_TOKEN, then {advice}"
    return unreachable(source, f"{type(error).__name__}: {lines[0]}", advice)
