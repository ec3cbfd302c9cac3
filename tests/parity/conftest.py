"""The official BFCL checkers in their worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from cahl_core.evaluation.checker import BfclChecker


@pytest.fixture(scope="session")
def checker(bfcl_wheel: Path) -> BfclChecker:
    return BfclChecker(bfcl_wheel, timeout=120)
