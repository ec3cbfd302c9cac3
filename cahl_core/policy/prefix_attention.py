"""Attention of decoding: many samples over one copy of their prompt's keys and values.

``P`` prompts with ``n`` samples each decode together as ``P * n`` rows. A row's query attends to its
prompt's keys (``[P, H, L, D]``, held once, not ``n`` times) and to its own suffix, which is written in
place into a preallocated buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

DECODE = "cahl_shared_prefix"
SUFFIX_PAD = 32


@dataclass
class PrefixState:
    """Keys and values of all layers: shared prefixes, and a suffix per row.

    Attributes:
        keys, values: per layer ``[P, H, L, D]``; prompts shorter than ``L`` are padded on the right.
        bias: ``[P, 1, 1, L]``; 0 at real prompt tokens, -inf at padding.
        suffix_keys, suffix_values: per layer ``[P * n, H, T, D]``.
        length: suffix tokens written so far, this step's included.
    """

    keys: list[Tensor]
    values: list[Tensor]
    bias: Tensor
    suffix_keys: list[Tensor]
    suffix_values: list[Tensor]
    length: int = 0

    @property
    def padded_length(self) -> int:
        """Suffix tokens to compute with: few distinct shapes, the surplus masked."""
        return min(-(-self.length // SUFFIX_PAD) * SUFFIX_PAD, self.suffix_keys[0].shape[2])

    @property
    def samples(self) -> int:
        return self.suffix_keys[0].shape[0] // self.keys[0].shape[0]

    def select(self, prompts: Tensor, rows: Tensor) -> None:
        """Keeps the given prompts and rows (rows ordered by prompt, the same number for each)."""
        for layer in range(len(self.keys)):
            if len(prompts) < len(self.keys[layer]):
                self.keys[layer] = self.keys[layer][prompts]
                self.values[layer] = self.values[layer][prompts]
            self.suffix_keys[layer] = self.suffix_keys[layer][rows]
            self.suffix_values[layer] = self.suffix_values[layer][rows]
        self.bias = self.bias[prompts]


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    prefix_state: PrefixState,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One decoding step of one layer.

    Args:
        query: ``[P * n, Hq, 1, D]``; key, value: ``[P * n, H, 1, D]`` of the new token.

    Returns:
        ``[P * n, 1, Hq, D]``.
    """
    state, layer = prefix_state, int(module.layer_idx)  # type: ignore[arg-type]
    rows, heads, _, width = key.shape
    groups = query.shape[1] // heads
    samples = state.samples
    prompts = rows // samples
    state.suffix_keys[layer][:, :, state.length - 1] = key[:, :, 0]
    state.suffix_values[layer][:, :, state.length - 1] = value[:, :, 0]
    width_own = state.padded_length
    own_keys = state.suffix_keys[layer][:, :, :width_own]
    own_values = state.suffix_values[layer][:, :, :width_own]

    query = query.view(rows, heads, groups, width) * (width**-0.5 if scaling is None else scaling)
    shared_query = _by_prompt(query, prompts, samples)
    shared = shared_query @ state.keys[layer].transpose(2, 3) + state.bias
    own = query @ own_keys.transpose(2, 3)
    own[..., state.length :] = float("-inf")
    scores = torch.cat([_by_row(shared, samples), own], dim=3)
    weights = torch.softmax(scores, dim=3, dtype=torch.float32).to(query.dtype)
    split = shared.shape[3]
    out = _by_row(_by_prompt(weights[..., :split], prompts, samples) @ state.values[layer], samples)
    out = out + weights[..., split:] @ own_values
    return out.reshape(rows, 1, heads * groups, width), None


def _by_prompt(x: Tensor, prompts: int, samples: int) -> Tensor:
    """``[P * n, H, g, X]`` → ``[P, H, n * g, X]``."""
    _, heads, groups, last = x.shape
    x = x.reshape(prompts, samples, heads, groups, last).transpose(1, 2)
    return x.reshape(prompts, heads, samples * groups, last)


def _by_row(x: Tensor, samples: int) -> Tensor:
    """``[P, H, n * g, X]`` → ``[P * n, H, g, X]``."""
    prompts, heads, grouped, last = x.shape
    x = x.reshape(prompts, heads, samples, grouped // samples, last).transpose(1, 2)
    return x.reshape(prompts * samples, heads, grouped // samples, last)


def passthrough_mask(device: torch.device) -> Tensor:
    """A four-dimensional mask: transformers hands it on as it is, and both functions ignore it."""
    return torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)
