"""The fixed sample of items, the interval of a proportion, and parameter documents as JSON Schema."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.evaluation.bfcl.schemas import json_schema
from cahl_core.evaluation.core import Item
from cahl_core.evaluation.harness import first_by_hash
from cahl_core.evaluation.metrics import wilson


def _items(count: int) -> list[Item]:
    return [Item(f"simple_{i}", "simple", None) for i in range(count)]


@given(st.integers(0, 40), st.integers(0, 50), st.randoms(use_true_random=False))
def test_the_sample_depends_on_ids_alone(size: int, count: int, rng: random.Random) -> None:
    items = _items(size)
    shuffled = items.copy()
    rng.shuffle(shuffled)
    chosen = first_by_hash(items, count)
    assert first_by_hash(shuffled, count) == chosen
    assert len(chosen) == min(size, count)
    assert first_by_hash(items, size)[:count] == chosen


def test_the_sample_does_not_change_between_releases() -> None:
    chosen = [i.id for i in first_by_hash(_items(400), 3)]
    assert chosen == ["simple_220", "simple_321", "simple_346"]


@given(st.integers(1, 500), st.data())
def test_the_interval_holds_the_share_and_narrows(n: int, data: st.DataObject) -> None:
    successes = data.draw(st.integers(0, n))
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    wider = wilson(successes * 4, n * 4)
    assert wider[1] - wider[0] < high - low


def test_the_interval_is_the_textbooks() -> None:
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_parameter_documents_become_json_schema() -> None:
    document = {
        "type": "dict",
        "properties": {
            "type": {"type": "any", "description": "a parameter that is called type"},
            "pair": {"type": "tuple", "items": {"type": "float"}, "optional": True},
            "odd": {"type": "", "required": True},
        },
        "required": ["pair"],
    }
    assert json_schema(document) == {
        "type": "object",
        "properties": {
            "type": {"description": "a parameter that is called type"},
            "pair": {"type": "array", "items": {"type": "number"}},
            "odd": {},
        },
        "required": ["pair"],
    }
