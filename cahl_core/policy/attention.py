"""Attention over trees of tokens: packed rows.

A token of a row sees its ancestors and itself, and in a layer with a sliding window only those less
than a window above it: by position in the text, not by place in the row. Registered with transformers
as an attention function: no model code is changed. The kernels are in `tree_attention` (CPU) and
`cuda_attention`; decoding's counterpart is `prefix_attention`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cahl_core.errors import ModelError
from cahl_core.policy import cuda_attention, prefix_attention, tree_attention
from cahl_core.policy.packing import Packed
from cahl_core.policy.tree_attention import Plan, TreeAttention

PACKED = "cahl_packed"
PAD = 64
# what some architectures add to the scores, and no kernel here computes
UNKNOWN = ("softcap", "s_aux", "sinks", "position_bias", "alibi", "relative_bias")


class PackedRuns:
    """What the attention kernels need of a packed row, made once and shared by all its layers."""

    def __init__(self, row: Packed, device: torch.device) -> None:
        self.row, self.device = row, device
        self._plans: dict[tuple[int | None, torch.dtype], Plan] = {}
        self._masks: dict[int | None, Tensor] = {}
        self._blocks: dict[int | None, Any] = {}

    @classmethod
    def of(cls, row: Packed, device: torch.device) -> PackedRuns:
        return cls(row, device)

    def plan(self, window: int | None, dtype: torch.dtype) -> Plan:
        """The tiles of the CPU's kernel."""
        key = window, dtype
        if key not in self._plans:
            self._plans[key] = Plan(self.row, window, dtype)
        return self._plans[key]

    def mask(self, window: int | None) -> Tensor:
        """Boolean ``[1, 1, L, L]``."""
        if window not in self._masks:
            mask = torch.from_numpy(self.row.mask(window))
            self._masks[window] = mask[None, None].to(self.device)
        return self._masks[window]

    def blocks(self, window: int | None) -> Any:
        """FlexAttention's block mask."""
        if window not in self._blocks:
            self._blocks[window] = cuda_attention.block_mask(self.row, window, self.device)
        return self._blocks[window]


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
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention within one packed row.

    Args:
        query: ``[1, Hq, L, D]``; key: ``[1, H, L, D]``; value: ``[1, H, L, E]``.

    Returns:
        ``[1, L, Hq, E]``.

    Raises:
        ModelError: the architecture changes the scores in a way that is not computed here.
    """
    _refuse(module, kwargs, dropout)
    query, key, value = _one_dtype(query, key, value)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if tree_attention.serves(query, key, value):
        plan = packed_runs.plan(sliding_window, query.dtype)
        out: Tensor = TreeAttention.apply(query[0], key[0], value[0], plan, scale)  # type: ignore[no-untyped-call]
        return out[None], None
    return cuda_attention.attend(query, key, value, packed_runs, sliding_window, scale), None


def _refuse(module: nn.Module, kwargs: dict[str, Any], dropout: float) -> None:
    given = [name for name in UNKNOWN if kwargs.get(name) is not None]
    if dropout:
        given.append("dropout")
    if given:
        raise ModelError(
            f"{type(module).__name__} attends with {', '.join(given)}, which packed rows do not "
            "compute",
            "choose a backbone whose attention is a plain softmax (Llama, Qwen, Mistral, Gemma 3)",
        )


def _one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """As autocast does for PyTorch's own attention; norms of some models leave float32 behind."""
    if len({t.dtype for t in tensors}) == 1:
        return tensors
    device = tensors[0].device.type
    dtype = tensors[-1].dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) for t in tensors)


def register() -> None:
    """Makes all attention functions known to transformers by name; calling it again changes nothing."""
    from transformers import AttentionInterface

    AttentionInterface.register(PACKED, packed_attention)
    prefix_attention.register()


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
