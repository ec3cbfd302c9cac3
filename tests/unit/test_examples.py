"""The examples in docstrings hold."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = (
    "advantages", "call_schema", "canonical", "explain", "losses", "matching", "rewards", "success",
    "training.schedule",
)  # fmt: skip


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"cahl_core.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
