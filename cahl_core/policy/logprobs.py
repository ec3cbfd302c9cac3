"""Log-probabilities of completion tokens, from packed rows, in chunks over the positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cahl_core.policy.backbone import Policy
from cahl_core.policy.packing import Packed, pack

CHUNK = 256


class HeadLogProbs(torch.autograd.Function):
    """log softmax(h Wᵀ / T)[target], and the entropy in nats, without keeping the logits.

    The backward pass recomputes the logits chunk by chunk and is exact for both; what no gradient
    comes to is not computed. The head is frozen and gets none.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor]:
        logps, entropies = [], []
        for h, t in zip(torch.split(hidden, CHUNK), torch.split(targets, CHUNK), strict=True):
            logp = _log_softmax(h, weight, temperature)
            logps.append(logp.gather(1, t[:, None])[:, 0])
            entropies.append(-(logp.exp() * logp).sum(1))
        entropy = torch.cat(entropies)
        ctx.save_for_backward(hidden, weight, targets, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return torch.cat(logps), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, entropy = ctx.saved_tensors
        out = torch.zeros_like(hidden)
        if grads[0] is None and grads[1] is None:
            return out, None, None, None
        for start in range(0, len(hidden), CHUNK):
            part = slice(start, start + CHUNK)
            logp = _log_softmax(hidden[part], weight, ctx.temperature)
            slope = _slope(logp, entropy[part], targets[part], *(_part(g, part) for g in grads))
            out[part] = (slope.div_(ctx.temperature).to(weight.dtype) @ weight).to(out.dtype)
        return out, None, None, None


def _part(grad: Tensor | None, part: slice) -> Tensor | None:
    return None if grad is None else grad[part, None]


def _slope(
    logp: Tensor,
    entropy: Tensor,
    targets: Tensor,
    of_value: Tensor | None,
    of_entropy: Tensor | None,
) -> Tensor:
    """The gradient at the scaled logits z, ``[n, vocabulary]``; overwrites ``logp``.

    d log p_t / dz_j = [j = t] - p_j and dH / dz_j = -p_j (log p_j + H), each times what comes to it.
    """
    weighted = None if of_entropy is None else (logp + entropy[:, None]).mul_(of_entropy)
    probabilities = logp.exp_()
    if weighted is None:
        assert of_value is not None
        slope = probabilities.mul_(-of_value)
    else:
        slope = probabilities.mul_(
            -weighted if of_value is None else weighted.add_(of_value).neg_()
        )
    if of_value is not None:
        slope.scatter_add_(1, targets[:, None], of_value.to(slope.dtype))
    return slope


def _log_softmax(hidden: Tensor, weight: Tensor, temperature: float) -> Tensor:
    logits = hidden.to(weight.dtype) @ weight.T
    wide = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits.to(wide) / temperature, dim=1)


@dataclass(frozen=True, slots=True)
class RowLogProbs:
    """Log-probabilities and entropies of the scored tokens of one row.

    ``values`` and ``entropies`` are ``[N]`` over distinct (context, token) pairs. ``members[k]`` are
    the indices into them of the k-th sequence's completion tokens, in order.
    """

    values: Tensor
    entropies: Tensor
    indices: list[int]
    members: list[Tensor]


def row_logprobs(
    policy: Policy, row: Packed, prompt_lengths: Sequence[int], temperature: float = 1.0
) -> RowLogProbs:
    """Scores every token after each sequence's prompt; gradients flow if enabled.

    Args:
        prompt_lengths: for *all* packed sequences; completion = the tokens from there on.
    """
    device = policy.device
    pairs: dict[tuple[int, int], int] = {}
    members = []
    for index, path in zip(row.indices, row.paths, strict=True):
        scored = path[prompt_lengths[index] :]
        keys = zip(row.parents[scored].tolist(), row.input_ids[scored].tolist(), strict=True)
        numbers = [pairs.setdefault(k, len(pairs)) for k in keys]
        members.append(torch.tensor(numbers, dtype=torch.long))
    table = np.array(list(pairs), dtype=np.int64).reshape(-1, 2)
    hidden = policy.hidden_states(row)
    with torch.autocast(device.type, enabled=False):
        values, entropies = HeadLogProbs.apply(  # type: ignore[no-untyped-call]
            hidden[torch.from_numpy(table[:, 0]).to(device)],
            policy.head,
            torch.from_numpy(table[:, 1]).to(device),
            temperature,
        )
    return RowLogProbs(values, entropies, row.indices, [m.to(device) for m in members])


def sequence_logprobs(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    budget: int,
    temperature: float = 1.0,
) -> list[Tensor]:
    """Log-probabilities per completion token, without gradients, in the order given."""
    out: list[Tensor] = [torch.empty(0)] * len(prompts)
    with torch.no_grad():
        for row in packed_rows(prompts, completions, budget):
            scored = row_logprobs(policy, row, [len(p) for p in prompts], temperature)
            for index, member in zip(scored.indices, scored.members, strict=True):
                out[index] = scored.values[member]
    return out


def packed_rows(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], budget: int
) -> Iterator[Packed]:
    """Rows of prompt + completion sequences under a token budget."""
    whole = [[*p, *c] for p, c in zip(prompts, completions, strict=True)]
    yield from pack(whole, budget)
