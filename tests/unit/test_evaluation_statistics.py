"""Measures of judged items: against plain loops, brute force, scipy, and the truth of synthetic data."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from cahl_core.errors import DataError
from cahl_core.evaluation.core import ItemScore
from cahl_core.evaluation.metrics import wilson
from cahl_core.evaluation.pairing import mcnemar, paired
from cahl_core.evaluation.resampling import draws
from cahl_core.evaluation.statistics import (
    DEFINITIONS,
    MEASURES,
    pass_at_k,
    passes,
    summarise,
)


def _score(number: int, correct: float, **fields: Any) -> ItemScore:
    return ItemScore(f"i{number}", fields.pop("category", "c"), correct, "calls", **fields)


def _scores(values: Any, **fields: Any) -> list[ItemScore]:
    return [_score(i, float(v), **fields) for i, v in enumerate(values)]


# --- against plain loops -------------------------------------------------------------------------


def _quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _drawn(items: int, rounds: int) -> list[list[int]]:
    rows = np.concatenate(list(draws(items, rounds)))
    return [[i for i, n in enumerate(row) for _ in range(int(n))] for row in rows]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 3)), min_size=3, max_size=9))
def test_intervals_are_those_of_plain_loops_over_the_same_draws(
    items: list[tuple[int, int]],
) -> None:
    scores = [_score(i, c, attempted=a, invalid=min(a, c)) for i, (c, a) in enumerate(items)]
    found = summarise(scores, rounds=80)
    drawn = _drawn(len(items), 80)
    accuracy = [sum(scores[i].correct for i in row) / len(row) for row in drawn]
    if found["accuracy"]["method"] == "bootstrap":
        assert found["accuracy"]["low"] == pytest.approx(_quantile(accuracy, 0.025))
        assert found["accuracy"]["high"] == pytest.approx(_quantile(accuracy, 0.975))
    pairs = [
        (sum(scores[i].invalid for i in row), sum(scores[i].attempted for i in row))
        for row in drawn
    ]
    rates = [top / bottom for top, bottom in pairs if bottom]
    invalid = found["measures"]["invalid_call_rate"]
    if invalid["method"] == "bootstrap":
        assert invalid["low"] == pytest.approx(_quantile(rates, 0.025))
        assert invalid["high"] == pytest.approx(_quantile(rates, 0.975))


def test_the_paired_interval_is_that_of_plain_loops_over_the_same_draws() -> None:
    draw = random.Random(2)
    one, other = ([draw.randint(0, 1) for _ in range(15)] for _ in range(2))
    found = paired(_scores(one), _scores(other), rounds=100)["difference"]
    values = [sum(other[i] - one[i] for i in row) / 15 for row in _drawn(15, 100)]
    assert found["low"] == pytest.approx(_quantile(values, 0.025))
    assert found["high"] == pytest.approx(_quantile(values, 0.975))


@given(st.integers(1, 300), st.integers(1, 40))
def test_every_draw_has_as_many_items_as_there_are(items: int, rounds: int) -> None:
    rows = np.concatenate(list(draws(items, rounds)))
    assert rows.shape == (rounds, items)
    assert (rows.sum(axis=1) == items).all()


def test_draws_are_cut_into_parts_that_fit_memory() -> None:
    parts = list(draws(5000, 1000))
    assert len(parts) > 1
    assert max(part.size for part in parts) <= 2_000_000
    assert sum(map(len, parts)) == 1000


# --- against the truth ---------------------------------------------------------------------------


@pytest.mark.parametrize(("items", "truth"), [(60, 0.3), (150, 0.8), (200, 0.2)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(items: int, truth: float) -> None:
    draw = random.Random(5)
    hits = 0
    for _ in range(150):
        found = summarise(_scores(draw.random() < truth for _ in range(items)), rounds=300)
        hits += found["accuracy"]["low"] <= truth <= found["accuracy"]["high"]
    assert 0.91 <= hits / 150 <= 0.985


def test_samples_of_an_item_are_no_independent_evidence() -> None:
    draw = random.Random(1)
    values = [draw.randint(0, 1) for _ in range(80)]
    once = summarise(_scores(values))
    repeated = [replace(s, sample=k) for s in _scores(values) for k in range(4)]
    four = summarise(repeated)
    assert four["n"] == 80
    assert four["attempts"] == 320
    assert four["accuracy"] == once["accuracy"]


def test_paired_intervals_hold_the_true_difference_about_as_often_as_they_say() -> None:
    draw = random.Random(9)
    hits = 0
    for _ in range(150):
        hard = [draw.random() for _ in range(100)]
        one, other = ([0.5 * h + 0.5 * draw.random() < skill for h in hard] for skill in (0.4, 0.5))
        found = paired(_scores(one), _scores(other), rounds=300)["difference"]
        truth = _share(0.5) - _share(0.4)
        hits += found["low"] <= truth <= found["high"]
    assert hits / 150 >= 0.9


def _share(skill: float) -> float:
    """P(U + V < 2 skill) for independent uniform U and V, with 2 skill <= 1: the triangle below."""
    return (2 * skill) ** 2 / 2


def test_pairing_finds_a_difference_that_two_separate_intervals_hide() -> None:
    draw = random.Random(3)
    hard = [draw.random() for _ in range(300)]
    one, other = ([float(h < limit) for h in hard] for limit in (0.50, 0.54))
    apart = [summarise(_scores(v))["accuracy"] for v in (one, other)]
    assert apart[0]["high"] > apart[1]["low"]
    together = paired(_scores(one), _scores(other))
    assert together["difference"]["low"] > 0
    assert together["worse"] == 0
    assert together["mcnemar_p"] < 0.05


# --- paired: properties --------------------------------------------------------------------------

VALUES = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=30)


@settings(max_examples=30, deadline=None)
@given(VALUES)
def test_exchanging_the_two_models_turns_the_sign_and_nothing_else(
    pairs: list[tuple[int, int]],
) -> None:
    one, other = (_scores(values) for values in zip(*pairs, strict=True))
    there, back = paired(one, other, rounds=200), paired(other, one, rounds=200)
    assert there["mcnemar_p"] == back["mcnemar_p"]
    assert (there["better"], there["worse"]) == (back["worse"], back["better"])
    assert there["difference"]["value"] == pytest.approx(-back["difference"]["value"])
    if there["difference"]["low"] is not None:
        assert there["difference"]["low"] == pytest.approx(-back["difference"]["high"])


def test_a_model_does_not_differ_from_itself() -> None:
    scores = _scores([1, 0, 1, 1, 0, 0], attempted=2, planned=True)
    found = paired(scores, list(reversed(scores)))  # order does not matter
    assert (found["difference"]["value"], found["better"], found["worse"]) == (0.0, 0, 0)
    assert found["mcnemar_p"] == 1.0
    assert (
        found["difference"]["low"] is None
    )  # no item changed: a bootstrap cannot say how many could
    assert found["measures"]["calls_per_task"]["value"] == 0


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_the_exact_binomial_test_of_the_items_that_changed(
    better: int, worse: int
) -> None:
    changed = better + worse
    expected = binomtest(better, changed).pvalue if changed else 1.0
    assert mcnemar(better, worse) == pytest.approx(expected)


def test_mcnemar_of_thousands_of_items_is_a_number() -> None:
    assert 0 < mcnemar(2100, 1900) < 0.01


def test_scores_between_0_and_1_have_a_difference_and_no_mcnemar() -> None:
    found = paired(_scores([0.2, 0.5, 1.0]), _scores([0.4, 0.5, 0.7]))
    assert found["mcnemar_p"] is None
    assert found["difference"]["value"] == pytest.approx(-0.1 / 3)
    assert (found["better"], found["worse"]) == (1, 1)


def test_other_items_are_refused_by_name() -> None:
    one = _scores([1, 0, 1])
    with pytest.raises(DataError, match=r"only the first has 1 \(i0\)") as caught:
        paired(one, one[1:])
    assert "only the second" not in str(caught.value)
    many = _scores([1] * 9)
    with pytest.raises(DataError, match=r"only the second has 6 \(i3, i4, i5, i6, i7, …\)"):
        paired(one, many)
    with pytest.raises(DataError, match=r"in different categories 1 \(i2\)"):
        paired(one, [*one[:2], replace(one[2], category="d")])


def test_an_item_twice_or_in_two_categories_is_refused() -> None:
    one = _score(1, 1.0)
    with pytest.raises(DataError, match="item i1 has a sample twice"):
        summarise([one, one])
    with pytest.raises(DataError, match="item i1 is in several categories"):
        summarise([one, replace(one, sample=1, category="d")])


# --- pass@k --------------------------------------------------------------------------------------


@given(st.integers(1, 9), st.data())
def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample(n: int, data: Any) -> None:
    right, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    samples = [True] * right + [False] * (n - right)
    subsets = list(itertools.combinations(samples, k))
    assert pass_at_k(n, right, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_1_is_the_accuracy_and_pass_at_k_grows() -> None:
    draw = random.Random(4)
    scores = [
        _score(i, float(draw.random() < 0.3), sample=k) for i in range(40) for k in range(6)
    ]  # fmt: skip
    found = summarise(scores)
    assert list(found["pass_at"]) == ["1", "2", "4", "6"]
    assert found["pass_at"]["1"] == found["accuracy"]
    values = [p["value"] for p in found["pass_at"].values()]
    assert values == sorted(values)
    by_hand = [any(s.correct for s in scores if s.id == f"i{i}") for i in range(40)]
    assert values[-1] == pytest.approx(sum(by_hand) / 40)


def test_pass_at_k_goes_no_further_than_the_item_with_fewest_samples() -> None:
    scores = [_score(0, 1.0), _score(0, 0.0, sample=1), _score(1, 1.0)]
    assert summarise(scores)["pass_at"] == {}
    assert passes(3) == [1, 2, 3]
    with pytest.raises(ValueError, match="pass@3 of 1 right among 2"):
        pass_at_k(2, 1, 3)


# --- formulas ------------------------------------------------------------------------------------


def test_measures_by_hand() -> None:
    scores = [
        _score(0, 1, attempted=2, invalid=0, redundant=1, planned=True, adherence=1.0, prompt_tokens=10,
               completion_tokens=4, scores={"f1": 0.5, "seen": None}),
        _score(1, 0, attempted=3, invalid=2, planned=False, adherence=0.5, prompt_tokens=30),
        replace(_score(2, 0, attempted=0, scores={"f1": 1.0}), outcome="plan_failure", error_type="x"),
        replace(_score(3, 1, category="d"), outcome="abstained"),
    ]  # fmt: skip
    found = summarise(scores)
    values = {name: interval["value"] for name, interval in found["measures"].items()}
    assert values == pytest.approx(
        {
            "invalid_call_rate": 2 / 5,
            "redundant_call_rate": 1 / 5,
            "calls_per_solved_task": (2 + 0) / 2,
            "calls_per_task": 5 / 4,
            "plan_validity": 1 / 2,
            "adherence": 0.75,
            "decode_failure_rate": 1 / 4,
            "prompt_tokens_per_task": 10.0,
            "completion_tokens_per_task": 1.0,
            "tokens_per_task": 11.0,
        }
    )
    assert found["accuracy"]["value"] == 0.5
    assert found["scores"]["f1"]["value"] == 0.75
    assert found["scores"]["seen"]["value"] is None
    assert found["outcomes"] == {"calls": 2, "abstained": 1, "plan_failure": 1}
    assert found["error_types"] == {"x": 1}
    assert {c: own["n"] for c, own in found["by_category"].items()} == {"c": 3, "d": 1}
    assert found["by_category"]["d"]["measures"]["invalid_call_rate"]["value"] is None


def test_every_measure_has_a_definition() -> None:
    assert {*MEASURES, "accuracy", "pass_at"} == set(DEFINITIONS)


def test_where_all_items_are_equal_the_interval_is_wilsons() -> None:
    found = summarise(_scores([0] * 125, attempted=1))
    assert (found["accuracy"]["low"], found["accuracy"]["high"]) == wilson(0, 125)
    assert found["accuracy"]["method"] == "wilson"
    assert found["wilson"] == list(wilson(0, 125))
    assert summarise(_scores([0.5] * 9))["accuracy"]["method"] == "none"
    assert summarise(_scores([0.5, 1]))["wilson"] is None
    one = summarise(_scores([0.5]))["accuracy"]
    assert (one["value"], one["low"]) == (0.5, None)


def test_a_count_that_is_always_one_has_no_interval_of_a_share() -> None:
    calls = summarise(_scores([1, 0, 1, 0], attempted=1))["measures"]["calls_per_task"]
    assert (calls["value"], calls["low"], calls["method"]) == (1.0, None, "none")
    for name, value, method in (("extra_calls", 1.0, "none"), ("covered", 1.0, "wilson")):
        scores = _scores([1, 0, 1, 0], scores={name: value})
        assert summarise(scores)["scores"][name]["method"] == method


def test_nothing_was_observed_without_items() -> None:
    found = summarise([])
    assert found["n"] == 0
    assert found["accuracy"]["value"] is None
    assert found["by_category"] == {}


def test_the_same_scores_give_the_same_summary() -> None:
    scores = _scores(random.Random(1).choices([0, 1], k=50))
    assert summarise(scores) == summarise(list(scores))
