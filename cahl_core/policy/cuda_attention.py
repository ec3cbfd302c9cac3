"""Attention of a packed row on accelerators: FlexAttention or PyTorch's own, whichever is faster.

FlexAttention skips the blocks of the row in which no token sees another and needs a compiler; PyTorch's
own (SDPA) takes a dense mask. The rule: at the first row of a shape class (padded length, heads, widths,
dtype, window, gradients or not) each is run `TRIALS` times after a warm-up, forward and backward, and
the faster serves the class for the life of the process. Where FlexAttention does not run, a warning
says why and SDPA serves all. Other devices, and attention the CPU's kernel does not serve, use SDPA.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from cahl_core.policy.packing import Packed

TRIALS = 3
BLOCK = 128  # FlexAttention's block; padded lengths are multiples of it
CLASSES = 4  # padded lengths per doubling: few of them, so that kernels are compiled seldom

Kernel = Callable[[Tensor, Tensor, Tensor], Tensor]


class Masks(Protocol):
    """The masks of one row, per sliding window."""

    def mask(self, window: int | None) -> Tensor: ...

    def blocks(self, window: int | None) -> Any: ...


_fastest: dict[tuple[Any, ...], str] = {}
_broken: list[str] = []


def attend(
    query: Tensor, key: Tensor, value: Tensor, masks: Masks, window: int | None, scale: float
) -> Tensor:
    """``[1, Hq, L, D]``, ``[1, H, L, D]``, ``[1, H, L, E]`` → ``[1, L, Hq, E]``."""
    kernels: dict[str, Kernel] = {"sdpa": lambda q, k, v: sdpa(q, k, v, masks.mask(window), scale)}
    if query.is_cuda and not _broken:
        compiled = _compiled()
        kernels["flex"] = lambda q, k, v: flex(q, k, v, masks.blocks(window), scale, compiled)
    name = "sdpa" if len(kernels) == 1 else _choice(kernels, query, key, value, window)
    return kernels[name](query, key, value).transpose(1, 2).contiguous()


def sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float) -> Tensor:
    """PyTorch's attention under a boolean mask ``[1, 1, L, L]``."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:  # with a mask, PyTorch's grouped form falls back to its slowest kernel
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    attention = torch.nn.functional.scaled_dot_product_attention
    return attention(query, key, value, mask, scale=scale)


def flex(
    query: Tensor, key: Tensor, value: Tensor, blocks: Any, scale: float, kernel: Any
) -> Tensor:
    """FlexAttention; the row is padded to the length of its block mask, by tokens nobody sees."""
    length, padded = query.shape[2], blocks.seq_lengths[0]
    q, k, v = (torch.nn.functional.pad(t, (0, 0, 0, padded - length)) for t in (query, key, value))
    out: Tensor = kernel(
        q, k, v, block_mask=blocks, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )
    return out[:, :, :length]


def padded_length(length: int) -> int:
    """The length class of a row: at most `CLASSES` per doubling, each a multiple of `BLOCK`."""
    step = max(BLOCK, (1 << max(0, (length - 1).bit_length() - 1)) // CLASSES)
    return -(-length // step) * step


def block_mask(row: Packed, window: int | None, device: torch.device) -> Any:
    """FlexAttention's mask of a row, of its padded length."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = padded_length(len(row))
    return create_block_mask(
        mask_function(row, window, device), None, None, length, length, device=str(device)
    )


def mask_function(row: Packed, window: int | None, device: torch.device) -> Callable[..., Tensor]:
    """Whether a query sees a key: its ancestors and itself; beyond the row only itself."""
    extra = padded_length(len(row)) - len(row)
    ends, depths = (torch.from_numpy(x).to(device) for x in (row.ends(), row.position_ids))
    alone = torch.arange(len(row), len(row) + extra, device=device)
    ends, depths = torch.cat([ends, alone + 1]), torch.cat([depths, torch.zeros_like(alone)])

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        above = (key <= query) & (query < ends[key])
        return above if window is None else above & (depths[query] - depths[key] < window)

    return seen


@functools.cache
def _compiled() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def _choice(
    kernels: dict[str, Kernel], query: Tensor, key: Tensor, value: Tensor, window: int | None
) -> str:
    training = torch.is_grad_enabled() and query.requires_grad
    shapes = padded_length(query.shape[2]), query.shape[1], *key.shape[1::2], value.shape[3]
    case = (*shapes, query.dtype, window, training)
    if case not in _fastest:
        _fastest[case] = fastest(kernels, (query, key, value), training)
    return _fastest[case]


def fastest(kernels: dict[str, Kernel], inputs: tuple[Tensor, ...], training: bool) -> str:
    """The name of the kernel with the least time over `TRIALS`; ``sdpa`` if the others fail."""
    seconds: dict[str, float] = {}
    for name, kernel in kernels.items():
        try:
            seconds[name] = min(_seconds(kernel, inputs, training) for _ in range(TRIALS + 1))
        except torch.OutOfMemoryError:
            seconds[name] = float("inf")
        except Exception as error:
            if name == "sdpa":
                raise
            _broken.append(name)
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            warnings.warn(
                f"FlexAttention does not run here ({reason}); packed rows use SDPA", stacklevel=2
            )
    return min(seconds, key=lambda name: seconds[name])


def _seconds(kernel: Kernel, inputs: tuple[Tensor, ...], training: bool) -> float:
    leaves = tuple(t.detach().requires_grad_(training) for t in inputs)
    _wait(leaves[0])
    started = time.perf_counter()
    with torch.set_grad_enabled(training):
        out = kernel(*leaves)
        if training:
            torch.autograd.grad(out, leaves, torch.ones_like(out))
    _wait(leaves[0])
    return time.perf_counter() - started


def _wait(tensor: Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
