"""Attention over trees of tokens: packed rows.

Every unbranched run of a row attends to its ancestors and, causally, to itself; entries that a mask
would only have zeroed are never computed. Registered with transformers as an attention function: no
model code is changed. Decoding's counterpart is in `prefix_attention`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cahl_core.policy import prefix_attention
from cahl_core.policy.packing import Packed

PACKED = "cahl_packed"
PAD = 64


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


def register() -> None:
    """Makes both attention functions known to transformers by name; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    AttentionInterface.register(prefix_attention.DECODE, prefix_attention.shared_prefix_attention)


def packed_inputs(row: Packed, device: torch.device) -> dict[str, Any]:
    """What the decoder takes for a packed row, padded to a multiple of `PAD`.

    Kernels are compiled once per shape, and rows of every length would compile them every time.
    """
    wide = row.padded(PAD)
    return {
        "input_ids": torch.from_numpy(wide.input_ids)[None].to(device),
        "position_ids": torch.from_numpy(wide.position_ids)[None].to(device),
        "attention_mask": prefix_attention.passthrough_mask(device),
        "packed_runs": PackedRuns.of(wide, device),
    }
