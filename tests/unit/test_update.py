"""Policy updates against an update without packing, and what an update must leave alone."""

from __future__ import annotations

import copy
import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_project import small_settings
from torch import Tensor

from cahl_core.config import Settings
from cahl_core.losses import LOSS_TYPES
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Completion, Engine
from cahl_core.policy.logprobs import sequence_logprobs
from cahl_core.roles import ROLES
from cahl_core.train_config import RoleSettings
from cahl_core.training import update as update_module
from cahl_core.training.distributed import Workers
from cahl_core.training.schedule import lr_scale
from cahl_core.training.trainee import Trainee
from cahl_core.training.tree import Sample
from cahl_core.training.update import update
from tests.reference import flat_update

RATE = 0.02
NORMALISATIONS = ("sequence", "token", "constant")


class Descent(Trainee):
    """Plain gradient descent that keeps what it was given: gradients, scales."""

    def __init__(self, policy: Policy, name: str, rate: float = RATE) -> None:
        super().__init__(policy, name, rate, 1.0)
        self.gradients: list[Tensor] = []
        self.scales: list[float] = []

    def step(self, scale: float) -> float:
        self.gradients.append(torch.cat([p.grad.flatten().clone() for p in self.parameters]))  # type: ignore[union-attr]
        self.scales.append(scale)
        with torch.no_grad():
            for parameter in self.parameters:
                parameter -= self.learning_rate * parameter.grad  # type: ignore[operator]
                parameter.grad = None
        return float(self.gradients[-1].norm())


@functools.cache
def _loaded(folder: Path) -> Policy:
    policy = Policy.load(folder, None, small_settings().model)
    for seed, role in enumerate(ROLES):
        policy.new_adapter(role, seed)
        policy.new_adapter(f"{role}_ref", seed)
        torch.manual_seed(seed)
        pairs = zip(policy.parameters(role), policy.parameters(f"{role}_ref"), strict=True)
        for mine, frozen in pairs:
            torch.nn.init.normal_(mine, std=0.1)
            frozen.data.copy_(mine.data + 0.02 * torch.randn_like(mine))
    return policy


def make_policy(folder: Path) -> Policy:
    """A policy of its own with both roles' adapters and their references, all different."""
    return copy.deepcopy(_loaded(folder))


@pytest.fixture
def policy(tiny_backbone: Path) -> Policy:
    return make_policy(tiny_backbone)


