"""Intervals: against plain loops, against the truth of synthetic data, and where there is none."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cahl_core.evaluation.metrics import wilson
from cahl_core.experiments.statistics import (
    Interval,
    Observations,
    difference,
    estimate,
    multiplicities,
)


def _seen(values: Any, counts: Any = None, binary: bool = False, first: int = 0) -> Observations:
    values = np.asarray(values, dtype=float)
    counts = np.ones_like(values) if counts is None else np.asarray(counts, dtype=float)
    seeds, tasks = values.shape
    names = tuple(f"t{i}" for i in range(tasks))
    return Observations(values, counts, tuple(range(first, first + seeds)), names, binary)


# --- a plain reference ---------------------------------------------------------------------------


def _loop_resample(
    seen: Observations, seeds: list[int], tasks: list[int]
) -> float | None:  # the labels that were drawn, with repetition
    top = bottom = 0.0
    for seed in seeds:
        for task in tasks:
            top += seen.numerator[seed][task]
            bottom += seen.denominator[seed][task]
    return top / bottom if bottom else None


def _loop_quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    place = q * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _repeat(multiplicity: Any) -> list[int]:
    return [i for i, n in enumerate(multiplicity) for _ in range(int(n))]


@settings(max_examples=25)
@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 10_000))
def test_the_interval_is_that_of_plain_loops_over_the_same_draws(
    seeds: int, tasks: int, number: int
) -> None:
    generator = np.random.default_rng(number)
    counts = generator.integers(1, 4, (seeds, tasks))
    one = _seen(generator.normal(size=(seeds, tasks)), counts)
    other = _seen(generator.normal(size=(seeds, tasks)), counts)
    by_seed, by_task = multiplicities(seeds, tasks, 60)
    draws = [
        (_repeat(s), _repeat(t)) for s, t in zip(by_seed, by_task, strict=True)
    ]  # fmt: skip
    first = [_loop_resample(one, s, t) for s, t in draws]
    second = [_loop_resample(other, s, t) for s, t in draws]
    found = estimate(one, rounds=60)
    assert (found.low, found.high) == pytest.approx(
        (_loop_quantile(first, 0.025), _loop_quantile(first, 0.975))  # type: ignore[arg-type]
    )
    less = [a - b for a, b in zip(first, second, strict=True)]  # type: ignore[operator]
    found = difference(one, other, rounds=60)
    assert (found.low, found.high) == pytest.approx(
        (_loop_quantile(less, 0.025), _loop_quantile(less, 0.975))
    )


def test_the_interval_is_that_of_an_independent_bootstrap() -> None:
    """Own draws, own loops, another generator: equal up to the bootstrap's own noise."""
    generator = np.random.default_rng(3)
    seen = _seen(generator.normal(size=(4, 20)) + generator.normal(size=(1, 20)))
    draw = random.Random(5)
    values = [
        _loop_resample(seen, draw.choices(range(4), k=4), draw.choices(range(20), k=20))
        for _ in range(4000)
    ]
    low, high = (_loop_quantile(values, q) for q in (0.025, 0.975))  # type: ignore[arg-type]
    found = estimate(seen)
    assert found.low == pytest.approx(low, abs=0.04 * (high - low))
    assert found.high == pytest.approx(high, abs=0.04 * (high - low))


@settings(max_examples=50)
@given(st.integers(1, 12), st.integers(1, 40))
def test_every_draw_has_as_many_seeds_and_tasks_as_there_are(seeds: int, tasks: int) -> None:
    by_seed, by_task = multiplicities(seeds, tasks, 20)
    assert (by_seed.sum(axis=1) == seeds).all()
    assert (by_task.sum(axis=1) == tasks).all()


# --- against the truth ---------------------------------------------------------------------------


