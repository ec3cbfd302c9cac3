"""One policy update from rollout samples: L = L_h(θ_h) + λ L_l(θ_l), one or several optimizer steps.

Every role has its own batch, loss settings and schedule; a `Trainee` takes one optimizer step per inner
epoch. Where both roles train the same one (a shared adapter), their gradients add up first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cahl_core.config import Settings
from cahl_core.losses import importance_weights, normalisation_of, policy_loss, token_weights
from cahl_core.policy.logprobs import RowLogProbs, packed_rows, row_logprobs
from cahl_core.policy.packing import Packed
from cahl_core.roles import Role
from cahl_core.train_config import RoleSettings
from cahl_core.training.distributed import Workers
from cahl_core.training.schedule import lr_scale
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import Sample
from cahl_core.training.update_report import Update


def update(
    batches: Mapping[Role, Sequence[Sample]],
    trainees: Mapping[Role, Trainee],
    settings: Settings,
    step: int,
    workers: Workers,
    total_steps: int | None = None,
) -> dict[Role, Update]:
    """Takes ``inner_epochs`` optimizer steps per trainee on the losses of its roles.

    Old log-probabilities are those of the first epoch's own forward pass, so its ratio is exactly 1; how
    far the sampler's were from them is reported, and corrected for as ``train.importance`` says. A loss
    or gradient that is not finite on any process skips the optimizer step on all of them.

    Args:
        batches: per role this process's share of the completions that have a signal; every process
            gives the same roles in the same order. Roles that are not named are not updated.
        trainees: what each role trains; one for both where they share an adapter, which then follows
            the planner's schedule.
        step: from 0, for the learning-rate schedules.
        total_steps: of the training; ``train.steps`` by default.

    Returns:
        A report per role of ``batches``. Where no process has a sample of any role of a trainee,
        nothing happens to it.
    """
    total = settings.train.steps if total_steps is None else total_steps
    reports = {role: Update() for role in batches}
    for trainee, roles in _by_trainee(list(batches), trainees):
        owner = "planner" if trainees.get("planner") is trainee else roles[0]
        scale = lr_scale(getattr(settings.train, owner), step, total)
        batch = [
            _Batch(role, batches[role], trainee, settings, workers, reports[role]) for role in roles
        ]
        _train(trainee, [b for b in batch if b.total], scale, settings.train.inner_epochs, workers)
    return reports


def _by_trainee(
    roles: Sequence[Role], trainees: Mapping[Role, Trainee]
) -> list[tuple[Trainee, list[Role]]]:
    groups: dict[int, tuple[Trainee, list[Role]]] = {}
    for role in roles:
        groups.setdefault(id(trainees[role]), (trainees[role], []))[1].append(role)
    return list(groups.values())


def _train(
    trainee: Trainee, batches: Sequence[_Batch], scale: float, epochs: int, workers: Workers
) -> None:
    for _ in range(epochs if batches else 0):
        finite = True
        for batch in batches:
            trainee.activate()
            finite &= batch.backward()
        norm = _step(trainee, finite, scale, workers)
        for batch in batches:
            batch.report.stepped(norm, trainee.learning_rate * scale)


def _step(trainee: Trainee, finite: bool, scale: float, workers: Workers) -> float | None:
    """The gradient norm before clipping, or ``None`` where the step was skipped everywhere."""
    workers.sum_gradients(trainee.parameters)
    grads = [p.grad for p in trainee.parameters if p.grad is not None]
    finite &= all(bool(torch.isfinite(grad).all()) for grad in grads)
    if workers.sum([float(not finite)])[0]:
        trainee.optimizer.zero_grad(set_to_none=True)
        return None
    norm = trainee.step(scale)
    return norm if math.isfinite(norm) else None


@dataclass(slots=True)
class _Row:
    """One packed row; the tensors are ``[T]`` over its completions' tokens, one after another."""

    packed: Packed
    lengths: list[int]
    advantages: Tensor
    weights: Tensor
    sampled: Tensor
    reference: Tensor | None = None
    old: Tensor | None = None
    importance: Tensor | None = None