def _samples(
    policy: Policy, count: int = 6, role: str = "planner", noise: float = 0.0
) -> list[Sample]:
    """Completions of two prompts, as the adapter samples them; ``noise`` as of another engine."""
    prompts = [[*range(10, 22), 30 + i // 3] for i in range(count)]
    done = Engine(policy).generate(prompts, role, max_tokens=9, temperature=1.0)
    torch.manual_seed(7)
    samples = []
    for i, (prompt, [c]) in enumerate(zip(prompts, done, strict=True)):
        tokens = c.token_ids[: 3 + i]  # of different lengths
        off = (noise * torch.randn(len(tokens))).tolist()
        logps = [x + o for x, o in zip(c.logprobs, off, strict=False)]
        short = Completion(tokens, logps, c.text, c.finished)
        samples.append(Sample(prompt, short, advantage=(-1.0) ** i * (i + 1) / 2))
    return samples


def _error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


LIVELY = {"kl_weight": 0.05, "entropy_weight": 0.02, "temperature": 0.8, "max_tokens": 24}


# --- what is computed ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "row_tokens"), [("none", 24), ("token", 4000), ("sequence", 50)]
)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_gradients_of_all_epochs_equal_those_of_a_plain_flat_update(
    tiny_backbone: Path, loss_type: str, importance: str, row_tokens: int
) -> None:
    clip = {"clip_low": 0.02, "clip_high": 0.03}
    settings = small_settings(
        loss_type=loss_type, importance=importance, importance_cap=1.1, inner_epochs=2,
        row_tokens=row_tokens, planner={**LIVELY, **clip},
    )  # fmt: skip
    packed, flat = make_policy(tiny_backbone), make_policy(tiny_backbone)
    samples = _samples(packed, noise=0.1)
    trainee = Descent(packed, "planner")
    report = update({"planner": samples}, {"planner": trainee}, settings, 0, Workers())["planner"]
    expected = flat_update.gradients(flat, "planner", {"planner": samples}, settings, RATE)
    assert len(trainee.gradients) == 2
    for ours, theirs in zip(trainee.gradients, expected, strict=True):
        assert _error(ours, theirs.float()) < 2e-4
    assert report.clipped > 0


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_one_times_eight_equals_eight_times_one(
    tiny_backbone: Path, loss_type: str, normalisation: str
) -> None:
    found, metrics = [], []
    for row_tokens in (10, 4000):
        policy = make_policy(tiny_backbone)
        settings = small_settings(
            loss_type=loss_type, normalisation=normalisation, row_tokens=row_tokens,
            inner_epochs=2, planner={**LIVELY, "clip_low": 0.02, "clip_high": 0.03},
        )  # fmt: skip
        trainee = Descent(policy, "planner")
        samples = _samples(policy, 8, noise=0.1)
        reports = update({"planner": samples}, {"planner": trainee}, settings, 0, Workers())
        found.append(torch.cat(trainee.gradients))
        values = reports["planner"].metrics(Workers())
        packed = values.pop("packed_tokens")
        metrics.append((values, packed))
    assert _error(found[0], found[1]) < 1e-4
    assert metrics[0][0] == pytest.approx(metrics[1][0], rel=1e-3, abs=1e-6)
    assert metrics[0][1] > 2 * metrics[1][1]  # it was eight rows indeed


def test_a_shared_adapter_takes_one_step_on_the_sum_of_both_roles(tiny_backbone: Path) -> None:
    settings = small_settings(
        lambda_executor=0.3, inner_epochs=2, row_tokens=60, importance="none",
        planner={**LIVELY, "schedule": "linear", "warmup_steps": 0},
        executor={"max_tokens": 16, "warmup_steps": 5},
    )  # fmt: skip
    packed, flat = make_policy(tiny_backbone), make_policy(tiny_backbone)
    samples = _samples(packed)
    batches = {"planner": samples[:4], "executor": samples[4:]}
    trainee = Descent(packed, "planner")
    both = {"planner": trainee, "executor": trainee}
    reports = update(batches, both, settings, 1, Workers(), total_steps=3)
    expected = flat_update.gradients(flat, "planner", batches, settings, RATE)
    assert trainee.scales == [pytest.approx(0.55)] * 2  # the planner's schedule
    for ours, theirs in zip(trainee.gradients, expected, strict=True):
        assert _error(ours, theirs.float()) < 2e-4
    assert reports["planner"].grad_norm == reports["executor"].grad_norm > 0
    alone = Descent(make_policy(tiny_backbone), "planner")
    update(
        {"executor": samples[4:]}, {"planner": alone, "executor": alone}, settings, 1, Workers(), 3
    )
    assert alone.scales == [pytest.approx(0.55)] * 2


def test_the_first_epoch_has_ratio_one_exactly(policy: Policy) -> None:
    settings = small_settings(
        importance="none",
        planner={"kl_weight": 0.0, "clip_low": 0.0, "clip_high": 0.0, "max_tokens": 24},
    )
    samples = _samples(policy)
    report = update(
        {"planner": samples}, {"planner": Descent(policy, "planner")}, settings, 0, Workers()
    )["planner"]
    assert (report.ratio_min, report.ratio_max, report.clipped) == (1.0, 1.0, 0.0)
    assert report.largest_gap < 1e-4
    # at ratio 1 the loss is minus the mean advantage over completions
    mean = sum(s.advantage for s in samples) / len(samples)
    assert report.loss == pytest.approx(-mean, rel=1e-5)


def test_later_epochs_measure_against_the_first(policy: Policy) -> None:
    settings = small_settings(inner_epochs=3)
    trainee = Descent(policy, "planner", 0.2)
    [report] = update(
        {"planner": _samples(policy)}, {"planner": trainee}, settings, 0, Workers()
    ).values()
    values = report.metrics(Workers())
    assert values["ratio_min"] < 0.8 < 1.28 < values["ratio_max"]
    assert 0 < values["clip_fraction"] < 1
    assert len(trainee.gradients) == 3


def test_importance_weights_are_truncated_and_reported(tiny_backbone: Path) -> None:
    found = {}
    for kind in ("none", "token"):
        policy = make_policy(tiny_backbone)
        samples = _samples(policy)
        for sample in samples:  # the sampler gave every token e^-1 of its probability
            shifted = [x - 1.0 for x in sample.completion.logprobs]
            sample.completion = Completion(sample.completion.token_ids, shifted, "", True)
        settings = small_settings(importance=kind, planner={"kl_weight": 0.0, "max_tokens": 24})
        trainee = Descent(policy, "planner")
        [report] = update(
            {"planner": samples}, {"planner": trainee}, settings, 0, Workers()
        ).values()
        found[kind] = trainee.gradients[0], report.metrics(Workers())
    assert _error(found["token"][0], 2.0 * found["none"][0]) < 1e-5
    values = found["token"][1]
    assert (values["importance_mean"], values["importance_truncated"]) == (2.0, 1.0)
    assert values["logprob_gap_mean"] == pytest.approx(1.0, abs=1e-4)
    assert found["none"][1]["importance_mean"] == 1.0


# --- what is left alone --------------------------------------------------------------------------


@pytest.mark.parametrize(("kl_weight", "passes"), [(0.0, 2), (0.05, 3)])
def test_the_reference_is_scored_once_and_only_for_a_kl_term(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, kl_weight: float, passes: int
) -> None:
    settings = small_settings(
        inner_epochs=2, row_tokens=30, planner={"kl_weight": kl_weight, "max_tokens": 24}
    )
    samples = _samples(policy)
    real, rows = Policy.hidden_states, []

    def counting(self: Policy, row: Any) -> Tensor:
        rows.append(id(row))
        return real(self, row)

    monkeypatch.setattr(Policy, "hidden_states", counting)
    update({"planner": samples}, {"planner": Descent(policy, "planner")}, settings, 0, Workers())
    assert len(set(rows)) > 1
    assert len(rows) == passes * len(set(rows))


def _state(trainee: Trainee) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in trainee.tensors().items()}


