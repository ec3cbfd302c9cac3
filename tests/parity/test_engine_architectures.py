"""Greedy generation equals transformers' own on several architectures, sliding windows included."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Engine
from tests.parity.architectures import ARCHITECTURES, make_architecture

TEMPERATURE = 0.8
SETTINGS = ModelSettings(dtype="float32", max_context=256, lora=LoraSettings(rank=4, alpha=8))


def _policy(folder: Path, name: str) -> Policy:
    make_architecture(folder, name)
    policy = Policy.load(folder, None, SETTINGS)
    policy.new_adapter("planner", 0)
    torch.manual_seed(1)
    for parameter in policy.parameters("planner"):
        torch.nn.init.normal_(parameter, std=0.2)
    return policy


def _prompts() -> list[list[int]]:
    """Shorter and longer than the sliding window; two share more than a window."""
    draw = random.Random(0)
    shared = [draw.randrange(3, 259) for _ in range(20)]
    tails = [[draw.randrange(3, 259) for _ in range(n)] for n in (4, 1, 9, 30)]
    return [tails[0], shared + tails[1], shared + tails[2], tails[3]]


@contextmanager
def _own_attention(policy: Policy) -> Iterator[None]:
    """The model as transformers runs it."""
    implementation = policy.causal.config._attn_implementation
    policy.causal.config._attn_implementation = "eager"
    try:
        with policy.using("planner"), torch.no_grad():
            yield
    finally:
        policy.causal.config._attn_implementation = implementation


def _greedy(policy: Policy, prompt: list[int], tokens: int) -> list[int]:
    with _own_attention(policy):
        out = policy.causal.generate(
            input_ids=torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=tokens,
            do_sample=False,
        )
    ids: list[int] = out[0, len(prompt) :].tolist()
    return ids


def _scores(policy: Policy, prompt: list[int], completion: list[int]) -> torch.Tensor:
    with _own_attention(policy):
        logits = policy.causal(input_ids=torch.tensor([prompt + completion])).logits[0]
    logp = torch.log_softmax(logits[len(prompt) - 1 : -1] / TEMPERATURE, dim=1)
    return logp.gather(1, torch.tensor(completion)[:, None])[:, 0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_greedy_equals_generate_token_for_token(tmp_path: Path, architecture: str) -> None:
    policy, prompts = _policy(tmp_path, architecture), _prompts()
    done = Engine(policy).generate(prompts, "planner", samples=2, max_tokens=16)
    for prompt, completions in zip(prompts, done, strict=True):
        expected = _greedy(policy, prompt, 16)
        assert [c.token_ids for c in completions] == [expected] * 2


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampled_log_probabilities_equal_a_full_forward(tmp_path: Path, architecture: str) -> None:
    policy, prompts = _policy(tmp_path, architecture), _prompts()
    done = Engine(policy).generate(
        prompts, "planner", samples=2, max_tokens=12, temperature=TEMPERATURE, seeds=list("abcd")
    )
    for prompt, completions in zip(prompts, done, strict=True):
        for completion in completions:
            expected = _scores(policy, prompt, completion.token_ids)
            actual = torch.tensor(completion.logprobs)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
