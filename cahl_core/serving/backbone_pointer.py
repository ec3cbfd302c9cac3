"""Finding, from anywhere, the backbone that registered adapters were trained on.

A registered model holds adapters and a pointer: the backbone's name, the digest of its weights and
where it lay in the project. Weights with another digest are never used.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cahl_core.errors import ModelError
from cahl_core.files import digest, sha256

IN_PROJECT = Path("data/backbone")
CONVERTED = Path(".cahl/backbones")  # where `cahl fetch` keeps converted weights


def weights_digest(directory: Path) -> str:
    """sha256 of ``model.safetensors``, or a digest over all shards.

    Raises:
        ModelError: the directory holds no safetensors.
    """
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise ModelError(f"no *.safetensors in {directory}", "run: cahl fetch")
    if len(files) == 1:
        return sha256(files[0])
    return digest([[f.name, sha256(f)] for f in files])


def find_backbone(name: str, expected: str, near: Path | None = None) -> Path:
    """The directory whose weights have the digest ``expected``.

    Looked at in this order: ``CAHL_BACKBONE``; ``data/backbone`` below ``CAHL_ROOT``, the current
    directory, ``near`` and all their parents; the converted weights kept by `cahl fetch` there.

    Args:
        name: the backbone as the model's card calls it, for messages.
        near: a place inside the project, such as that of the model's artifacts.

    Raises:
        ModelError: found, but with other weights (both digests are named), or not found.
    """
    if told := os.environ.get("CAHL_BACKBONE"):
        directory = Path(told).expanduser()
        if not directory.is_dir():
            raise ModelError(f"CAHL_BACKBONE={told} is not a directory", "correct it or unset it")
        found = weights_digest(directory)
        if found != expected:
            raise _mismatch(name, expected, {directory: found})
        return directory
    others: dict[Path, str] = {}
    for directory in _candidates(near):
        found = weights_digest(directory)
        if found == expected:
            return directory
        others[directory] = found
    if others:
        raise _mismatch(name, expected, others)
    raise ModelError(
        f"backbone '{name}' (sha256 {expected}) was found neither below CAHL_ROOT nor below "
        f"{Path.cwd()} or a parent",
        "set CAHL_BACKBONE to its directory, or run `cahl fetch` in the project",
    )


@contextmanager
def backbone_below(root: Path) -> Iterator[None]:
    """The backbone is looked for in ``root`` first, unless the user said otherwise."""
    before = os.environ.get("CAHL_ROOT")
    os.environ.setdefault("CAHL_ROOT", str(root))
    try:
        yield
    finally:
        if before is None:
            del os.environ["CAHL_ROOT"]


def _candidates(near: Path | None) -> Iterator[Path]:
    starts = [Path(p) for p in [os.environ.get("CAHL_ROOT")] if p] + [Path.cwd()]
    starts += [near] if near is not None else []
    seen: set[Path] = set()
    for start in starts:
        for root in (start.absolute(), *start.absolute().parents):
            kept = root / CONVERTED
            for path in (root / IN_PROJECT, *(sorted(kept.iterdir()) if kept.is_dir() else ())):
                if path not in seen and any(path.glob("*.safetensors")):
                    seen.add(path)
                    yield path


def _mismatch(name: str, expected: str, found: dict[Path, str]) -> ModelError:
    listing = "\n".join(f"  found  {sum_}  {directory}" for directory, sum_ in found.items())
    return ModelError(
        f"the adapters belong to backbone '{name}'\n  wanted {expected}\n{listing}",
        "set CAHL_BACKBONE to the directory with the wanted weights",
    )
