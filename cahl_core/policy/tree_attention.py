"""Attention of a packed row on the CPU: one fused kernel forward, plain matrix products backward.

Forward, every tile of queries goes through PyTorch's fused kernel over views of the keys it sees.
Backward, the probabilities are recomputed from the kept log-sum-exp: PyTorch's own backward kernel is
several times slower on processors with bfloat16 matrix units, and its inputs would have to be gathered
and their gradients scattered run by run. Query heads that share a key head are one matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cahl_core.policy.packing import Packed
from cahl_core.policy.tiles import Tile, tiles

SIZE = 128  # queries per tile: the scores of one tile stay in the second-level cache
FUSED = "_scaled_dot_product_flash_attention_for_cpu"


def serves(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the tensors are of a kind that the fused kernel of this PyTorch takes."""
    on_cpu = query.device.type == "cpu" and hasattr(torch.ops.aten, FUSED)
    return on_cpu and len(query) == 1 and query.shape[3] == key.shape[3] == value.shape[3]


@dataclass(frozen=True)
class Part:
    """A tile with its masks as tensors.

    Attributes:
        bias: ``[n, m]``, 0 or -inf, in the dtype of the queries; ``None``: all keys are seen.
        hidden: ``[n, w]``: which of the last ``w`` keys are not seen; ``None`` likewise.
    """

    tile: Tile
    bias: Tensor | None
    hidden: Tensor | None

    @classmethod
    def of(cls, tile: Tile, dtype: torch.dtype) -> Part:
        width = tile.visible.shape[1]
        if not width:
            return cls(tile, None, None)
        hidden = torch.from_numpy(~tile.visible)
        bias = torch.zeros(tile.stop - tile.start, tile.keys, dtype=dtype)
        bias[:, tile.keys - width :].masked_fill_(hidden, float("-inf"))
        return cls(tile, bias, hidden)


@dataclass
class Plan:
    """The tiles of one row for one window, shared by all layers that have it."""

    row: Packed
    window: int | None
    dtype: torch.dtype

    @cached_property
    def parts(self) -> list[Part]:
        return [Part.of(tile, self.dtype) for tile in tiles(self.row, SIZE, self.window)]

    @property
    def largest(self) -> int:
        """Query-key pairs of the largest tile."""
        return max((p.tile.stop - p.tile.start) * p.tile.keys for p in self.parts)


