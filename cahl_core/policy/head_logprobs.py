"""Log-probabilities and entropies at the head, in blocks of positions and of the vocabulary.

No more than `Blocks.elements` logits exist at a time, whatever the vocabulary: a running log-sum-exp joins
the blocks, and the backward pass computes them again. The head is frozen in all of this package
(adapters leave it out, tied or not), so no gradient of its weights is computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cahl_core.policy.head import Head


@dataclass(frozen=True, slots=True)
class Blocks:
    """Positions per block, and at most so many logits."""

    positions: int
    elements: int

    @classmethod
    def of(cls, device: torch.device) -> Blocks:
        """On a CPU what its caches hold; on an accelerator enough to keep it busy (256 MiB)."""
        return cls(512, 1 << 19) if device.type == "cpu" else cls(2048, 1 << 26)

    def of_positions(self, count: int) -> Iterator[slice]:
        for start in range(0, count, self.positions):
            yield slice(start, min(start + self.positions, count))

    def of_vocabulary(self, size: int, positions: int) -> Iterator[slice]:
        width = max(1, self.elements // max(1, positions))
        for start in range(0, size, width):
            yield slice(start, min(start + width, size))


def head_logprobs(
    hidden: Tensor,
    head: Head,
    targets: Tensor,
    temperature: float = 1.0,
    blocks: Blocks | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(logits / T)[target] and the entropy in nats, ``[N]`` each, at least float32.

    Exact gradients for ``hidden`` (``[N, hidden]``) of both; none for the head.
    """
    blocks = blocks or Blocks.of(hidden.device)
    out: tuple[Tensor, Tensor] = HeadLogProbs.apply(  # type: ignore[no-untyped-call]
        hidden, head, targets, temperature, blocks
    )
    return out


class HeadLogProbs(torch.autograd.Function):
    """The arithmetic of `head_logprobs`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Head, targets: Tensor, temperature: float, blocks: Blocks
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(head.weight.dtype, torch.float32)
        values, total, entropy = (
            torch.empty(len(hidden), dtype=wide, device=hidden.device) for _ in range(3)
        )
        for part in blocks.of_positions(len(hidden)):
            sums = _Sums(targets[part])
            for words in blocks.of_vocabulary(len(head.weight), part.stop - part.start):
                sums.add(_logits(hidden[part], head, words).div_(temperature), words)
            values[part], total[part], entropy[part] = sums.result()
        ctx.save_for_backward(hidden, targets, total, entropy)
        ctx.head, ctx.temperature, ctx.blocks = head, temperature, blocks
        ctx.set_materialize_grads(False)
        return values, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        hidden, targets, total, entropy = ctx.saved_tensors
        head: Head = ctx.head
        out = torch.zeros(hidden.shape, dtype=total.dtype, device=hidden.device)
        parts = [] if all(g is None for g in grads) else ctx.blocks.of_positions(len(hidden))
        for part in parts:
            given = [None if g is None else g[part, None] for g in grads]
            for words in ctx.blocks.of_vocabulary(len(head.weight), part.stop - part.start):
                logits = _logits(hidden[part], head, words)
                curve = head.curve(logits)
                logp = logits.div_(ctx.temperature).sub_(total[part, None])
                slope = _slope(logp, entropy[part], targets[part] - words.start, *given)
                slope.mul_(curve / ctx.temperature)
                weight = head.weight[words]
                out[part] += slope.to(weight.dtype) @ weight
        return out.to(hidden.dtype), None, None, None, None


class _Sums:
    """Over the blocks of the vocabulary so far: max z, Σ e^(z - max), Σ (z - max) e^(z - max)."""

    def __init__(self, targets: Tensor) -> None:
        self.targets = targets
        self.largest: Tensor | None = None
        self.total: Tensor
        self.weighted: Tensor
        self.chosen: Tensor

    def add(self, logits: Tensor, words: slice) -> None:
        """Takes the logits of one more block; they are overwritten."""
        self._choose(logits, words)
        largest = logits.amax(1)
        if self.largest is not None:
            largest = torch.maximum(self.largest, largest)
        shifted = logits.sub_(largest[:, None])
        weights = shifted.exp()
        total, weighted = weights.sum(1), weights.mul_(shifted).sum(1)
        if self.largest is not None:
            lower = self.largest - largest
            keep = lower.exp()
            weighted += keep * (self.weighted + lower * self.total)
            total += keep * self.total
        self.largest, self.total, self.weighted = largest, total, weighted

    def _choose(self, logits: Tensor, words: slice) -> None:
        places = self.targets - words.start
        inside = (places >= 0) & (places < logits.shape[1])
        found = logits.gather(1, places.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
        self.chosen = found if self.largest is None else torch.where(inside, found, self.chosen)

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """The targets' log-probabilities, the log-sum-exp, the entropy."""
        assert self.largest is not None
        rest = self.total.log()
        value = self.chosen - self.largest - rest
        return value, self.largest + rest, rest - self.weighted / self.total


def _logits(hidden: Tensor, head: Head, words: slice) -> Tensor:
    bias = None if head.bias is None else head.bias[words]
    return Head(head.weight[words], bias, head.scale, head.softcap).logits(hidden)


def _slope(
    logp: Tensor,
    entropy: Tensor,
    places: Tensor,
    of_value: Tensor | None,
    of_entropy: Tensor | None,
) -> Tensor:
    """The gradient at the logits z over the temperature, ``[n, words]``; overwrites ``logp``.

    d log p_t / dz_j = [j = t] - p_j and dH / dz_j = -p_j (log p_j + H), each times what comes to it.
    """
    weighted = None if of_entropy is None else (logp + entropy[:, None]).mul_(of_entropy)
    probabilities = logp.exp_()
    if weighted is None:
        assert of_value is not None
        slope = probabilities.mul_(-of_value)
    else:
        slope = probabilities.mul_(
            -weighted if of_value is None else weighted.add_(of_value).neg_()
        )
    if of_value is not None:
        inside = ((places >= 0) & (places < logp.shape[1]))[:, None]
        places = places.clamp(0, logp.shape[1] - 1)[:, None]
        slope.scatter_add_(1, places, (of_value * inside).to(slope.dtype))
    return slope
