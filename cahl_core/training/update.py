"""One policy update of one role from its rollout samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cahl_core.config import Settings
from cahl_core.losses import clipped_loss, token_weights
from cahl_core.policy.logprobs import RowLogProbs, packed_rows, row_logprobs
from cahl_core.policy.packing import Packed
from cahl_core.training.distributed import Workers
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import Sample


class Update:
    """Accumulates what one update of one role reports."""

    def __init__(self) -> None:
        self.tokens = self.packed = self.kl = self.entropy = self.clipped = self.gap = 0.0
        self.scored = 0.0
        self.largest_gap = 0.0
        self.loss = 0.0
        self.grad_norm = 0.0

    def metrics(self, workers: Workers) -> dict[str, float]:
        """Means per trained token over all processes; zeros when nothing was trained."""
        parts = (self.tokens, self.packed, self.kl, self.entropy, self.clipped, self.gap)
        tokens, packed, kl, entropy, clipped, gap, scored, loss = workers.sum(
            (*parts, self.scored, self.loss)
        )
        per_token = 1.0 / max(tokens, 1.0)
        return {
            "loss": loss,
            "kl": kl * per_token,
            "entropy": entropy / max(scored, 1.0),
            "clip_fraction": clipped * per_token,
            "logprob_gap_mean": gap * per_token,
            "logprob_gap_max": self.largest_gap,
            "grad_norm": self.grad_norm,
            "trained_tokens": tokens,
            "packed_tokens": packed,
        }


def update_role(
    role: str,
    samples: Sequence[Sample],
    trainee: Trainee,
    settings: Settings,
    scale: float,
    workers: Workers,
) -> Update:
    """Takes ``inner_epochs`` optimizer steps on the clipped loss of the samples.

    Old log-probabilities are those of the first epoch's own forward pass, so its ratio is
    exactly 1; how far the sampler's were from them is reported as the gap.

    Args:
        samples: this process's share of the completions that have a signal.
        scale: learning-rate factor of the schedule.
    """
    report = Update()
    train = settings.train
    own = getattr(train, role)
    total = int(workers.sum([float(len(samples))])[0])
    if total == 0:
        return report
    lengths = [len(s.completion.token_ids) for s in samples]
    # the weights of `token_weights` are those of the whole batch, whatever this process's share
    weights = [
        w * len(samples) / total for w in token_weights(lengths, train.loss_type, own.max_tokens)
    ]
    factor = train.lambda_executor if role == "executor" else 1.0
    prompts = [s.prompt for s in samples]
    rows = list(
        packed_rows(prompts, [s.completion.token_ids for s in samples], train.row_tokens)
        if samples
        else []
    )
    old: list[Tensor | None] = [None] * len(rows)
    for epoch in range(train.inner_epochs):
        report.loss = 0.0
        for number, row in enumerate(rows):
            reference = _reference(trainee, row, prompts, role, own.temperature)
            trainee.activate()
            scored = row_logprobs(trainee.policy, row, [len(p) for p in prompts], own.temperature)
            new = scored.values[torch.cat(scored.members)]
            before = old[number]
            if before is None:
                before = old[number] = new.detach()
                _compare_with_sampler(report, scored, samples, before)
            result = clipped_loss(
                new,
                before,
                reference[torch.cat(scored.members)],
                _spread([samples[i].advantage for i in row.indices], scored),
                _spread([weights[i] for i in row.indices], scored),
                clip_low=own.clip_low,
                clip_high=own.clip_high,
                kl_weight=own.kl_weight,
            )
            (factor * result.loss).backward()  # type: ignore[no-untyped-call]
            report.loss += float(result.loss.detach())
            if epoch == 0:
                report.kl += float(result.kl)
                report.tokens += len(new)
                report.packed += len(row)
                report.entropy += float(scored.entropies.sum())
                report.scored += len(scored.entropies)
            report.clipped += float(result.clipped) / train.inner_epochs
        workers.sum_gradients(trainee.parameters)
        report.grad_norm = trainee.step(scale)
    return report


def _reference(
    trainee: Trainee, row: Packed, prompts: Sequence[Sequence[int]], role: str, temperature: float
) -> Tensor:
    """Log-probabilities under the frozen SFT adapter of the same role, on the same backbone."""
    with trainee.reference() as policy:
        lengths = [len(p) for p in prompts]
        return row_logprobs(policy, row, lengths, temperature).values


def _spread(values: Sequence[float], scored: RowLogProbs) -> Tensor:
    """One value per sequence, repeated over its tokens."""
    counts = torch.tensor([len(m) for m in scored.members])
    spread = torch.tensor(values, dtype=torch.float32).repeat_interleave(counts)
    return spread.to(scored.values.device)


def _compare_with_sampler(
    report: Update, scored: RowLogProbs, samples: Sequence[Sample], recomputed: Tensor
) -> None:
    sampled = torch.tensor([x for i in scored.indices for x in samples[i].completion.logprobs])
    gaps = (sampled.to(recomputed.device) - recomputed).abs()
    report.gap += float(gaps.sum())
    report.largest_gap = max(report.largest_gap, float(gaps.max()))
