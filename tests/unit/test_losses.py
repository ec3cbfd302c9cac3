"""The clipped loss against a plain loop, and its gradient against finite differences."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.losses import clipped_loss, k3, token_weights

logp = st.floats(-6, -0.01)
token = st.tuples(logp, logp, logp, st.floats(-2, 2), st.floats(0.01, 1))


def _loop(tokens: list[tuple[float, ...]], low: float, high: float, kl_weight: float) -> float:
    total = 0.0
    for new, old, ref, advantage, weight in tokens:
        ratio = math.exp(new - old)
        clipped = min(max(ratio, 1 - low), 1 + high)
        kl = math.exp(ref - new) - (ref - new) - 1
        total += weight * (kl_weight * kl - min(ratio * advantage, clipped * advantage))
    return total


def _columns(tokens: list[tuple[float, ...]]) -> list[torch.Tensor]:
    return [torch.tensor(c, dtype=torch.float64) for c in zip(*tokens, strict=True)]


@given(st.lists(token, min_size=1, max_size=6))
def test_clipped_loss_equals_a_plain_loop(tokens: list[tuple[float, ...]]) -> None:
    result = clipped_loss(*_columns(tokens), clip_low=0.2, clip_high=0.3, kl_weight=0.05)
    expected = _loop(tokens, 0.2, 0.3, 0.05)
    assert float(result.loss) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@given(st.lists(token, min_size=1, max_size=4))
def test_gradient_equals_finite_differences(tokens: list[tuple[float, ...]]) -> None:
    ratios = [math.exp(t[0] - t[1]) for t in tokens]
    if any(min(abs(r - 0.8), abs(r - 1.3)) < 1e-4 for r in ratios):
        return  # the loss has a kink there
    columns = _columns(tokens)
    new = columns[0].requires_grad_()
    clipped_loss(new, *columns[1:], clip_low=0.2, clip_high=0.3, kl_weight=0.05).loss.backward()
    for i, values in enumerate(tokens):
        step = 1e-6
        sides = []
        for sign in (1, -1):
            moved = [*tokens]
            moved[i] = (values[0] + sign * step, *values[1:])
            sides.append(_loop(moved, 0.2, 0.3, 0.05))
        assert new.grad is not None
        slope = (sides[0] - sides[1]) / (2 * step)
        assert float(new.grad[i]) == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_at_ratio_one_the_gradient_is_the_weighted_advantage() -> None:
    old = torch.tensor([-1.0, -2.0])
    new = old.clone().requires_grad_()
    advantages, weights = torch.tensor([1.5, -0.5]), torch.tensor([0.25, 0.5])
    result = clipped_loss(
        new, old, old, advantages, weights, clip_low=0.2, clip_high=0.2, kl_weight=0.0
    )
    result.loss.backward()
    assert new.grad is not None
    assert torch.equal(new.grad, -weights * advantages)
    assert int(result.clipped) == 0


def test_k3_is_zero_for_equal_policies_and_positive_otherwise() -> None:
    same = torch.tensor([-1.0, -3.0])
    assert torch.equal(k3(same, same), torch.zeros(2))
    assert bool((k3(same, same + torch.tensor([0.5, -0.5])) > 0).all())


def test_token_weights_sum_to_one_per_batch_under_grpo() -> None:
    lengths = [3, 1, 7]
    weights = token_weights(lengths, "grpo", 16)
    assert sum(w * n for w, n in zip(weights, lengths, strict=True)) == pytest.approx(1.0)


def test_dr_grpo_weights_do_not_depend_on_length() -> None:
    assert token_weights([1, 9], "dr_grpo", 10) == [0.05, 0.05]


def test_an_unknown_loss_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="grpo, dr_grpo"):
        token_weights([1], "ppo", 1)
