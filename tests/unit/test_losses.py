"""Losses against plain loops, and their gradients against finite differences."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from cahl_core.losses import (
    LOSS_TYPES,
    importance_weights,
    k3,
    normalisation_of,
    policy_loss,
    token_weights,
)
from tests.reference import losses as plain
from tests.reference.losses import Completion, Options, Token

logp = st.floats(-4, -0.01)
near = st.floats(-0.6, 0.6)
token = st.builds(
    lambda new, a, b, c, h: Token(new, new - a, new - b, new - a - c, h),
    logp, near, near, near, st.floats(0, 3),
)  # fmt: skip
batches = st.lists(
    st.builds(Completion, st.lists(token, min_size=1, max_size=4), st.floats(-2, 2)),
    min_size=1,
    max_size=3,
)
options = st.builds(
    Options,
    loss_type=st.sampled_from(LOSS_TYPES),
    normalisation=st.sampled_from(["auto", "sequence", "token", "constant"]),
    clip_low=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    clip_high=st.sampled_from([0.0, 0.15, 0.3, 4.0]),
    kl_weight=st.sampled_from([0.0, 0.05]),
    entropy_weight=st.sampled_from([0.0, 0.01]),
    importance=st.sampled_from(["none", "token", "sequence"]),
    cap=st.sampled_from([1.0, 2.0]),
)


def _column(batch: list[Completion], name: str) -> torch.Tensor:
    values = [getattr(t, name) for c in batch for t in c.tokens]
    return torch.tensor(values, dtype=torch.float64)


def _ours(batch: list[Completion], opts: Options, new: torch.Tensor, entropy: torch.Tensor) -> Any:
    lengths = [len(c.tokens) for c in batch]
    spread = torch.tensor(lengths)
    kind = normalisation_of(opts.loss_type, opts.normalisation)
    weights = token_weights(lengths, kind, opts.max_tokens)
    old = _column(batch, "old")
    return policy_loss(
        new,
        old,
        torch.tensor([c.advantage for c in batch], dtype=torch.float64).repeat_interleave(spread),
        torch.tensor(weights, dtype=torch.float64).repeat_interleave(spread),
        loss_type=opts.loss_type,
        clip_low=opts.clip_low,
        clip_high=opts.clip_high,
        lengths=lengths,
        reference=_column(batch, "reference") if opts.kl_weight else None,
        kl_weight=opts.kl_weight,
        entropy=entropy,
        entropy_weight=opts.entropy_weight,
        importance=importance_weights(
            old, _column(batch, "sampled"), lengths, opts.importance, opts.cap
        ),
    )


@given(batches, options)
def test_losses_equal_a_plain_loop(batch: list[Completion], opts: Options) -> None:
    result = _ours(batch, opts, _column(batch, "new"), _column(batch, "entropy"))
    assert float(result.loss) == pytest.approx(plain.loss(batch, opts), rel=1e-6, abs=1e-6)


def _at_a_kink(batch: list[Completion], opts: Options) -> bool:
    """Whether some ratio is so near an end of the clip range that a difference would cross it."""
    result = _ours(batch, opts, _column(batch, "new"), _column(batch, "entropy"))
    ends = (1 - opts.clip_low, 1 + opts.clip_high)
    return any(bool(((result.ratio - end).abs() < 1e-4).any()) for end in ends)


@given(batches, options)
def test_gradients_equal_finite_differences(batch: list[Completion], opts: Options) -> None:
    assume(not _at_a_kink(batch, opts))
    new = _column(batch, "new").requires_grad_()
    entropy = _column(batch, "entropy").requires_grad_()
    _ours(batch, opts, new, entropy).loss.backward()
    assert new.grad is not None
    gradients = {"new": new.grad.tolist()}
    if opts.entropy_weight:
        assert entropy.grad is not None
        gradients["entropy"] = entropy.grad.tolist()
    places = [(i, t) for i, c in enumerate(batch) for t in range(len(c.tokens))]
    for name, found in gradients.items():
        for (i, t), gradient in zip(places, found, strict=True):
            sides = []
            for step in (1e-6, -1e-6):
                moved = copy.deepcopy(batch)
                here = moved[i].tokens[t]
                setattr(here, name, getattr(here, name) + step)
                sides.append(plain.loss(moved, opts, frozen=batch))
            slope = (sides[0] - sides[1]) / 2e-6
            assert gradient == pytest.approx(slope, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_at_ratio_one_every_loss_has_the_policy_gradient(loss_type: str) -> None:
    old = torch.tensor([-1.0, -2.0, -0.5])
    new = old.clone().requires_grad_()
    advantages, weights = torch.tensor([1.5, 1.5, -0.5]), torch.tensor([0.25, 0.25, 0.5])
    result = policy_loss(
        new, old, advantages, weights, loss_type=loss_type, clip_low=0.0, clip_high=0.0, lengths=[2, 1]
    )  # fmt: skip
    result.loss.backward()
    assert new.grad is not None
    torch.testing.assert_close(new.grad, -weights * advantages)
    assert not bool(result.clipped.any())
    assert result.ratio.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("advantage", "ratio", "cut"),
    [(1.0, 1.5, True), (1.0, 0.5, False), (-1.0, 0.5, True), (-1.0, 1.5, False), (1.0, 1.1, False)],
)
def test_a_clipped_token_has_no_gradient_and_is_counted(
    advantage: float, ratio: float, cut: bool
) -> None:
    new = torch.tensor([math.log(ratio)], requires_grad=True)
    result = policy_loss(
        new, torch.zeros(1), torch.tensor([advantage]), torch.ones(1),
        loss_type="grpo", clip_low=0.2, clip_high=0.3,
    )  # fmt: skip
    result.loss.backward()
    assert new.grad is not None
    assert bool(result.clipped[0]) is cut
    assert (float(new.grad) == 0.0) is cut


def test_cispo_keeps_the_gradient_of_a_cut_token_at_the_cut_weight() -> None:
    new = torch.tensor([math.log(9.0)], requires_grad=True)
    result = policy_loss(
        new, torch.zeros(1), torch.ones(1), torch.ones(1),
        loss_type="cispo", clip_low=1.0, clip_high=4.0,
    )  # fmt: skip
    result.loss.backward()
    assert new.grad is not None
    assert float(new.grad) == pytest.approx(-5.0)
    assert bool(result.clipped[0])


def test_gspo_clips_whole_sequences_by_their_geometric_mean() -> None:
    new = torch.tensor([0.4, -0.4, 0.4, 0.4], requires_grad=True)
    result = policy_loss(
        new, torch.zeros(4), torch.ones(4), torch.full((4,), 0.25),
        loss_type="gspo", clip_low=0.2, clip_high=0.2, lengths=[2, 2],
    )  # fmt: skip
    result.loss.backward()
    assert new.grad is not None
    assert result.clipped.tolist() == [False, False, True, True]
    assert new.grad.tolist() == pytest.approx([-0.25, -0.25, 0.0, 0.0])


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_a_ratio_beyond_all_numbers_does_not_spoil_the_gradient_where_it_is_clipped(
    loss_type: str,
) -> None:
    new = torch.tensor([200.0, -1.0], requires_grad=True)
    result = policy_loss(
        new, torch.tensor([0.0, -1.0]), torch.ones(2), torch.ones(2),
        loss_type=loss_type, clip_low=0.2, clip_high=0.2, lengths=[1, 1],
    )  # fmt: skip
    result.loss.backward()
    assert new.grad is not None
    assert bool(torch.isfinite(new.grad).all())


def test_importance_weights_scale_the_policy_term_alone_and_carry_no_gradient() -> None:
    old = torch.tensor([-1.0, -1.0], requires_grad=True)
    sampled = torch.tensor([-2.0, -0.5])
    weights = importance_weights(old, sampled, [2], "token", 2.0)
    assert weights.tolist() == pytest.approx([2.0, math.exp(-0.5)])
    assert not weights.requires_grad
    new = torch.tensor([-1.0, -1.0], requires_grad=True)
    reference = torch.tensor([-1.5, -0.5])
    arguments = {"loss_type": "grpo", "clip_low": 0.2, "clip_high": 0.2, "reference": reference}
    zero = torch.zeros(2)
    only_kl = policy_loss(
        new, old.detach(), zero, torch.ones(2), kl_weight=1.0, importance=weights, **arguments
    )  # type: ignore[arg-type]
    assert float(only_kl.loss.detach()) == pytest.approx(float(k3(new.detach(), reference).sum()))


def test_k3_is_zero_for_equal_policies_and_positive_otherwise() -> None:
    same = torch.tensor([-1.0, -3.0])
    assert torch.equal(k3(same, same), torch.zeros(2))
    assert bool((k3(same, same + torch.tensor([0.5, -0.5])) > 0).all())


def test_k3_is_unbiased() -> None:
    ours, theirs = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])
    estimate = (ours * k3(ours.log(), theirs.log())).sum()
    assert float(estimate) == pytest.approx(float((ours * (ours / theirs).log()).sum()), abs=1e-6)


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@pytest.mark.parametrize("kind", ["sequence", "token"])
@given(lengths=lengths)
def test_weights_of_a_mean_sum_to_one(kind: str, lengths: list[int]) -> None:
    weights = token_weights(lengths, kind, 16)
    assert sum(w * n for w, n in zip(weights, lengths, strict=True)) == pytest.approx(1.0)


@pytest.mark.parametrize("kind", ["sequence", "token", "constant"])
@given(lengths=lengths, cut=st.integers(0, 6))
def test_a_shares_weights_are_those_of_the_whole_batch(
    kind: str, lengths: list[int], cut: int
) -> None:
    whole = token_weights(lengths, kind, 16)
    shares = [
        token_weights(part, kind, 16, count=len(lengths), tokens=sum(lengths))
        for part in (lengths[:cut], lengths[cut:])
    ]
    assert shares[0] + shares[1] == pytest.approx(whole)


def test_constant_weights_do_not_depend_on_length() -> None:
    assert token_weights([1, 9], "constant", 10) == [0.05, 0.05]


def test_auto_is_what_the_papers_do() -> None:
    assert {loss: normalisation_of(loss) for loss in LOSS_TYPES} == Options("grpo").paper
    assert normalisation_of("grpo", "token") == "token"


def test_errors_name_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="grpo, dr_grpo, dapo, gspo, cispo"):
        normalisation_of("ppo")
    with pytest.raises(ValueError, match="sequence, token, constant"):
        token_weights([1], "mean", 1)
    with pytest.raises(ValueError, match="none, token, sequence"):
        importance_weights(torch.zeros(1), torch.zeros(1), [1], "all", 1.0)
    zero = torch.zeros(1)
    with pytest.raises(ValueError, match="lengths"):
        policy_loss(zero, zero, zero, zero, loss_type="gspo", clip_low=0.1, clip_high=0.1)
    with pytest.raises(ValueError, match="loss_type"):
        policy_loss(zero, zero, zero, zero, loss_type="ppo", clip_low=0.1, clip_high=0.1)
