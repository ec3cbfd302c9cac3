"""Policy-gradient losses over completion tokens: pure functions of tensors.

``[T]`` are the tokens that the model wrote, of N completions one after another. ``weights`` decide how
tokens are averaged (`token_weights`), ``loss_type`` what is averaged (`policy_loss`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LOSS_TYPES = ("grpo", "dr_grpo", "dapo", "gspo", "cispo")
AUTO = {
    "grpo": "sequence", "gspo": "sequence", "dapo": "token", "cispo": "token", "dr_grpo": "constant"
}  # fmt: skip


def normalisation_of(loss_type: str, normalisation: str = "auto") -> str:
    """``sequence``, ``token`` or ``constant``; ``auto`` is what the loss's paper does."""
    if loss_type not in LOSS_TYPES:
        raise ValueError(f"loss_type {loss_type!r} is not one of {', '.join(LOSS_TYPES)}")
    return AUTO[loss_type] if normalisation == "auto" else normalisation


def token_weights(
    lengths: Sequence[int],
    normalisation: str,
    max_tokens: int,
    *,
    count: int | None = None,
    tokens: int | None = None,
) -> list[float]:
    """The weight of every token of each completion.

    - ``sequence``: 1 / (N |o_i|), the mean over completions of their mean over tokens;
    - ``token``: 1 / Σ|o_i|, the mean over all tokens;
    - ``constant``: 1 / (N max_tokens), free of the length bias of the first.

    Args:
        lengths: of this share of the batch.
        count, tokens: N and Σ|o_i| of the whole batch, over all processes and micro-batches; those of
            ``lengths`` by default.

    >>> token_weights([2, 4], "sequence", 8), token_weights([2, 3], "token", 8)
    ([0.25, 0.125], [0.2, 0.2])
    >>> token_weights([2], "constant", 8, count=4)
    [0.03125]
    """
    count = len(lengths) if count is None else count
    tokens = sum(lengths) if tokens is None else tokens
    if normalisation == "sequence":
        return [1.0 / (count * max(length, 1)) for length in lengths]
    if normalisation == "token":
        return [1.0 / max(tokens, 1)] * len(lengths)
    if normalisation == "constant":
        return [1.0 / (count * max_tokens)] * len(lengths)
    raise ValueError(f"normalisation {normalisation!r} is not one of sequence, token, constant")


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """``loss`` carries the gradient; the others are detached, for logging.

    ``clipped`` is ``[T]``: whether a token's policy term has lost its gradient (cispo: whether its weight
    was cut). ``ratio`` is ``[T]``; gspo's is its sequence's. ``kl`` is the sum of k3 over the tokens.
    """

    loss: Tensor
    kl: Tensor
    clipped: Tensor
    ratio: Tensor


