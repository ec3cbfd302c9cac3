"""RMS normalisation in three passes forward and five backward, keeping one number per token.

transformers' module normalises in float32, and autograd keeps several float32 copies of its input for
the way back. The values are the module's own: normalised in float32, rounded, then weighted.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

# Modules that compute weight * (x / rms(x)) and nothing else.
PLAIN = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class RmsNorm(torch.autograd.Function):
    """weight · x / sqrt(mean(x²) + eps) over the last dimension; the weight is frozen."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        inverse = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        out: Tensor = (x * inverse).to(x.dtype).mul_(weight)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, inverse = ctx.saved_tensors
        weighted = grads[0] * weight
        along = (weighted * x).sum(-1, keepdim=True, dtype=inverse.dtype)
        along.mul_(inverse.pow(3)).div_(-x.shape[-1])
        return (weighted * inverse).addcmul_(x, along).to(x.dtype), None, None


def install(model: nn.Module) -> None:
    """Gives every plain RMS norm of ``model`` this forward; repeating it is harmless."""
    for module in model.modules():
        if type(module).__name__ in PLAIN:
            vars(module)["forward"] = _Forward(module)


class _Forward:
    """Replaces one module's forward; a weight that trains, or of another type, is left to the module."""

    def __init__(self, module: Any) -> None:
        self.module = module

    def __call__(self, hidden_states: Tensor) -> Tensor:
        module, x = self.module, hidden_states
        if module.weight.requires_grad or module.weight.dtype != x.dtype:
            original: Tensor = type(module).forward(module, x)
            return original
        out: Tensor = RmsNorm.apply(x, module.weight, module.variance_epsilon)  # type: ignore[no-untyped-call]
        return out
