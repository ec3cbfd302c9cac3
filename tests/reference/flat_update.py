"""The policy update once more, without packing: one forward pass per completion, loops over its tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cahl_core.config import Settings
from cahl_core.policy.backbone import Policy
from cahl_core.training.tree import Sample
from tests.reference.losses import Options

Scored = list[tuple[Tensor, Tensor]]  # per completion: log-probabilities and entropies


def score(policy: Policy, samples: Sequence[Sample], temperature: float) -> Scored:
    """With the active adapter, attention as transformers has it."""
    out = []
    policy.causal.config._attn_implementation = "eager"
    try:
        for sample in samples:
            tokens = sample.completion.token_ids
            ids = torch.tensor([sample.prompt + tokens])
            logits = policy.causal(input_ids=ids).logits[0, len(sample.prompt) - 1 : -1]
            logp = torch.log_softmax(logits.double() / temperature, dim=-1)
            chosen = torch.stack([logp[t, token] for t, token in enumerate(tokens)])
            out.append((chosen, -(logp.exp() * logp).sum(-1)))
    finally:
        policy.causal.config._attn_implementation = "cahl_packed"
    return out


def gradients(
    policy: Policy,
    adapter: str,
    batches: Mapping[str, Sequence[Sample]],
    settings: Settings,
    rate: float,
) -> list[Tensor]:
    """The gradient of Σ_role λ_role L_role before each inner epoch's step of plain descent at ``rate``.

    All roles train ``adapter``; their reference is ``{adapter}_ref``.
    """
    parameters = policy.parameters(adapter)
    references, olds = {}, {}
    with torch.no_grad():
        for role, samples in batches.items():
            temperature = getattr(settings.train, role).temperature
            policy.activate(f"{adapter}_ref")
            references[role] = score(policy, samples, temperature)
            policy.activate(adapter)
            olds[role] = score(policy, samples, temperature)
    found = []
    policy.activate(adapter)
    for _ in range(settings.train.inner_epochs):
        for role, samples in batches.items():
            own = getattr(settings.train, role)
            new = score(policy, samples, own.temperature)
            factor = settings.train.lambda_executor if role == "executor" else 1.0
            loss = _loss(samples, new, olds[role], references[role], settings, own)
            (factor * loss).backward()
        found.append(torch.cat([p.grad.flatten().clone() for p in parameters]))  # type: ignore[union-attr]
        with torch.no_grad():
            for parameter in parameters:
                parameter -= rate * parameter.grad  # type: ignore[operator]
                parameter.grad = None
    return found


def _loss(
    samples: Sequence[Sample],
    new: Scored,
    old: Scored,
    reference: Scored,
    settings: Settings,
    own: Any,
) -> Tensor:
    train = settings.train
    kind = train.normalisation
    if kind == "auto":
        kind = Options("grpo").paper[train.loss_type]  # type: ignore[assignment]
    tokens = sum(len(s.completion.token_ids) for s in samples)
    total = torch.zeros((), dtype=torch.float64)
    for i, sample in enumerate(samples):
        length = len(sample.completion.token_ids)
        sampled = torch.tensor(sample.completion.logprobs, dtype=torch.float64)
        weight = {
            "sequence": 1 / (len(samples) * length),
            "token": 1 / tokens,
            "constant": 1 / (len(samples) * own.max_tokens),
        }[kind]
        log_ratios = new[i][0] - old[i][0]
        gaps = old[i][0] - sampled
        for t in range(length):
            correction = {"none": 0.0 * gaps[t], "token": gaps[t], "sequence": gaps.sum()}
            trust = correction[train.importance].exp().clamp(max=train.importance_cap)
            ratio = (log_ratios.mean() if train.loss_type == "gspo" else log_ratios[t]).exp()
            bounded = ratio.clamp(1 - own.clip_low, 1 + own.clip_high)
            policy = torch.minimum(ratio * sample.advantage, bounded * sample.advantage)
            if train.loss_type == "cispo":
                policy = bounded.detach() * sample.advantage * new[i][0][t]
            difference = reference[i][0][t] - new[i][0][t]
            term = -trust * policy + own.kl_weight * (difference.exp() - difference - 1)
            total = total + weight * (term - own.entropy_weight * new[i][1][t])
    return total
