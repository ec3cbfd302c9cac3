"""Attention of decoding for transformers' own modules, registered with them under a name.

Architectures that `fused` does not serve decode through this: no model code is changed.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cahl_core.policy.prefix_state import PrefixState, attend_static
from cahl_core.policy.prefix_store import Continuation

DECODE = "cahl_shared_prefix"
CONTINUE = "cahl_continuation"


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
    out = attend_static(
        prefix_state,
        layer,
        grouped,
        key[:, :, 0],
        value[:, :, 0],
        width**-0.5 if scaling is None else scaling,
        sliding_window,
    )
    return out.view(rows, -1, heads, width).transpose(1, 2).reshape(rows, 1, -1, width), None


def continuation_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    *,
    continuation: Continuation,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One layer over the new tokens of a row.

    Args:
        query: ``[1, Hq, U, D]``; key, value: ``[1, H, U, D]``.

    Returns:
        ``[1, U, Hq, D]``.
    """
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = continuation.attend(layer, query[0], key[0], value[0], scale, sliding_window)
    return out[None], None


def register() -> None:
    """Makes both known to transformers by name; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(DECODE, shared_prefix_attention)
    AttentionInterface.register(CONTINUE, continuation_attention)


def passthrough_mask(device: torch.device) -> Tensor:
    """A four-dimensional mask: transformers hands it on as it is, and both functions ignore it."""
    return torch.zeros((1, 1, 1, 1), dtype=torch.bool, device=device)