def _unchanged(before: dict[str, Tensor], trainee: Trainee) -> bool:
    after = trainee.tensors()
    return before.keys() == after.keys() and all(
        torch.equal(v, after[k]) for k, v in before.items()
    )


def test_an_update_raises_what_was_good_and_touches_nothing_else(policy: Policy) -> None:
    samples = _samples(policy)
    frozen = {k: v.clone() for k, v in policy.model.named_parameters() if ".planner." not in k}
    trainees = {role: Trainee(policy, role, 1e-3, 1.0) for role in ROLES}
    executor = _state(trainees["executor"])
    reports = update({"planner": samples}, trainees, small_settings(), 5, Workers())
    assert list(reports) == ["planner"]
    prompts, tokens = [s.prompt for s in samples], [s.completion.token_ids for s in samples]
    with policy.using("planner"):
        new = sequence_logprobs(policy, prompts, tokens, budget=500)
    gained = [
        s.advantage * (float(n.mean()) - sum(s.completion.logprobs) / len(n))
        for n, s in zip(new, samples, strict=True)
    ]
    assert sum(gained) > 0
    assert _unchanged(executor, trainees["executor"])
    for key, value in policy.model.named_parameters():
        if key in frozen:
            assert torch.equal(value, frozen[key]), key


def _warm(policy: Policy, settings: Settings) -> tuple[Trainee, list[Sample]]:
    """A trainee whose optimizer has momentum already."""
    trainee, samples = Trainee(policy, "planner", 1e-3, 1.0), _samples(policy)
    update({"planner": samples}, {"planner": trainee}, settings, 0, Workers())
    return trainee, samples


@pytest.mark.parametrize("advantage", [float("nan"), float("inf"), 1e38])
def test_a_loss_or_gradient_that_is_not_finite_skips_the_step(
    policy: Policy, advantage: float
) -> None:
    settings = small_settings(inner_epochs=2, planner={"max_tokens": 24, "kl_weight": 0.0})
    trainee, samples = _warm(policy, settings)
    before = _state(trainee)
    for sample in samples:
        sample.advantage = advantage
    [report] = update({"planner": samples}, {"planner": trainee}, settings, 1, Workers()).values()
    assert (report.skipped, report.steps, report.grad_norm) == (2, 0, 0.0)
    assert report.metrics(Workers())["skipped_updates"] == 2.0
    assert _unchanged(before, trainee)
    assert all(p.grad is None for p in trainee.parameters)


