"""The fixed sample, the split of outputs that are not calls, and the official averages."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.evaluation.bfcl import (
    SINGLE_TURN,
    BfclItem,
    Scored,
    by_category,
    json_schema,
    official,
    stratum,
    summary,
)
from cahl_core.evaluation.checker import Verdict
from cahl_core.evaluation.metrics import wilson


def _items(count: int) -> list[BfclItem]:
    return [BfclItem(f"simple_{i}", "simple", (), ()) for i in range(count)]


def _scored(category: str, valid: bool, outcome: str, count: int = 1) -> list[Scored]:
    kind = None if valid else "wrong"
    return [Scored(category, Verdict(f"{category}_{i}", valid, kind, ""), outcome)
            for i in range(count)]  # fmt: skip


@given(st.integers(0, 40), st.integers(0, 50), st.randoms(use_true_random=False))
def test_the_sample_depends_on_ids_alone(size: int, count: int, rng: random.Random) -> None:
    items = _items(size)
    shuffled = items.copy()
    rng.shuffle(shuffled)
    chosen = stratum(items, count)
    assert stratum(shuffled, count) == chosen
    assert len(chosen) == min(size, count)
    assert stratum(items, None)[:count] == chosen


def test_the_sample_does_not_change_between_releases() -> None:
    assert [i.id for i in stratum(_items(400), 3)] == ["simple_220", "simple_321", "simple_346"]


def test_a_model_that_writes_nothing_usable_scores_nothing_where_calls_are_needed() -> None:
    scored = [
        *_scored("simple", False, "plan_failure", 10),
        *_scored("irrelevance", True, "plan_failure", 10),
    ]
    table = summary(scored, full=False)
    assert table["bfcl_accuracy"] == 0
    assert table["irrelevance"] == 1  # the official rule
    assert table["irrelevance_strict"] == 0
    assert table["decode_failures"] == 10


def test_abstentions_and_decode_failures_are_counted_apart() -> None:
    scored = [
        *_scored("irrelevance", True, "abstained", 3),
        *_scored("irrelevance", True, "execution_failure", 2),
        *_scored("irrelevance", True, "prompt_too_long", 1),
        *_scored("irrelevance", False, "calls", 4),
    ]
    row = by_category(scored)["irrelevance"]
    assert (row["n"], row["accuracy"], row["strict"]) == (10, 0.6, 0.3)
    assert (row["abstentions"], row["decode_failures"], row["called"]) == (3, 3, 4)
    assert row["prompt_too_long"] == 1


def test_official_averages_weigh_categories_and_live_items() -> None:
    accuracy = {"simple": 1.0, "java": 0.5, "javascript": 0.0, "multiple": 0.8, "parallel": 0.6,
                "parallel_multiple": 0.4, "irrelevance": 0.2, "live_simple": 1.0,
                "live_irrelevance": 0.5}  # fmt: skip
    sizes = {"live_simple": 30, "live_irrelevance": 60, "live_multiple": 10}
    table = {c: {"accuracy": accuracy.get(c, 0.0), "n": sizes.get(c, 0)} for c in SINGLE_TURN}
    averages = official(table)
    assert averages["official_non_live"] == pytest.approx((0.5 + 0.8 + 0.6 + 0.4 + 0.2) / 5)
    assert averages["official_live"] == pytest.approx((30 + 30) / 100)


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
