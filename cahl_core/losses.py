"""Clipped policy-gradient losses over completion tokens: pure functions of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """``loss`` carries the gradient; the others are detached sums over tokens, for logging."""

    loss: Tensor
    kl: Tensor
    clipped: Tensor


def token_weights(lengths: Sequence[int], loss_type: str, max_tokens: int) -> list[float]:
    """The weight of every token of each of a batch's N completions.

    ``grpo``: 1 / (N |o_i|), the mean over completions of their mean over tokens.
    ``dr_grpo``: 1 / (N max_tokens), free of the length bias.

    >>> token_weights([2, 4], "grpo", 8)
    [0.25, 0.125]
    """
    count = len(lengths)
    if loss_type == "grpo":
        return [1.0 / (count * max(length, 1)) for length in lengths]
    if loss_type == "dr_grpo":
        return [1.0 / (count * max_tokens)] * count
    raise ValueError(f"loss_type {loss_type!r} is not one of grpo, dr_grpo")


def clipped_loss(
    new: Tensor,
    old: Tensor,
    reference: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
) -> PolicyLoss:
    """Σ_t w_t (-min(ρ_t A_t, clip(ρ_t, 1 - clip_low, 1 + clip_high) A_t) + kl_weight · k3_t).

    All tensors are ``[T]`` over the tokens the model wrote; only ``new`` carries gradients.
    """
    ratio = torch.exp(new - old)
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)
    kl = k3(new, reference)
    loss = (weights * (kl_weight * kl - surrogate)).sum()
    cut = ((ratio < 1.0 - clip_low) & (advantages < 0)) | (
        (ratio > 1.0 + clip_high) & (advantages > 0)
    )
    return PolicyLoss(loss, kl.detach().sum(), cut.sum())


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """The non-negative, unbiased estimate of KL(new ‖ reference) per token: e^d - d - 1, d = ref - new."""
    difference = reference - new
    return torch.expm1(difference) - difference
