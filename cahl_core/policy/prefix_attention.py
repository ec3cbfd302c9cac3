"""Decoding attention for transformers' own modules, registered with them under a name.

Architectures that `fused` does not serve decode through this: no model code is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cahl_core.policy.prefix_state import PrefixState, attend_static

DECODE = "cahl_shared_prefix"


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
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One decoding step of one layer.

    Args:
        query: ``[P * n, Hq, 1, D]``; key, value: ``[P * n, H, 1, D]`` of the new token.

    Returns:
        ``[P * n, 1, Hq, D]``.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    rows, heads, _, width = key.shape
    grouped = query.view(rows, heads, -1, width).transpose(1, 2)
    window = sliding_window or getattr(module, "sliding_window", None)
    out = attend_static(
        prefix_state,
        layer,
        grouped,
        key[:, :, 0],
        value[:, :, 0],
        width**-0.5 if scaling is None else scaling,
        window if isinstance(window, int) else None,
    )
    return out.view(rows, -1, heads, width).transpose(1, 2).reshape(rows, 1, -1, width), None


def passthrough_mask(device: torch.device) -> Tensor:
    """A four-dimensional mask: transformers hands it on as it is, and both functions ignore it."""
    return torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)