def _infinite_where(monkeypatch: pytest.MonkeyPatch, advantage: float) -> None:
    """Rows that hold a sample of this advantage have an infinite loss, with finite gradients."""
    real = update_module.policy_loss

    def infinite(*args: Any, **kwargs: Any) -> Any:
        result = real(*args, **kwargs)
        if bool((args[2] == advantage).any()):
            object.__setattr__(result, "loss", result.loss + float("inf"))
        return result

    monkeypatch.setattr(update_module, "policy_loss", infinite)


def test_an_infinite_loss_with_finite_gradients_skips_the_step_too(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = small_settings()
    trainee, samples = _warm(policy, settings)
    before = _state(trainee)
    _infinite_where(monkeypatch, samples[5].advantage)
    [report] = update({"planner": samples}, {"planner": trainee}, settings, 1, Workers()).values()
    assert report.skipped == 1
    assert _unchanged(before, trainee)


def test_without_samples_nothing_happens_not_even_by_momentum(policy: Policy) -> None:
    trainee, _ = _warm(policy, small_settings())
    before = _state(trainee)
    [report] = update(
        {"planner": []}, {"planner": trainee}, small_settings(), 1, Workers()
    ).values()
    values = report.metrics(Workers())
    assert _unchanged(before, trainee)
    assert {values[k] for k in ("loss", "trained_tokens", "grad_norm", "skipped_updates")} == {0.0}


def test_a_non_finite_gradient_leaves_the_adapter_alone(policy: Policy) -> None:
    trainee = Trainee(policy, "planner", 0.1, 1.0)
    before = _state(trainee)
    for parameter in trainee.parameters:
        parameter.grad = torch.full_like(parameter, float("nan"))
    assert trainee.step(1.0) != trainee.step(1.0)  # NaN
    assert _unchanged(before, trainee)


def test_what_was_trained_is_reported(policy: Policy) -> None:
    samples = _samples(policy)
    own = {"max_tokens": 24, "learning_rate": 0.01, "warmup_steps": 4, "kl_weight": 0.05}
    settings = small_settings(inner_epochs=2, planner=own)
    trainee = Trainee(policy, "planner", 0.01, 1.0)
    [report] = update({"planner": samples}, {"planner": trainee}, settings, 0, Workers()).values()
    values = report.metrics(Workers())
    assert values["trained_tokens"] == sum(len(s.completion.token_ids) for s in samples)
    assert values["learning_rate"] == pytest.approx(0.0025)
    assert values["kl"] > 0
    assert values["entropy"] > 0
    assert values["packed_tokens"] < sum(len(s.prompt) + 9 for s in samples)


def test_reports_are_means_over_the_epochs(tiny_backbone: Path) -> None:
    found = []
    for epochs in (1, 3):
        policy = make_policy(tiny_backbone)
        settings = small_settings(inner_epochs=epochs, planner=LIVELY)
        still = Descent(policy, "planner", 0.0)
        [report] = update(
            {"planner": _samples(policy)}, {"planner": still}, settings, 0, Workers()
        ).values()
        found.append(report.metrics(Workers()))
    assert found[0] == pytest.approx(found[1], rel=1e-5, abs=1e-7)


# --- several processes ---------------------------------------------------------------------------


class Threads(Workers):
    """Workers that are threads of this process: sums over a barrier, in the order of ranks."""

    def __init__(self, rank: int, count: int, barrier: threading.Barrier, board: list[Any]) -> None:
        self.rank, self.count, self.barrier, self.board = rank, count, barrier, board

    def _all(self, mine: Any) -> list[Any]:
        self.board[self.rank] = mine
        self.barrier.wait(60)
        everyone = list(self.board)
        self.barrier.wait(60)
        return everyone

    def sum(self, values: Iterable[float]) -> list[float]:
        return [sum(column) for column in zip(*self._all(list(values)), strict=True)]

    def sum_gradients(self, parameters: Iterable[Any]) -> None:
        for parameter in parameters:
            grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = torch.stack(self._all(grad)).sum(0)


def _in_threads(run: Callable[[Workers], Any], count: int = 2) -> list[Any]:
    barrier, board, out = threading.Barrier(count), [None] * count, [None] * count

    def work(rank: int) -> None:
        try:
            out[rank] = run(Threads(rank, count, barrier, board))
        except BaseException:
            barrier.abort()
            raise

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@pytest.mark.parametrize("normalisation", NORMALISATIONS)
@pytest.mark.parametrize("shares", [(5, 1), (6, 0)])
def test_two_processes_update_like_one(
    tiny_backbone: Path, normalisation: str, shares: tuple[int, int]
) -> None:
    settings = small_settings(normalisation=normalisation, row_tokens=40, planner=LIVELY)
    policies = [make_policy(tiny_backbone) for _ in range(3)]
    samples = _samples(policies[2], noise=0.1)
    whole = Descent(policies[2], "planner")
    [alone] = update({"planner": samples}, {"planner": whole}, settings, 0, Workers()).values()
    parts = samples[: shares[0]], samples[shares[0] :]

    def run(workers: Workers) -> Any:
        trainee = Descent(policies[workers.rank], "planner")
        batch: Sequence[Sample] = parts[workers.rank]
        [report] = update({"planner": batch}, {"planner": trainee}, settings, 0, workers).values()
        return trainee.gradients[0], report.metrics(workers)

    for gradient, values in _in_threads(run):
        assert _error(gradient, whole.gradients[0]) < 1e-5
        expected = alone.metrics(Workers())
        del values["packed_tokens"], expected["packed_tokens"]  # prefixes are shared within a row
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_without_samples_on_any_process_no_zero_gradient_moves_the_adapter(
    tiny_backbone: Path,
) -> None:
    settings = small_settings()
    warm = [_warm(make_policy(tiny_backbone), settings)[0] for _ in range(2)]
    before = [_state(trainee) for trainee in warm]

    def run(workers: Workers) -> Any:
        trainee = warm[workers.rank]
        [report] = update({"planner": []}, {"planner": trainee}, settings, 1, workers).values()
        return report.steps, _unchanged(before[workers.rank], trainee)

    assert _in_threads(run) == [(0, True), (0, True)]


@pytest.mark.parametrize("what", ["gradient", "loss"])
def test_what_is_not_finite_on_one_process_skips_the_step_on_all(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    settings = small_settings()
    policies = [make_policy(tiny_backbone) for _ in range(2)]
    samples = _samples(policies[0])
    if what == "gradient":
        samples[5].advantage = float("nan")
    else:
        _infinite_where(monkeypatch, samples[5].advantage)

    def run(workers: Workers) -> Any:
        trainee = Trainee(policies[workers.rank], "planner", 1e-3, 1.0)
        before = _state(trainee)
        batch = {"planner": samples[3 * workers.rank : 3 * workers.rank + 3]}
        [report] = update(batch, {"planner": trainee}, settings, 0, workers).values()
        return report.skipped, _unchanged(before, trainee)

    assert _in_threads(run) == [(1, True), (1, True)]


# --- schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 1, 4, 50])
def test_schedules_warm_up_and_end_where_they_should(schedule: str, warmup: int) -> None:
    role = RoleSettings(schedule=schedule, warmup_steps=warmup, min_lr_share=0.1)  # type: ignore[arg-type]
    scales = [lr_scale(role, step, 20) for step in range(20)]
    rise = min(warmup, 20)
    assert scales[:rise] == pytest.approx([(n + 1) / warmup for n in range(rise)])
    after = scales[rise:]
    assert after == sorted(after, reverse=True)
    assert all(0.1 - 1e-12 <= s <= 1.0 for s in after)
    if after:
        assert after[0] == 1.0 or warmup == 0 or schedule != "constant"
        assert after[-1] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    if warmup <= 1:
        assert scales[0] == 1.0


def test_a_cosine_is_half_way_in_the_middle() -> None:
    role = RoleSettings(schedule="cosine", warmup_steps=1, min_lr_share=0.2)
    assert lr_scale(role, 5, 11) == pytest.approx(0.6)
    assert lr_scale(role, 100, 11) == pytest.approx(0.2)  # a longer run stays there
    assert lr_scale(role, 0, 1) == 1.0