def _coverage(seeds: int, tasks: int, spread: float, paired: bool, trials: int = 250) -> float:
    """Share of intervals that hold the truth: y = mean + seed + task + rest."""
    generator = np.random.default_rng(7)
    hits = 0
    for _ in range(trials):
        hard = generator.normal(0, 0.4, (1, tasks))

        def arm(mean: float, hard: Any = hard) -> Observations:
            noise = generator.normal(0, 0.3, (seeds, tasks))
            return _seen(mean + generator.normal(0, spread, (seeds, 1)) + hard + noise)

        found = difference(arm(0.3), arm(0.0), 800) if paired else estimate(arm(0.3), 800)
        assert found.low is not None
        assert found.high is not None
        hits += found.low <= 0.3 <= found.high
    return hits / trials


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.05), (10, 0.05), (10, 0.2)])
def test_intervals_hold_the_truth_about_as_often_as_they_say(
    seeds: int, spread: float, paired: bool
) -> None:
    assert _coverage(seeds, 32, spread, paired) >= 0.91


def test_pairing_on_tasks_narrows_a_difference() -> None:
    generator = np.random.default_rng(1)
    hard = generator.normal(0, 1, (1, 40))
    one = _seen(hard + 0.2 + generator.normal(0, 0.1, (3, 40)))
    other = _seen(hard + generator.normal(0, 0.1, (3, 40)))
    alone, together = estimate(one), difference(one, other)
    assert _width(together) < _width(alone) / 3
    assert together.excludes_zero


def _width(interval: Interval) -> float:
    assert interval.low is not None
    assert interval.high is not None
    return interval.high - interval.low


def test_tasks_shared_by_all_seeds_do_not_count_as_independent() -> None:
    """Ten copies of one seed are no more evidence about tasks than one."""
    values = np.random.default_rng(2).normal(size=(1, 25))
    one, ten = estimate(_seen(values)), estimate(_seen(np.repeat(values, 10, axis=0)))
    assert _width(ten) == pytest.approx(_width(one), rel=0.05)


# --- where there is little -----------------------------------------------------------------------


def test_one_seed_is_said_and_resamples_tasks_only() -> None:
    found = estimate(_seen([[0.0, 1.0, 0.5]]))
    assert found.over == ("tasks",)
    assert "one seed" in found.note
    assert estimate(_seen([[0.0, 1.0], [1.0, 0.5]])).over == ("seeds", "tasks")
    assert estimate(_seen([[0.0], [1.0]])).over == ("seeds",)


def test_one_seed_and_one_task_have_a_value_and_no_interval() -> None:
    found = estimate(_seen([[0.4]]))
    assert (found.value, found.low, found.high, found.method) == (0.4, None, None, "none")


def test_equal_binary_outcomes_get_wilsons_interval_and_others_none() -> None:
    found = estimate(_seen(np.zeros((2, 16)), binary=True))
    assert (found.low, found.high) == wilson(0, 16)
    assert found.method == "wilson"
    assert estimate(_seen(np.full((2, 16), 4.0), np.full((2, 16), 4.0), binary=True)).high == 1.0
    plain = estimate(_seen(np.full((2, 16), 0.7)))
    assert (plain.value, plain.low, plain.high) == (pytest.approx(0.7), None, None)
    assert "equal" in plain.note


def test_nothing_observed_is_no_number() -> None:
    found = estimate(_seen(np.zeros((2, 3)), np.zeros((2, 3))))
    assert (found.value, found.low) == (None, None)
    found = difference(_seen([[1.0, 0.0]], first=0), _seen([[1.0, 0.0]], first=5))
    assert found.value is None


def test_a_ratio_that_most_resamples_lack_gets_no_interval() -> None:
    counts = np.zeros((1, 12))
    counts[0, 0] = 1
    found = estimate(_seen(counts * 2, counts))
    assert (found.value, found.low) == (2.0, None)
    assert "no observation" in found.note


def test_a_difference_is_taken_over_what_both_have() -> None:
    one = _seen([[1.0, 3.0], [5.0, 7.0]])
    other = Observations(np.array([[2.0, 4.0, 9.0]]), np.ones((1, 3)), (1,), ("t1", "t0", "t9"))
    assert difference(one, other).value == pytest.approx((5 + 7) / 2 - (4 + 2) / 2)


def test_the_same_data_give_the_same_interval() -> None:
    seen = _seen(np.random.default_rng(0).normal(size=(3, 9)))
    first = estimate(seen)
    multiplicities.cache_clear()
    assert estimate(seen) == first
