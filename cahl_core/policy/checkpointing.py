"""Gradient checkpointing: a layer keeps its input and computes the rest again in the backward pass.

Transformers' own switch works in training mode only, and the frozen backbone stays in evaluation mode,
so the layers are wrapped here. The second computation is the first one's, so gradients are equal bit
by bit where the arithmetic is deterministic.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from cahl_core.errors import ModelError


def install(model: nn.Module) -> None:
    """Makes every decoder layer of ``model`` checkpoint its forward where gradients are recorded.

    Raises:
        ModelError: transformers marks no module of the model as a layer that can be checkpointed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ModelError(
            f"{type(model).__name__} has no layers that can be checkpointed",
            "set model.gradient_checkpointing=false",
        )
    for layer in layers:
        vars(layer)["forward"] = _Forward(layer)


class _Forward:
    """Replaces one layer's forward; without gradients it is the layer's own.

    Hooks on the layer (sharded weights are gathered in one) stay outside, so they run once.
    """

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self._plain(*args, **kwargs)
        return checkpoint(self._plain, *args, use_reentrant=False, **kwargs)

    def _plain(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.layer).forward(self.layer, *args, **kwargs)
