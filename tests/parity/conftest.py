"""The real BFCL package, from the project's data if fetched, else downloaded once per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cahl_core.datasets.sources import load_sources
from cahl_core.datasets.wheels import obtain_wheel, unpack
from cahl_core.errors import SourceError
from cahl_core.evaluation.checker import BfclChecker

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def bfcl_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    fetched = ROOT / "data" / "raw" / "bfcl-v3"
    if (fetched / "bfcl_eval").is_dir():
        return fetched
    source = load_sources(ROOT)["bfcl-v3"]
    scratch = tmp_path_factory.mktemp("bfcl")
    mirrors = [Path(m) for m in [os.environ.get("CAHL_MIRROR")] if m]
    try:
        wheel = obtain_wheel(source, scratch / "downloads", mirrors, 1, print)
    except SourceError as error:
        pytest.skip(f"the BFCL package cannot be had: {error.what}")
    target = scratch / "wheel"
    target.mkdir()
    unpack(wheel, source, target)
    return target


@pytest.fixture(scope="session")
def checker(bfcl_wheel: Path) -> BfclChecker:
    return BfclChecker(bfcl_wheel, timeout=120)
