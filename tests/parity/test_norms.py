"""Our RMS norm is transformers' own, forward and backward, and keeps less."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from cahl_core.policy.norms import RmsNorm, install

KINDS = (LlamaRMSNorm, Qwen3RMSNorm)


def _pair(kind: type[torch.nn.Module], dtype: torch.dtype) -> tuple[torch.nn.Module, ...]:
    theirs = kind(48, eps=1e-3).to(dtype)
    torch.nn.init.uniform_(theirs.weight, 0.2, 3.0)
    theirs.requires_grad_(False)
    ours = copy.deepcopy(theirs)
    install(ours)
    return ours, theirs


def _run(module: torch.nn.Module, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    out = module(x)
    out.backward(grad)
    assert x.grad is not None
    return out.detach(), x.grad


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 7, 48), (1, 5, 3, 48)])
def test_values_and_gradients_are_the_modules(kind: type, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    ours, theirs = _pair(kind, torch.float32)
    x, grad = torch.randn(shape) * 0.1, torch.randn(shape)
    for mine, expected in zip(_run(ours, x, grad), _run(theirs, x, grad), strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-6, rtol=1e-5)


def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    weight = torch.rand(6, dtype=torch.float64) + 0.5
    assert torch.autograd.gradcheck(lambda y: RmsNorm.apply(y, weight, 1e-2), (x,))


def test_half_precision_values_are_equal_and_gradients_as_close_to_the_truth() -> None:
    torch.manual_seed(0)
    ours, theirs = _pair(LlamaRMSNorm, torch.bfloat16)
    truth = copy.deepcopy(theirs).float()
    x, grad = (torch.randn(64, 48).bfloat16() for _ in range(2))
    mine, expected = _run(ours, x, grad), _run(theirs, x, grad)
    exact = _run(truth, x.float(), grad.float())
    assert torch.equal(mine[0], expected[0])
    errors = [float((g.float() - exact[1]).norm()) for g in (mine[1], expected[1])]
    assert errors[0] < 1.2 * errors[1]


def test_a_weight_that_trains_is_left_to_the_module() -> None:
    ours, _ = _pair(LlamaRMSNorm, torch.float32)
    ours.weight.requires_grad_(True)
    ours(torch.randn(2, 48)).sum().backward()
    assert ours.weight.grad is not None
