"""The decoding copy of a policy: LoRA merged into the backbone's matrices, in the backbone's dtype.

Decoding reads every weight at every step, so the adapters are merged once per update instead of being
multiplied at every token. Everything but the merged matrices shares memory with the backbone.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from cahl_core.policy import attention, prefix_attention
from cahl_core.policy.backbone import Policy


class DecodeModel:
    """A causal LM whose adapted matrices are this object's own; ``refresh`` merges them anew."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._layers = _lora_layers(policy.causal)
        self.model = _shell(policy, self._layers)
        self._plain = dict(self.model.named_modules())

    @torch.no_grad()
    def refresh(self, name: str | None) -> None:
        """Makes the weights those of backbone + adapter ``name`` (``None``: the backbone)."""
        for path, layer in self._layers.items():
            weight = layer.base_layer.weight
            if name is not None and name in layer.lora_A:
                weight = (weight.float() + layer.get_delta_weight(name).float()).to(weight.dtype)
            self._plain[path].weight.data = weight

    def prefill_attention(self) -> None:
        self.model.config._attn_implementation = attention.PACKED

    def decode_attention(self) -> None:
        self.model.config._attn_implementation = prefix_attention.DECODE


def _lora_layers(causal: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in causal.named_modules() if hasattr(m, "base_layer")}


def _shell(policy: Policy, layers: dict[str, Any]) -> Any:
    """The backbone's modules without LoRA wrappers, parameters shared until refreshed."""
    causal = policy.causal
    # deepcopy with every tensor pre-seeded in the memo copies structure only, no weights
    memo: dict[int, Any] = {}
    for tensor in (*causal.parameters(), *causal.buffers()):
        memo[id(tensor)] = tensor
    for layer in layers.values():
        base = layer.base_layer
        plain = nn.Linear(1, 1, bias=base.bias is not None, device="meta")
        plain.in_features, plain.out_features = base.in_features, base.out_features
        plain.weight = nn.Parameter(base.weight.data, requires_grad=False)
        plain.bias = base.bias
        memo[id(layer)] = plain
    shell = copy.deepcopy(causal, memo)
    shell.config = copy.deepcopy(causal.config)
    for module in shell.modules():
        if hasattr(module, "config"):
            module.config = shell.config
    return shell.eval()
