"""Generation equals transformers' own, and a sample depends on nothing but its seed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.errors import ModelError, PromptTooLongError
from cahl_core.policy.backbone import Policy
from cahl_core.policy.engine import Engine
from cahl_core.policy.logprobs import sequence_logprobs

SETTINGS = ModelSettings(dtype="float32", max_context=256, lora=LoraSettings(rank=4, alpha=8))


@pytest.fixture(scope="module")
def policy(tiny_backbone: Path) -> Policy:
    policy = Policy.load(tiny_backbone, None, SETTINGS)
    for seed, name in enumerate(("planner", "executor")):
        policy.new_adapter(name, seed)
        torch.manual_seed(seed + 10)
        for parameter in policy.parameters(name):
            torch.nn.init.normal_(parameter, std=0.2)
    return policy


def _prompts(count: int = 5) -> list[list[int]]:
    draw = random.Random(0)
    shared = [draw.randrange(3, 259) for _ in range(20)]
    return [
        (shared if i % 2 else []) + [draw.randrange(3, 259) for _ in range(3 + 4 * i)]
        for i in range(count)
    ]


def _reference(policy: Policy, prompt: list[int], role: str | None, tokens: int) -> list[int]:
    policy.causal.config._attn_implementation = "eager"
    try:
        with policy.using(role), torch.no_grad():
            out = policy.causal.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=tokens,
                do_sample=False,
            )
    finally:
        policy.causal.config._attn_implementation = "cahl_packed"
    ids: list[int] = out[0, len(prompt) :].tolist()
    return ids


@pytest.mark.parametrize("role", ["planner", "executor"])
def test_greedy_equals_generate_token_for_token(policy: Policy, role: str) -> None:
    prompts = _prompts()
    done = Engine(policy).generate(prompts, role, max_tokens=24)
    for prompt, [completion] in zip(prompts, done, strict=True):
        assert completion.token_ids == _reference(policy, prompt, role, 24)


def test_a_policy_without_adapters_generates_with_the_backbone(tiny_backbone: Path) -> None:
    bare = Policy.load(tiny_backbone, None, SETTINGS)
    prompts = _prompts(2)
    done = Engine(bare).generate(prompts, "planner", max_tokens=12)
    for prompt, [completion] in zip(prompts, done, strict=True):
        assert completion.token_ids == _reference(bare, prompt, None, 12)


def test_sampled_log_probabilities_equal_a_full_forward(policy: Policy) -> None:
    prompts = _prompts()
    done = Engine(policy).generate(
        prompts, "planner", samples=3, max_tokens=16, temperature=0.8, seeds=list("abcde")
    )
    flat = [(p, c) for p, cs in zip(prompts, done, strict=True) for c in cs]
    with policy.using("planner"):
        scored = sequence_logprobs(
            policy,
            [p for p, _ in flat],
            [c.token_ids for _, c in flat],
            budget=200,
            temperature=0.8,
        )
    for (_, completion), expected in zip(flat, scored, strict=True):
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-5, rtol=0)


def test_a_sample_does_not_depend_on_its_batch(policy: Policy) -> None:
    prompts, seeds = _prompts(), list("abcde")
    options = {"samples": 2, "max_tokens": 20, "temperature": 1.0}
    together = Engine(policy).generate(prompts, "planner", seeds=seeds, **options)  # type: ignore[arg-type]
    small = Engine(policy, batch_tokens=1).generate(prompts, "planner", seeds=seeds, **options)  # type: ignore[arg-type]
    alone = [
        Engine(policy).generate([p], "planner", seeds=[s], **options)[0]  # type: ignore[arg-type]
        for p, s in zip(prompts, seeds, strict=True)
    ]
    ids = [[[c.token_ids for c in cs] for cs in done] for done in (together, small, alone)]
    assert ids[0] == ids[1] == ids[2]


def test_different_seeds_give_different_samples(policy: Policy) -> None:
    [first, second] = Engine(policy).generate(
        [_prompts()[0]] * 2, "planner", max_tokens=12, temperature=1.0, seeds=["a", "b"]
    )
    assert first[0].token_ids != second[0].token_ids


def test_sampling_follows_the_distribution(policy: Policy) -> None:
    prompt = _prompts()[1]
    [samples] = Engine(policy).generate(
        [prompt], "planner", samples=4000, max_tokens=1, temperature=1.0, seeds=["x"]
    )
    with policy.using("planner"):
        [expected] = sequence_logprobs(policy, [prompt], [[samples[0].token_ids[0]]], budget=100)
    share = sum(s.token_ids == samples[0].token_ids for s in samples) / len(samples)
    probability = float(expected.exp())
    deviation = (probability * (1 - probability) / len(samples)) ** 0.5
    assert abs(share - probability) < 5 * deviation + 1e-4


def test_generation_ends_when_the_stop_text_is_written(policy: Policy) -> None:
    [[free]] = Engine(policy).generate([_prompts()[0]], "planner", max_tokens=24)
    stop = free.text[3:5]
    [[stopped]] = Engine(policy).generate([_prompts()[0]], "planner", max_tokens=24, stop=[stop])
    assert stopped.finished
    assert stopped.text.endswith(stop)
    assert free.text.startswith(stopped.text)
    assert stop not in stopped.text[: -len(stop)]


def test_an_update_reaches_the_decoder(tiny_backbone: Path) -> None:
    policy = Policy.load(tiny_backbone, None, SETTINGS)
    policy.new_adapter("planner", 0)
    engine = Engine(policy)
    before = engine.generate(_prompts(), "planner", max_tokens=16)
    for parameter in policy.parameters("planner"):
        torch.nn.init.normal_(parameter, std=0.3)
    engine.weights_changed()
    after = engine.generate(_prompts(), "planner", max_tokens=16)
    assert [c[0].token_ids for c in before] != [c[0].token_ids for c in after]
    assert after[0][0].token_ids == _reference(policy, _prompts()[0], "planner", 16)


def test_shared_prefixes_are_encoded_once(policy: Policy) -> None:
    engine = Engine(policy)
    prompts = _prompts()
    engine.generate(prompts, "planner", samples=4, max_tokens=2, temperature=1.0)
    distinct = {tuple(p[:n]) for p in prompts for n in range(1, len(p) + 1)}
    assert engine.prefilled_tokens == len(distinct)


def test_a_prompt_over_the_context_says_which_and_by_how_much(policy: Policy) -> None:
    with pytest.raises(PromptTooLongError, match=r"prompt 1 has 250 tokens.*max_context=256"):
        Engine(policy).generate([[5] * 10, [5] * 250], "planner", max_tokens=10)


def test_a_missing_or_foreign_adapter_is_a_model_error(policy: Policy, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cahl sft"):
        policy.add_adapter("other", tmp_path)
    with pytest.raises(ModelError, match="loaded: planner, executor"):
        policy.activate("critic")
