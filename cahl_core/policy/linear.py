"""Linear layers of frozen weights for inference, in the layout their processor multiplies fastest.

On x86 CPUs float32 is multiplied by kernels compiled for the machine (`native`); without them, and in
bfloat16 where the processor multiplies in it, a weight is laid out once by oneDNN, when it is set,
instead of at every call. Activation, product or sum with a second operand happen in the same call where
that is faster. Everywhere else the layers are PyTorch's own.
"""

from __future__ import annotations

import platform

import torch
from torch import Tensor, nn

from cahl_core.policy import native

ROWS_HINT = 32  # the number of rows the layout is chosen for; any number may be multiplied
MANY_ROWS = 192  # from here on PyTorch's product of float32 is as fast
FEW_ROWS = 128  # below it a sum of its own costs less than the product's slower kernel for it


class FrozenLinear:
    """x Wᵀ + bias with what usually follows it. ``weight`` is ``[out, in]``.

    Every method takes ``[T, in]`` and gives a new ``[T, out]`` in the dtype of ``x``.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self.bias = bias
        self.native = native.serves(weight.dtype, weight.device)
        self.packed = packs(weight)
        # in float32 oneDNN's fused passes are no faster, its swish slower than PyTorch's
        self.fuses = self.packed and weight.dtype == torch.bfloat16
        self.weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), ROWS_HINT)
            if self.packed
            else weight.contiguous()
        )

    def __call__(self, x: Tensor) -> Tensor:
        if (found := self._compiled(x, "none")) is not None:
            return found
        if self.packed:
            return self._pointwise(x, "none")
        return nn.functional.linear(x, self.weight, self.bias)

    def silu(self, x: Tensor) -> Tensor:
        """silu(x Wᵀ + bias)."""
        if (found := self._compiled(x, "silu")) is not None:
            return found
        if self.fuses:
            return self._pointwise(x, "swish")
        return nn.functional.silu(self(x))

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """(x Wᵀ + bias) · other, element by element."""
        if (found := self._compiled(x, "times", other)) is not None:
            return found
        if self.fuses:
            return self._binary(x, other, "mul")
        return self(x).mul_(other)

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """x Wᵀ + bias + other."""
        if (found := self._compiled(x, "plus", other)) is not None:
            return found
        if self.fuses and len(x) >= FEW_ROWS:
            return self._binary(x, other, "add")
        return self(x).add_(other)

    def _compiled(self, x: Tensor, kind: str, other: Tensor | None = None) -> Tensor | None:
        if self.native is None or len(x) >= MANY_ROWS:
            return None
        return self.native.linear(x, self.weight, self.bias, kind, other)

    def _pointwise(self, x: Tensor, activation: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, activation, [], ""
        )
        return out

    def _binary(self, x: Tensor, other: Tensor, kind: str) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, kind
        )
        return out


def packs(weight: Tensor) -> bool:
    """Whether oneDNN's prepacked layout serves this weight: on a CPU that multiplies in its dtype.

    Not where the compiled kernels do, which read a weight as it is.
    """
    if native.serves(weight.dtype, weight.device) is not None:
        return False
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    if weight.dtype == torch.float32:
        return platform.machine().lower() in ("x86_64", "amd64")
    return weight.dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
