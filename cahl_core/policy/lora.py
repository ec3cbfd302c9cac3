"""LoRA's linear layer in three matrix products forward and five backward, and nothing else.

peft's layer casts its input up and down, scales and adds in separate passes over the whole output; this
one has none of those passes. The adapters stay peft's: only the arithmetic of the
plain case (one active adapter, no dropout, not merged) is replaced.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class LoraProduct(torch.autograd.Function):
    """x Wᵀ + bias + s (x Aᵀ) Bᵀ with gradients for x, A and B; W and the bias are frozen.

    Computes in the dtype of ``weight``; the gradients of A and B have the adapters' own dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        small_a, small_b = a.to(weight.dtype), b.to(weight.dtype)
        inner = rows @ small_a.T
        out = nn.functional.linear(rows, weight, bias)
        out.addmm_(inner, small_b.T, alpha=scale)
        ctx.save_for_backward(rows, weight, small_a, small_b, inner)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (x.dtype, a.dtype)
        return out.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, a, b, inner = ctx.saved_tensors
        grad = grads[0].reshape(-1, grads[0].shape[-1]).to(weight.dtype)
        grad_inner = (grad @ b).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = (grad @ weight).addmm_(grad_inner, a).view(ctx.shape).to(ctx.dtypes[0])
        grad_a = (grad_inner.T @ rows).to(ctx.dtypes[1])
        grad_b = (grad.T @ inner).mul_(ctx.scale).to(ctx.dtypes[1])
        return grad_x, None, None, grad_a, grad_b, None


def install(model: nn.Module) -> None:
    """Gives every peft LoRA linear layer of ``model`` the fused forward; repeating it is harmless."""
    for layer in model.modules():
        if hasattr(layer, "lora_A") and isinstance(getattr(layer, "base_layer", None), nn.Linear):
            vars(layer)["forward"] = _Forward(layer)


class _Forward:
    """Replaces one layer's forward; falls back to peft's wherever the case is not the plain one."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.original = type(layer).forward

    def __call__(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer = self.layer
        active = layer.active_adapters
        plain = len(active) == 1 and not (args or kwargs or layer.merged or layer.disable_adapters)
        if not plain or not _is_plain(layer, active[0]):
            result: Tensor = self.original(layer, x, *args, **kwargs)
            return result
        name = active[0]
        out: Tensor = LoraProduct.apply(  # type: ignore[no-untyped-call]
            x,
            layer.base_layer.weight,
            layer.base_layer.bias,
            layer.lora_A[name].weight,
            layer.lora_B[name].weight,
            layer.scaling[name],
        )
        return out


def merged(layer: Any, name: str, weight: Tensor) -> Tensor:
    """A new ``[out, in]``: ``weight`` plus what adapter ``name`` of a peft LoRA layer adds to it.

    One product with the sum inside it: with float32 copies of weight and delta, merging took a tenth of
    the time of a generation.
    """
    a, b = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    if name in getattr(layer, "lora_variant", {}) or a.ndim != 2:
        delta = layer.get_delta_weight(name).detach()
        total: Tensor = (weight.float() + delta.float()).to(weight.dtype)
        return total
    small = (x.to(weight.dtype) for x in (b, a))
    return torch.addmm(weight, *small, alpha=layer.scaling[name])


def _is_plain(layer: Any, name: str) -> bool:
    return (
        name in layer.lora_A
        and isinstance(layer.lora_dropout[name], nn.Identity)
        and name not in getattr(layer, "lora_variant", {})
        and layer.lora_A[name].bias is None
        and layer.lora_B[name].bias is None
    )
