"""The fused LoRA product equals peft's layer, value and gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.lora import LoraProduct, merged

SETTINGS = ModelSettings(dtype="float32", lora=LoraSettings(rank=4, alpha=8))


def _layers(policy: Policy) -> list[Any]:
    return [m for m in policy.model.modules() if hasattr(m, "lora_A")]


def test_every_adapted_layer_computes_what_peft_computes(tiny_backbone: Path) -> None:
    policy = Policy.load(tiny_backbone, None, SETTINGS)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    layers = _layers(policy)
    assert layers
    for number, layer in enumerate(layers):
        torch.manual_seed(number)
        torch.nn.init.normal_(layer.lora_B["planner"].weight, std=0.3)
        x = torch.randn(2, 5, layer.in_features)
        slope = torch.randn(2, 5, layer.out_features)
        results = []
        for forward in (layer.forward, lambda v, owner=layer: type(owner).forward(owner, v)):
            leaf = x.clone().requires_grad_()
            out = forward(leaf)
            (out * slope).sum().backward()
            a, b = layer.lora_A["planner"].weight, layer.lora_B["planner"].weight
            results.append((out.detach(), leaf.grad, a.grad.clone(), b.grad.clone()))
            a.grad = b.grad = None
        for fused, plain in zip(*results, strict=True):
            torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5)


def test_the_plain_case_takes_the_fused_path(
    tiny_backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = Policy.load(tiny_backbone, None, SETTINGS)
    policy.new_adapter("planner", 0)
    used: list[int] = []
    real = LoraProduct.apply
    monkeypatch.setattr(LoraProduct, "apply", lambda *a: used.append(1) or real(*a))
    ids = torch.tensor([[5, 6, 7]])
    policy.causal.config._attn_implementation = "eager"
    with policy.using("planner"):
        policy.causal(input_ids=ids)
    assert len(used) == len(_layers(policy))
    with policy.using(None):  # a disabled adapter goes through peft
        policy.causal(input_ids=ids)
    assert len(used) == len(_layers(policy))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_adds_what_peft_would_add(tiny_backbone: Path, dtype: torch.dtype) -> None:
    policy = Policy.load(tiny_backbone, None, SETTINGS)
    policy.new_adapter("planner", 0)
    for number, layer in enumerate(_layers(policy)):
        torch.manual_seed(number)
        torch.nn.init.normal_(layer.lora_B["planner"].weight, std=0.3)
        weight = layer.base_layer.weight.detach().to(dtype)
        before = weight.clone()
        exact = weight.double() + layer.get_delta_weight("planner").detach().double()
        ours = merged(layer, "planner", weight)
        assert torch.equal(weight, before)
        # no farther from the exact sum than rounding each of its parts can put it
        step = torch.finfo(dtype).eps * (exact.abs() + weight.abs() + 1.0)
        assert bool(((ours.double() - exact).abs() <= step).all())