def policy_loss(
    new: Tensor,
    old: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    loss_type: str,
    clip_low: float,
    clip_high: float,
    lengths: Sequence[int] | None = None,
    reference: Tensor | None = None,
    kl_weight: float = 0.0,
    entropy: Tensor | None = None,
    entropy_weight: float = 0.0,
    importance: Tensor | None = None,
) -> PolicyLoss:
    """Σ_t w_t (-c_t P_t + kl_weight · k3_t - entropy_weight · H_t), with the policy term P_t:

    - ``grpo``, ``dr_grpo``, ``dapo``: min(ρ_t A_t, clip(ρ_t, 1 - clip_low, 1 + clip_high) A_t) with the
      ratio ρ_t = π(o_t) / π_old(o_t);
    - ``gspo`` (arXiv 2507.18071, eq. 5): the same with the sequence's ratio
      s_i = (π(o_i) / π_old(o_i))^(1 / |o_i|) in the place of every token's; the gradient flows through
      all tokens of the sequence;
    - ``cispo`` (arXiv 2506.13585, eq. 4): sg(clip(ρ_t, …)) A_t log π(o_t): every token keeps a gradient.

    Args:
        new: log-probabilities that carry gradients; all tensors are ``[T]``.
        lengths: tokens per completion, in order; only gspo needs them.
        reference: log-probabilities of the KL's reference; needed if ``kl_weight`` is not 0.
        entropy: of the policy at each token; needed if ``entropy_weight`` is not 0.
        importance: c_t, `importance_weights`; 1 by default.

    Two tokens of one completion with A = 1 and ratios 3/2 and 2/3: the first is clipped at 1.2, so grpo
    gives -(1.2 + 2/3) / 2; gspo's ratio is their geometric mean, 1:

    >>> old, new = torch.zeros(2), torch.tensor([1.5, 1 / 1.5]).log()
    >>> batch = new, old, torch.ones(2), torch.full((2,), 0.5)
    >>> found = policy_loss(*batch, loss_type="grpo", clip_low=0.2, clip_high=0.2)
    >>> round(float(found.loss), 4), found.clipped.tolist()
    (-0.9333, [True, False])
    >>> float(policy_loss(*batch, loss_type="gspo", clip_low=0.2, clip_high=0.2, lengths=[2]).loss)
    -1.0
    """
    log_ratio = new - old
    if loss_type == "gspo":
        log_ratio = _sequence_means(log_ratio, lengths)
    low, high = 1.0 - clip_low, 1.0 + clip_high
    ratio = torch.exp(log_ratio.detach())
    bounded = ratio.clamp(low, high)
    if loss_type == "cispo":
        cut = ratio != bounded
        policy = bounded * advantages * new
    else:
        normalisation_of(loss_type)
        cut = ((ratio < low) & (advantages < 0)) | ((ratio > high) & (advantages > 0))
        # the minimum of both, written so that a cut token's ratio never enters the graph
        inside = torch.exp(log_ratio.masked_fill(cut, 0.0))
        policy = torch.where(cut, bounded, inside) * advantages
    terms = -policy if importance is None else -importance * policy
    kl = torch.zeros((), device=new.device)
    if reference is not None:
        per_token = k3(new, reference)
        kl = per_token.detach().sum()
        terms = terms + kl_weight * per_token
    if entropy is not None and entropy_weight:
        terms = terms - entropy_weight * entropy
    return PolicyLoss((weights * terms).sum(), kl, cut, ratio)


def _sequence_means(values: Tensor, lengths: Sequence[int] | None) -> Tensor:
    """Each token's value replaced by the mean of its completion."""
    if lengths is None:
        raise ValueError("loss_type 'gspo' needs the lengths of the completions")
    parts = torch.split(values, list(lengths))
    return torch.cat([part.mean().expand(len(part)) for part in parts if len(part)])


def importance_weights(
    old: Tensor, sampled: Tensor, lengths: Sequence[int], kind: str, cap: float
) -> Tensor:
    """min(π_old / π_sampler, cap), detached: corrects for a sampler whose numbers differ from ours.

    ``token``: per token; ``sequence``: the product over a completion's tokens, for each of its tokens;
    ``none``: ones. Without the cap the policy gradient would be exact, with it its variance is bounded.

    >>> old, sampled = torch.tensor([2.0, 0.5]).log(), torch.tensor([1.0, 1.0]).log()
    >>> importance_weights(old, sampled, [2], "token", 1.5).tolist()
    [1.5, 0.5]
    >>> importance_weights(old, sampled, [2], "sequence", 1.5).tolist()
    [1.0, 1.0]
    """
    if kind == "none":
        return torch.ones_like(old)
    gap = (old - sampled).detach()
    if kind == "sequence":
        parts = torch.split(gap, list(lengths))
        gap = torch.cat([part.sum().expand(len(part)) for part in parts])
    elif kind != "token":
        raise ValueError(f"importance {kind!r} is not one of none, token, sequence")
    return torch.exp(gap).clamp(max=cap)


def k3(new: Tensor, reference: Tensor) -> Tensor:
    """The non-negative, unbiased estimate of KL(new ‖ reference) per token: e^d - d - 1, d = ref - new."""
    difference = reference - new
    return torch.expm1(difference) - difference
