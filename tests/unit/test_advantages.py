"""Advantages against plain loops, and what each kind promises."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.advantages import KINDS, batch_deviation, group_advantages, zero_variance
from tests.reference import losses as plain

reward = st.floats(-5, 5)
group = st.lists(reward, min_size=2, max_size=8)


@pytest.mark.parametrize("kind", KINDS)
@given(groups=st.lists(group, min_size=1, max_size=4))
def test_advantages_equal_a_plain_loop(kind: str, groups: list[list[float]]) -> None:
    batch = [r for g in groups for r in g]
    squares = sum(r * r for r in batch)
    deviation = batch_deviation(sum(batch), squares, len(batch))
    assert deviation == pytest.approx(plain.deviation(batch), abs=1e-6)
    for rewards in groups:
        actual = group_advantages(rewards, kind, plain.deviation(batch))
        expected = plain.advantages(rewards, kind, batch)
        assert actual.tolist() == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@given(rewards=group)
def test_advantages_sum_to_zero_and_keep_the_order(kind: str, rewards: list[float]) -> None:
    advantages = group_advantages(rewards, kind, 2.0)
    assert float(advantages.sum()) == pytest.approx(0.0, abs=1e-6)
    assert advantages[np.argmax(rewards)] == advantages.max()


@given(group)
def test_leave_one_out_does_not_look_at_its_own_reward(rewards: list[float]) -> None:
    moved = [rewards[0] + 1.0, *rewards[1:]]
    if zero_variance(rewards) or zero_variance(moved):
        return
    first = group_advantages(rewards, "leave_one_out")[0]
    assert group_advantages(moved, "leave_one_out")[0] - first == pytest.approx(1.0, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_a_group_of_equal_rewards_has_no_signal(kind: str) -> None:
    assert zero_variance([0.3, 0.3, 0.3])
    assert group_advantages([0.1 + 0.2, 0.3], kind, 0.0).tolist() == [0.0, 0.0]
    assert group_advantages([1.0], kind, 1.0).tolist() == [0.0]


def test_the_batchs_deviation_is_that_of_all_rewards_however_they_are_split() -> None:
    rewards = np.array([0.0, 1.0, 2.5, -1.0])
    parts = [rewards[:1], rewards[1:]]
    sums = [sum(float(p.sum()) for p in parts), sum(float((p**2).sum()) for p in parts), 4]
    assert batch_deviation(*sums) == pytest.approx(float(rewards.std()))
    assert batch_deviation(0.0, 0.0, 0) == 0.0
    assert batch_deviation(1.0, 0.333333333, 3) == 0.0  # rounding does not make it NaN


def test_a_group_that_hardly_differs_is_not_blown_up_by_the_batchs_deviation() -> None:
    rewards = [0.5, 0.501]
    assert abs(group_advantages(rewards, "group_std")[0]) > 0.9
    assert abs(group_advantages(rewards, "batch_std", 0.5)[0]) < 0.01


def test_errors_name_the_kinds_and_what_is_missing() -> None:
    with pytest.raises(ValueError, match="group_std, group_mean, leave_one_out, batch_std"):
        group_advantages([0.0, 1.0], "mean")
    with pytest.raises(ValueError, match="deviation"):
        group_advantages([0.0, 1.0], "batch_std")
