"""Log-probabilities and entropies at the head: gradients, temperature, and work that is not done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import HeadLogProbs, row_logprobs, sequence_logprobs
from cahl_core.policy.packing import pack

TEMPERATURES = (0.3, 1.0, 2.5)


def _case(rows: int = 600, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """More rows than two chunks."""
    torch.manual_seed(0)
    weight = torch.randn(50, 8, dtype=dtype)
    targets = torch.randint(0, 50, (rows,))
    return torch.randn(rows, 8, dtype=dtype, requires_grad=True), weight, targets


def _plain(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    logp = torch.log_softmax(hidden @ weight.T / temperature, dim=1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)])
def test_values_and_gradients_equal_autograd_of_the_plain_formula(
    temperature: float, parts: tuple[float, float]
) -> None:
    hidden, weight, targets = _case()
    coefficients = torch.randn(2, len(targets), dtype=torch.float64)
    gradients = []
    for score in (HeadLogProbs.apply, _plain):
        hidden.grad = None
        out = score(hidden, weight, targets, temperature)
        losses = [k * (c * o).sum() for k, c, o in zip(parts, coefficients, out, strict=True) if k]
        torch.stack(losses).sum().backward()
        assert hidden.grad is not None
        gradients.append((*out, hidden.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_gradients_equal_finite_differences() -> None:
    hidden, weight, targets = _case(5)
    score = lambda h: HeadLogProbs.apply(h, weight, targets, 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(score, (hidden,))


@pytest.mark.parametrize("asked", [0, 1])
def test_what_no_gradient_comes_to_is_not_computed(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, weight, targets = _case(3)
    real, given = HeadLogProbs.backward, []

    def noting(ctx: Any, *grads: Tensor | None) -> Any:
        given.append([g is not None for g in grads])
        return real(ctx, *grads)

    monkeypatch.setattr(HeadLogProbs, "backward", staticmethod(noting))
    out = HeadLogProbs.apply(hidden, weight, targets, 1.0)  # type: ignore[no-untyped-call]
    out[asked].sum().backward()
    assert given == [[asked == 0, asked == 1]]


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    hidden, weight, targets = _case()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):  # type: ignore[func-returns-value]
        HeadLogProbs.apply(hidden, weight, targets, 1.0)  # type: ignore[no-untyped-call]
    assert max(sizes) == hidden.numel() < len(targets) * len(weight)


@pytest.fixture(scope="module")
def policy(tiny_backbone: Path) -> Policy:
    settings = ModelSettings(dtype="float32", lora=LoraSettings(rank=4, alpha=8))
    policy = Policy.load(tiny_backbone, None, settings)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    return policy


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_log_probabilities_are_those_at_the_sampling_temperature(
    policy: Policy, temperature: float
) -> None:
    prompt, completion = [5, 6, 7], [8, 9]
    [scored] = sequence_logprobs(policy, [prompt], [completion], budget=50, temperature=temperature)
    with torch.no_grad():
        logits = policy.hidden_states(pack([prompt + completion], 50)[0]) @ policy.head.T
    logp = torch.log_softmax(logits[2:4] / temperature, dim=1)
    torch.testing.assert_close(scored, logp[[0, 1], completion])
    probabilities = torch.softmax(logits[2] / temperature, dim=0)
    assert float(probabilities[8]) == pytest.approx(float(scored[0].exp()), rel=1e-5)


def test_an_empty_completion_beside_others_has_no_log_probabilities(policy: Policy) -> None:
    [row] = pack([[5, 6, 7], [5, 6]], 50)
    scored = row_logprobs(policy, row, [2, 2])
    members = {i: len(m) for i, m in zip(scored.indices, scored.members, strict=True)}
    assert members == {0: 1, 1: 0}
    assert len(scored.values[torch.cat(scored.members)]) == 1
