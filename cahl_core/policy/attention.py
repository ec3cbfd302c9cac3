"""Attention over trees of tokens: packed rows, and decoding over shared prefixes.

Packed rows: every unbranched run of a row attends to its ancestors and, causally, to itself; entries
that a mask would only have zeroed are never computed.

Decoding: ``P`` prompts with ``n`` samples each decode together as ``P * n`` rows. A row's query attends to
its prompt's keys (``[P, H, L, D]``, held once, not ``n`` times) and to its own suffix, which is
written in place into a preallocated buffer.

Both are registered with transformers as attention functions: no model code is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cahl_core.policy.packing import Packed

PACKED = "cahl_packed"
DECODE = "cahl_shared_prefix"
PAD = 64
SUFFIX_PAD = 32


@dataclass(frozen=True)
class PackedRuns:
    """The runs of a packed row as tensors on the model's device.

    ``spans`` are (start, stop); ``ancestors`` their ancestors' positions (``None``: a root);
    ``masks`` the boolean ``[run, ancestors + run]`` (``None``: plain causal).
    """

    spans: list[tuple[int, int]]
    ancestors: list[Tensor | None]
    masks: list[Tensor | None]

    @classmethod
    def of(cls, row: Packed, device: torch.device) -> PackedRuns:
        spans: list[tuple[int, int]] = []
        ancestors: list[Tensor | None] = []
        masks: list[Tensor | None] = []
        for run in row.runs():
            above, length = len(run.ancestors), run.stop - run.start
            spans.append((run.start, run.stop))
            ancestors.append(torch.from_numpy(run.ancestors).to(device) if above else None)
            mask = torch.ones(length, above + length, dtype=torch.bool, device=device)
            masks.append(mask.tril(above) if above and length > 1 else None)
        return cls(spans, ancestors, masks)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    packed_runs: PackedRuns,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within one packed row.

    Args:
        query: ``[1, Hq, L, D]``; key, value: ``[1, H, L, D]``.

    Returns:
        ``[1, L, Hq, D]``.
    """
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    parts = []
    runs = zip(packed_runs.spans, packed_runs.ancestors, packed_runs.masks, strict=True)
    for (start, stop), above, mask in runs:
        k, v = key[:, :, start:stop], value[:, :, start:stop]
        if above is not None:
            k = torch.cat([key.index_select(2, above), k], dim=2)
            v = torch.cat([value.index_select(2, above), v], dim=2)
        parts.append(
            torch.nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], k, v, mask, is_causal=above is None, scale=scaling
            )
        )
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


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


def register() -> None:
    """Makes both known to transformers by name; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionInterface.register(DECODE, shared_prefix_attention)


def packed_inputs(row: Packed, device: torch.device) -> dict[str, Any]:
    """What the decoder takes for a packed row, padded to a multiple of `PAD`.

    Kernels are compiled once per shape, and rows of every length would compile them every time.
    """
    wide = row.padded(PAD)
    return {
        "input_ids": torch.from_numpy(wide.input_ids)[None].to(device),
        "position_ids": torch.from_numpy(wide.position_ids)[None].to(device),
        "attention_mask": passthrough_mask(device),
        "packed_runs": PackedRuns.of(wide, device),
    }


def passthrough_mask(device: torch.device) -> Tensor:
    """A four-dimensional mask: transformers hands it on as it is, and both functions ignore it."""
    return torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)
