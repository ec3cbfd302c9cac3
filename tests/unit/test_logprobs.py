"""Log-probabilities and entropies at the head: gradients, temperature, and work that is not done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.head import Head
from cahl_core.policy.head_logprobs import Blocks, HeadLogProbs, head_logprobs
from cahl_core.policy.logprobs import row_logprobs, sequence_logprobs
from cahl_core.policy.packing import pack

TEMPERATURES = (0.3, 1.0, 2.5)


SMALL = Blocks(positions=256, elements=256 * 7)  # 50 words are eight blocks, the last of one word
HEADS = {
    "plain": {},
    "biased": {"bias": True},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 2.0, "scale": 1.5, "bias": True},
}


def _case(
    rows: int = 600, dtype: torch.dtype = torch.float64, kind: str = "plain"
) -> tuple[Tensor, Head, Tensor]:
    """More rows than two blocks."""
    torch.manual_seed(0)
    weight, own = torch.randn(50, 8, dtype=dtype), dict(HEADS[kind])
    bias = torch.randn(50, dtype=dtype) if own.pop("bias", False) else None
    targets = torch.randint(0, 50, (rows,))
    hidden = torch.randn(rows, 8, dtype=dtype, requires_grad=True)
    return hidden, Head(weight, bias, **own), targets


def _plain(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> tuple[Tensor, ...]:
    logits = hidden @ head.weight.T + (0 if head.bias is None else head.bias)
    logits = logits * head.scale
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    logp = torch.log_softmax(logits / temperature, dim=1)
    return logp.gather(1, targets[:, None])[:, 0], -(logp.exp() * logp).sum(1)


def _in_blocks(hidden: Tensor, head: Head, targets: Tensor, temperature: float) -> Any:
    return head_logprobs(hidden, head, targets, temperature, SMALL)


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("parts", [(1.0, 0.0), (0.0, 1.0), (1.0, -0.5)])
@pytest.mark.parametrize("kind", HEADS)
def test_values_and_gradients_equal_autograd_of_the_plain_formula(
    temperature: float, parts: tuple[float, float], kind: str
) -> None:
    hidden, head, targets = _case(kind=kind)
    coefficients = torch.randn(2, len(targets), dtype=torch.float64)
    gradients = []
    for score in (_in_blocks, _plain):
        hidden.grad = None
        out = score(hidden, head, targets, temperature)
        losses = [k * (c * o).sum() for k, c, o in zip(parts, coefficients, out, strict=True) if k]
        torch.stack(losses).sum().backward()
        assert hidden.grad is not None
        gradients.append((*out, hidden.grad))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_a_nearly_certain_token_has_an_exact_small_entropy(shift: float) -> None:
    logits = torch.tensor([[0.0, -15.0, -16.0, 3.0, -14.0]]) + shift
    hidden, head = torch.ones(1, 1), Head(logits.T.contiguous())
    [value], [entropy] = head_logprobs(hidden, head, torch.tensor([3]), 0.5, Blocks(1, 2))
    logp = torch.log_softmax(logits.double() / 0.5, dim=1)
    assert float(value) == pytest.approx(float(logp[0, 3]), rel=1e-4)
    assert float(entropy) == pytest.approx(float(-(logp.exp() * logp).sum()), rel=1e-4)


def test_gradients_equal_finite_differences() -> None:
    hidden, head, targets = _case(5, kind="capped")
    score = lambda h: _in_blocks(h, head, targets, 0.7)  # noqa: E731
    assert torch.autograd.gradcheck(score, (hidden,))


@pytest.mark.parametrize("asked", [0, 1])
def test_what_no_gradient_comes_to_is_not_computed(
    asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hidden, head, targets = _case(3)
    real, given = HeadLogProbs.backward, []

    def noting(ctx: Any, *grads: Tensor | None) -> Any:
        given.append([g is not None for g in grads])
        return real(ctx, *grads)

    monkeypatch.setattr(HeadLogProbs, "backward", staticmethod(noting))
    out = head_logprobs(hidden, head, targets)
    out[asked].sum().backward()
    assert given == [[asked == 0, asked == 1]]


def test_no_logits_are_kept_for_the_backward_pass() -> None:
    hidden, head, targets = _case()
    sizes: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: sizes.append(t.numel()) or t, lambda t: t
    ):  # type: ignore[func-returns-value]
        head_logprobs(hidden, head, targets)
    assert max(sizes) == hidden.numel() < len(targets) * len(head.weight)


@pytest.mark.parametrize("vocabulary", [1000, 256_000])
def test_no_tensor_is_larger_than_a_block_whatever_the_vocabulary(vocabulary: int) -> None:
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(
            self, op: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            out = op(*args, **(kwargs or {}))
            for tensor in [out] if isinstance(out, Tensor) else []:
                if not tensor._is_view():
                    self.seen = max(self.seen, tensor.numel())
            return out

    blocks = Blocks(positions=100, elements=100 * 600)
    hidden, weight = torch.randn(300, 8, requires_grad=True), torch.randn(vocabulary, 8)
    with Largest() as largest:
        values, entropies = head_logprobs(hidden, Head(weight), torch.arange(300), blocks=blocks)
        (values + entropies).sum().backward()
    assert largest.seen <= blocks.elements


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
