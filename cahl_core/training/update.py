"""One policy update from rollout samples: L = L_h(θ_h) + λ L_l(θ_l), one or several optimizer steps.

Every role has its own batch, loss settings and schedule; a `Trainee` takes one optimizer step per inner
epoch. Where both roles train the same one (a shared adapter), their gradients add up first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from cahl_core.config import Settings
from cahl_core.losses import (
    PolicyLoss,
    importance_weights,
    normalisation_of,
    policy_loss,
    token_weights,
)
from cahl_core.policy.logprobs import packed_rows, row_logprobs
from cahl_core.roles import Role
from cahl_core.train_config import RoleSettings
from cahl_core.training.distributed import Workers
from cahl_core.training.row_budget import RowBudget
from cahl_core.training.schedule import lr_scale
from cahl_core.training.sharding import in_step
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import Sample
from cahl_core.training.update_report import Update
from cahl_core.training.update_rows import UpdateRow


def update(
    batches: Mapping[Role, Sequence[Sample]],
    trainees: Mapping[Role, Trainee],
    settings: Settings,
    step: int,
    workers: Workers,
    total_steps: int | None = None,
    budget: RowBudget | None = None,
    phase: Callable[[str], AbstractContextManager[None]] | None = None,
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
        budget: of the packed rows, kept from step to step; what runs out of memory shrinks it.
        phase: opened around the reference's passes, which are measured apart.

    Returns:
        A report per role of ``batches``. Where no process has a sample of any role of a trainee,
        nothing happens to it.

    Raises:
        MemoryLimitError: a single sequence does not fit in memory.
    """
    budget = budget or RowBudget(settings, divisible=not workers.sharded)
    total = settings.train.steps if total_steps is None else total_steps
    reports = {role: Update() for role in batches}
    for trainee, roles in _by_trainee(list(batches), trainees):
        owner = "planner" if trainees.get("planner") is trainee else roles[0]
        scale = lr_scale(getattr(settings.train, owner), step, total)
        batch = [
            _Batch(role, batches[role], trainee, settings, workers, reports[role], budget)
            for role in roles
        ]
        with phase("reference") if phase else nullcontext():
            for one in batch:
                one.score_reference()
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
        budget: RowBudget,
    ) -> None:
        self.budget, self.device = budget, trainee.policy.device
        self.trainee, self.train, self.report = trainee, settings.train, report
        self.workers = workers
        self.own: RoleSettings = getattr(settings.train, role)
        self.factor = settings.train.lambda_executor if role == "executor" else 1.0
        self.prompt_lengths = [len(s.prompt) for s in samples]
        lengths = [len(s.completion.token_ids) for s in samples]
        count, tokens = workers.sum([float(len(samples)), float(sum(lengths))])
        self.total = int(count)
        self.rows: list[UpdateRow] = []
        if self.total:
            kind = normalisation_of(self.train.loss_type, self.train.normalisation)
            weights = token_weights(
                lengths, kind, settings.max_tokens(role), count=int(count), tokens=int(tokens)
            )
            self.rows = list(self._rows(samples, weights))

    def _rows(self, samples: Sequence[Sample], weights: Sequence[float]) -> Iterator[UpdateRow]:
        if not samples:
            return
        prompts = [s.prompt for s in samples]
        completions = [s.completion.token_ids for s in samples]
        for packed in packed_rows(prompts, completions, self.budget.tokens):
            self.budget.note_long(len(packed))
            lengths = [len(completions[i]) for i in packed.indices]
            spread = torch.tensor(lengths)
            yield UpdateRow(
                packed,
                lengths,
                _spread([samples[i].advantage for i in packed.indices], spread, self.device),
                _spread([weights[i] for i in packed.indices], spread, self.device),
                torch.tensor(
                    [x for i in packed.indices for x in samples[i].completion.logprobs],
                    dtype=torch.float32,
                ).to(self.device),
            )

    def score_reference(self) -> None:
        """Log-probabilities under the frozen SFT adapter of the same role, once for all epochs."""
        if not self.own.kl_weight:
            return
        with (
            self.trainee.reference() as policy,
            in_step(policy, self.workers, len(self.rows)),
        ):

            def score(row: UpdateRow) -> None:
                scored = row_logprobs(policy, row.packed, self.prompt_lengths, self.own.temperature)
                row.reference = scored.values[torch.cat(scored.members)].to(row.sampled.device)

            self._run(score)

    def backward(self) -> bool:
        """Adds the gradients of one epoch; returns whether every loss was finite."""
        self.finite = True
        self.report.begin()
        with in_step(self.trainee.policy, self.workers, len(self.rows)):
            self._run(self._add_gradients)
        return self.finite

    def _run(self, work: Callable[[UpdateRow], None]) -> None:
        """Does ``work`` for every row, in halves where memory does not suffice."""
        splits = self.budget.splits
        self.rows = self.budget.run(self.rows, work, self.device)
        self.report.oom_splits += self.budget.splits - splits

    def _add_gradients(self, row: UpdateRow) -> None:
        """One row's gradients, all of them or, where this raises, none."""
        with _apart(self.trainee.parameters):
            scored = row_logprobs(
                self.trainee.policy, row.packed, self.prompt_lengths, self.own.temperature
            )
            members = torch.cat(scored.members)
            new, entropy = scored.values[members], scored.entropies[members]
            result = self._loss(row, new, entropy)
            (self.factor * result.loss).backward()  # type: ignore[no-untyped-call]
        self._note(row, result, new.detach(), entropy.detach())

    def _note(self, row: UpdateRow, result: PolicyLoss, new: Tensor, entropy: Tensor) -> None:
        """Takes a row that went well into the report; the first epoch's become the old ones."""
        if row.old is None:
            row.old, row.importance = self._before(row, new)
            self.report.compare(row.old, row.sampled, row.importance, self.train.importance_cap)
            self.report.packed += len(row.packed)
        self.report.add(result, entropy)
        self.finite &= bool(torch.isfinite(result.loss.detach()))

    def _before(self, row: UpdateRow, new: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probabilities before the first step, and the sampler's importance weights."""
        if row.old is not None and row.importance is not None:
            return row.old, row.importance
        train, old = self.train, new.detach()
        weights = importance_weights(
            old, row.sampled, row.lengths, train.importance, train.importance_cap
        )
        return old, weights

    def _loss(self, row: UpdateRow, new: Tensor, entropy: Tensor) -> PolicyLoss:
        own = self.own
        old, importance = self._before(row, new)
        return policy_loss(
            new,
            old,
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
            importance=None if self.train.importance == "none" else importance,
        )


@contextmanager
def _apart(parameters: Sequence[Tensor]) -> Iterator[None]:
    """The body's gradients are added to those there are when it ends well, and dropped when it fails.

    A backward pass that fails has added up some of its gradients already.
    """
    before = [p.grad for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    try:
        yield
    except BaseException:
        for parameter, grad in zip(parameters, before, strict=True):
            parameter.grad = grad
        raise
    for parameter, grad in zip(parameters, before, strict=True):
        if grad is not None:
            parameter.grad = grad if parameter.grad is None else grad.add_(parameter.grad)


def _spread(values: Sequence[float], lengths: Tensor, device: torch.device) -> Tensor:
    """One value per completion, repeated over its tokens."""
    return torch.tensor(values, dtype=torch.float32).repeat_interleave(lengths).to(device)
