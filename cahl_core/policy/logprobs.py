"""Log-probabilities of completion tokens, from packed rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cahl_core.policy.backbone import Policy
from cahl_core.policy.head import Head
from cahl_core.policy.head_logprobs import head_logprobs
from cahl_core.policy.packing import Packed, pack


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
        values, entropies = head_logprobs(
            hidden[torch.from_numpy(table[:, 0]).to(device)],
            Head.of(policy.causal),
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
