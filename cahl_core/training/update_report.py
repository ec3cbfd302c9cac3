"""What one update of one role reports: sums of this process, turned into means over all of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cahl_core.losses import PolicyLoss
from cahl_core.training.distributed import Workers


@dataclass(slots=True)
class Update:
    """Sums over this process's tokens and, but for the sampler's, over the inner epochs.

    Attributes:
        tokens: trained tokens of one epoch; ``seen`` counts every epoch's.
        packed: tokens of the rows of one epoch.
        loss: of the role, sum over its rows and epochs, before λ.
        grad_norm: mean over the optimizer steps taken, before clipping; of both roles' gradients
            where they share an adapter.
        skipped: optimizer steps that were not taken, something not being finite.
        oom_splits: packed rows that ran out of memory and were done again in halves.
    """

    tokens: float = 0.0
    packed: float = 0.0
    seen: float = 0.0
    epochs: int = 0
    loss: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    clipped: float = 0.0
    ratio_max: float = 1.0
    ratio_min: float = 1.0
    importance: float = 0.0
    truncated: float = 0.0
    gap: float = 0.0
    largest_gap: float = 0.0
    grad_norm: float = 0.0
    learning_rate: float = 0.0
    steps: int = 0
    skipped: int = 0
    oom_splits: int = 0

    def begin(self) -> None:
        """Counts an epoch."""
        self.epochs += 1

    @torch.no_grad()
    def add(self, result: PolicyLoss, entropy: Tensor) -> None:
        """Takes in one row of one epoch."""
        self.loss += float(result.loss)
        self.kl += float(result.kl)
        self.entropy += float(entropy.sum())
        self.clipped += float(result.clipped.sum())
        self.seen += len(entropy)
        if len(entropy):
            self.ratio_max = max(self.ratio_max, float(result.ratio.max()))
            self.ratio_min = min(self.ratio_min, float(result.ratio.min()))

    @torch.no_grad()
    def compare(self, old: Tensor, sampled: Tensor, importance: Tensor, cap: float) -> None:
        """Takes in how far the sampler's log-probabilities were from ours, once per row."""
        gaps = (sampled - old).abs()
        self.tokens += len(old)
        self.gap += float(gaps.sum())
        self.largest_gap = max(self.largest_gap, float(gaps.max()) if len(gaps) else 0.0)
        self.importance += float(importance.sum())
        self.truncated += float((importance >= cap).sum())

    def stepped(self, norm: float | None, learning_rate: float) -> None:
        """Takes in the end of one epoch; ``norm`` is ``None`` where its step was skipped."""
        self.learning_rate = learning_rate
        if norm is None:
            self.skipped += 1
            return
        self.grad_norm = (self.grad_norm * self.steps + norm) / (self.steps + 1)
        self.steps += 1

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Means per trained token over all processes, which must all call this; zeros without tokens.

        ``kl`` is 0 where ``kl_weight`` is 0: it is not measured then.
        """
        own = (self.kl, self.entropy, self.clipped, self.seen)
        sampler = (self.gap, self.importance, self.truncated, self.tokens)
        sums = workers.sum((*own, *sampler, self.packed, self.loss, float(self.oom_splits)))
        kl, entropy, clipped, seen, gap, importance, truncated, tokens, packed, loss, splits = sums
        once, each = 1.0 / max(tokens, 1.0), 1.0 / max(seen, 1.0)
        extremes = (self.ratio_max, -self.ratio_min, self.largest_gap)
        ratio_max, negative_min, largest_gap = (_largest(x, workers) for x in extremes)
        return {
            "loss": loss / max(self.epochs, 1),
            "kl": kl * each,
            "entropy": entropy * each,
            "clip_fraction": clipped * each,
            "ratio_max": ratio_max,
            "ratio_min": -negative_min,
            "importance_mean": importance * once,
            "importance_truncated": truncated * once,
            "logprob_gap_mean": gap * once,
            "logprob_gap_max": largest_gap,
            "grad_norm": self.grad_norm,
            "learning_rate": self.learning_rate,
            "skipped_updates": float(self.skipped),
            "trained_tokens": tokens,
            "packed_tokens": packed,
            "oom_splits": splits,
        }


def _largest(value: float, workers: Workers) -> float:
    """The largest over the processes: each adds its own at its place of a list of zeros."""
    own = [0.0] * workers.count
    own[workers.rank] = value
    return max(workers.sum(own))
