"""Aggregates of BFCL scores: whole categories alone, kinds of output apart, spread over prompts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.evaluation.bfcl.formulas import V4
from cahl_core.evaluation.bfcl.items import UNANSWERABLE, ceiling
from cahl_core.evaluation.bfcl.shares import accuracies, summarise
from cahl_core.evaluation.bfcl.variation import variation
from cahl_core.evaluation.bfcl_literals import arithmetic, plain
from cahl_core.evaluation.core import ItemScore


def _scores(category: str, right: int, n: int, outcome: str = "calls", sample: int = 0,
            **scores: float) -> list[ItemScore]:  # fmt: skip
    return [
        ItemScore(f"{category}_{i}", category, float(i < right), outcome, scores, sample=sample)
        for i in range(n)
    ]


def test_a_category_counts_once_all_its_items_are_there() -> None:
    counts = {"multiple": 4, "parallel": 2, "live_simple": 3}
    scores = [*_scores("multiple", 3, 4), *_scores("parallel", 1, 1), *_scores("live_simple", 0, 3)]
    assert accuracies(scores, counts) == {"multiple": 0.75, "live_simple": 0}


def test_every_sample_of_every_item_has_to_be_there() -> None:
    counts = {"multiple": 2}
    both = [*_scores("multiple", 2, 2), *_scores("multiple", 0, 2, sample=1)]
    assert accuracies(both, counts) == {"multiple": 0.5}
    assert accuracies(both[:-1], counts) == {}
    # one item judged twice does not stand in for another
    assert accuracies([*_scores("multiple", 1, 1), *_scores("multiple", 1, 1)], counts) == {}


def test_a_model_that_writes_nothing_usable_has_nothing_in_ast_and_strict() -> None:
    failed = {"decode_failure": 1.0}
    nothing = {**failed, "strict": 0.0, "wrong_call": 0.0}
    scores = [
        *_scores("multiple", 0, 10, "plan_failure", **failed),
        *_scores("irrelevance", 10, 10, "plan_failure", **nothing),
        *_scores("live_irrelevance", 5, 5, "plan_failure", **nothing),
    ]
    summary = summarise(V4, scores, {"irrelevance": 10, "live_irrelevance": 5, "multiple": 10})
    assert summary["columns"] == {"irrelevance": 1, "irrelevance_strict": 0}
    assert summary["ast"] == {"n": 10, "accuracy": 0, "decode_failure": 1}
    assert summary["irrelevance_items"] == {"n": 15, "accuracy": 1, **nothing}


def test_without_items_of_a_kind_nothing_is_said_of_it() -> None:
    summary = summarise(V4, _scores("live_relevance", 1, 2), {"live_relevance": 3})
    assert summary == {"columns": {}, "ast": {}, "irrelevance_items": {}, "unanswerable": []}


def test_unanswerable_items_are_named_and_counted_in_the_ceiling() -> None:
    lost = "simple_java_36"
    scores = [ItemScore(lost, "simple_java", 0.0, "calls"), *_scores("simple_java", 1, 2)]
    assert summarise(V4, scores, {"simple_java": 100})["unanswerable"] == [lost]
    counts = dict.fromkeys(V4.single_turn, 0) | {"simple_java": 100, "live_simple": 258}
    assert ceiling(V4, counts, ["simple_java"]) == pytest.approx(0.97)
    assert ceiling(V4, counts, ["live_simple"]) == pytest.approx(256 / 258)
    assert len(set(UNANSWERABLE["v3"])) == len(set(UNANSWERABLE["v4"])) == 7


def test_spread_needs_every_configuration() -> None:
    counts = {"a": 4, "b": 4, "c": 4}
    parts = [*_scores("a", 1, 4), *_scores("b", 3, 4), *_scores("c", 2, 4)]
    assert variation(parts[:-1], counts) == {"configurations": {"a": 0.25, "b": 0.75}}
    whole = variation(parts, counts)
    assert (whole["max_delta"], whole["standard_deviation"]) == (0.5, pytest.approx(0.25))


EXPRESSIONS = st.recursive(
    st.integers(0, 50).map(str),
    lambda inner: st.tuples(inner, st.sampled_from("+-*"), inner).map(
        lambda t: f"({t[0]} {t[1]} {t[2]})"
    ),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_arithmetic_is_pythons(expression: str) -> None:
    assert arithmetic(expression) == eval(expression)  # ours: digits and signs only


@pytest.mark.parametrize(
    "text",
    ["x", "f()", "a.b", "1 if 1 else 2", "[i for i in (1,)]", "9**9**9", "'x' * 10**9", "1 << 9",
     "[1] * 3", "'%9d' % 1", "1j ** 2", "10**99 * 10**99 ** 99", "True and 1", "lambda: 1"],
)  # fmt: skip
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises((ValueError, SyntaxError)):
        arithmetic(text)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.complex_numbers(),
    lambda inner: st.lists(inner) | st.tuples(inner) | st.dictionaries(st.integers(), inner),
    max_leaves=6,
)


@given(VALUES)
def test_decoded_values_become_json(value: object) -> None:
    import json

    written = plain(value)
    assert json.loads(json.dumps(written, allow_nan=False)) == written