class _Batch:
    """One role's share of the batch on this process, with the weights of the whole batch.

    Attributes:
        total: completions on all processes.
    """

    def __init__(
        self,
        role: Role,
        samples: Sequence[Sample],
        trainee: Trainee,
        settings: Settings,
        workers: Workers,
        report: Update,
    ) -> None:
        self.trainee, self.train, self.report = trainee, settings.train, report
        self.own: RoleSettings = getattr(settings.train, role)
        self.factor = settings.train.lambda_executor if role == "executor" else 1.0
        self.prompt_lengths = [len(s.prompt) for s in samples]
        lengths = [len(s.completion.token_ids) for s in samples]
        count, tokens = workers.sum([float(len(samples)), float(sum(lengths))])
        self.total = int(count)
        self.rows: list[_Row] = []
        if self.total:
            kind = normalisation_of(self.train.loss_type, self.train.normalisation)
            weights = token_weights(
                lengths, kind, settings.max_tokens(role), count=int(count), tokens=int(tokens)
            )
            self.rows = list(self._rows(samples, weights))
        if self.own.kl_weight:
            self._score_reference()

    def _rows(self, samples: Sequence[Sample], weights: Sequence[float]) -> Iterator[_Row]:
        device = self.trainee.policy.device
        if not samples:
            return
        prompts = [s.prompt for s in samples]
        completions = [s.completion.token_ids for s in samples]
        for packed in packed_rows(prompts, completions, self.train.row_tokens):
            lengths = [len(completions[i]) for i in packed.indices]
            spread = torch.tensor(lengths)
            yield _Row(
                packed,
                lengths,
                _spread([samples[i].advantage for i in packed.indices], spread, device),
                _spread([weights[i] for i in packed.indices], spread, device),
                torch.tensor(
                    [x for i in packed.indices for x in samples[i].completion.logprobs],
                    dtype=torch.float32,
                ).to(device),
            )

    def _score_reference(self) -> None:
        """Log-probabilities under the frozen SFT adapter of the same role, once for all epochs."""
        with self.trainee.reference() as policy:
            for row in self.rows:
                scored = row_logprobs(policy, row.packed, self.prompt_lengths, self.own.temperature)
                row.reference = scored.values[torch.cat(scored.members)].to(row.sampled.device)

    def backward(self) -> bool:
        """Adds the gradients of one epoch; returns whether every loss was finite."""
        finite = True
        self.report.begin()
        for row in self.rows:
            scored = row_logprobs(
                self.trainee.policy, row.packed, self.prompt_lengths, self.own.temperature
            )
            loss = self._loss(row, scored)
            finite &= bool(torch.isfinite(loss.detach()))
            (self.factor * loss).backward()  # type: ignore[no-untyped-call]
        return finite

    def _loss(self, row: _Row, scored: RowLogProbs) -> Tensor:
        members = torch.cat(scored.members)
        new, entropy = scored.values[members], scored.entropies[members]
        if row.old is None:
            row.old = new.detach()
            row.importance = importance_weights(
                row.old, row.sampled, row.lengths, self.train.importance, self.train.importance_cap
            )
            self.report.compare(row.old, row.sampled, row.importance, self.train.importance_cap)
            self.report.packed += len(row.packed)
        own = self.own
        result = policy_loss(
            new,
            row.old,
            row.advantages,
            row.weights,
            loss_type=self.train.loss_type,
            clip_low=own.clip_low,
            clip_high=own.clip_high,
            lengths=row.lengths,
            reference=row.reference,
            kl_weight=own.kl_weight,
            entropy=entropy,
            entropy_weight=own.entropy_weight,
            importance=None if self.train.importance == "none" else row.importance,
        )
        self.report.add(result, entropy.detach())
        return result.loss


def _spread(values: Sequence[float], lengths: Tensor, device: torch.device) -> Tensor:
    """One value per completion, repeated over its tokens."""
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths).to(device)