class TreeAttention(torch.autograd.Function):
    """softmax(scale q kᵀ + mask) v over the tiles of a plan; gradients for q, k and v.

    q: ``[Hq, Q, D]``; k, v: ``[H, L, D]``; returns ``[Q, Hq, D]``. In a row of its own Q is L.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: Plan, scale: float) -> Tensor:
        heads, _, width = k.shape
        groups, length = q.shape[0] // heads, q.shape[1]
        grouped = q.view(heads, groups, length, width)
        out = q.new_empty(length, heads, groups, width)
        lse = q.new_empty(heads, groups, length, dtype=torch.promote_types(q.dtype, torch.float32))
        fused = getattr(torch.ops.aten, FUSED)
        for part in plan.parts:
            start, stop = part.tile.start, part.tile.stop
            keys, values = (
                _gather(x, part.tile)[:, None].expand(-1, groups, -1, -1) for x in (k, v)
            )
            result, sums = fused(
                grouped[:, :, start:stop], keys, values, attn_mask=part.bias, scale=scale
            )
            out[start:stop] = result.permute(2, 0, 1, 3)
            lse[:, :, start:stop] = sums
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.plan, ctx.scale = plan, scale
        return out.view(length, heads * groups, width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        with torch.autocast(q.device.type, enabled=False):
            grads = _Backward(q, k, v, out, lse, grad.view_as(out), ctx.scale).run(ctx.plan)
        return (*grads, None, None)


class _Backward:
    """The gradients of one layer.

    log p = scale q kᵀ - lse and dp - Σ p dp come out of one matrix product each: -lse and -Σ p dp
    stand as further columns beside q and the gradient, against columns of ones beside k and v. So
    the difference is taken before rounding to bfloat16, not after it.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        grad: Tensor,
        scale: float,
    ) -> None:
        self.heads, self.length, self.width = k.shape
        self.groups, self.queried = q.shape[0] // self.heads, q.shape[1]
        # a power of two scales the queries without rounding them; the rest of it waits for the scores
        exact = 2.0 ** math.floor(math.log2(scale))
        self.scale, self.rest = exact, scale / exact
        inner = (grad.to(lse.dtype) * out.to(lse.dtype)).sum(3).permute(1, 2, 0)
        queries = q.view(self.heads, self.groups, self.queried, self.width) * exact
        self.queries = _beside(queries, -lse / self.rest)
        self.grads = _beside(grad.permute(1, 2, 0, 3), -inner)
        self.keys, self.values = _ones_beside(k), _ones_beside(v)
        self.wide = lse.dtype

    def run(self, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        shape = self.heads, self.length, self.width
        dq = self.keys.new_empty(self.heads, self.groups, self.queried, self.width)
        dk, dv = (torch.zeros(shape, dtype=self.wide) for _ in range(2))
        room = [self.keys.new_empty(self.heads * self.groups * plan.largest) for _ in range(2)]
        for part in plan.parts:
            self._tile(part, room, dq, dk, dv)
        dtype = self.keys.dtype
        dk *= self.rest
        return dq.view(-1, self.queried, self.width), dk.to(dtype), dv.to(dtype)

    def _tile(self, part: Part, room: list[Tensor], dq: Tensor, dk: Tensor, dv: Tensor) -> None:
        tile, width = part.tile, self.width
        rows, keys = self.groups * (tile.stop - tile.start), tile.keys
        shape = self.heads, rows, keys
        p, ds = (r[: self.heads * rows * keys].view(shape) for r in room)
        q, grad = (
            x[:, :, tile.start : tile.stop].flatten(1, 2) for x in (self.queries, self.grads)
        )
        k, v = _gather(self.keys, tile), _gather(self.values, tile)
        torch.bmm(q, k.transpose(1, 2), out=p)
        (p if self.rest == 1.0 else p.mul_(self.rest)).exp_()
        if part.hidden is not None:
            last = p.view(self.heads, self.groups, -1, keys)[..., keys - part.hidden.shape[1] :]
            last.masked_fill_(part.hidden, 0.0)
        torch.bmm(grad, v.transpose(1, 2), out=ds).mul_(p)
        _scatter(dv, tile, torch.bmm(p.transpose(1, 2), grad[..., :width]))
        _scatter(dk, tile, torch.bmm(ds.transpose(1, 2), q[..., :width]))
        result = torch.bmm(ds, k[..., :width]).mul_(self.scale * self.rest)
        dq[:, :, tile.start : tile.stop] = result.view(self.heads, self.groups, -1, width)


def _gather(x: Tensor, tile: Tile) -> Tensor:
    """``[H, L, D]`` → ``[H, m, D]``, the rows of the tile's keys; a view where they are adjacent."""
    parts = [x[:, start:stop] for start, stop in tile.spans]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _scatter(total: Tensor, tile: Tile, part: Tensor) -> None:
    """Adds ``[H, m, D]`` to the rows of the tile's keys."""
    offset = 0
    for start, stop in tile.spans:
        total[:, start:stop] += part[:, offset : offset + stop - start]
        offset += stop - start


def _beside(x: Tensor, column: Tensor) -> Tensor:
    """``x`` with a column beside it, as two in half precision: a number and what rounding lost."""
    first = column.to(x.dtype)
    columns = [first, (column - first.to(column.dtype)).to(x.dtype)]
    return torch.cat([x, torch.stack(columns, dim=-1)], dim=-1)


def _ones_beside(x: Tensor) -> Tensor:
    return torch.cat([x, x.new_ones(*x.shape[:-1], 2)], dim=-1)
