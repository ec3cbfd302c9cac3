"""Gradient checkpointing changes what is kept, and nothing that is computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cahl_core.config import ModelSettings
from cahl_core.cost.allocations import Allocations
from cahl_core.errors import ModelError
from cahl_core.policy import checkpointing
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import packed_rows, row_logprobs
from tests.conftest import make_model, make_tokenizer

PROMPTS = [[*range(10, 60), 70 + i // 2] for i in range(6)]
COMPLETIONS = [[100 + i, *range(120, 130 + i)] for i in range(6)]


def _policy(folder: Path, architecture: str, checkpointed: bool, dtype: str = "float32") -> Policy:
    if not (folder / "config.json").exists():
        make_tokenizer(folder)
        make_model(folder, architecture=architecture)
    settings = ModelSettings.model_validate(
        {"dtype": dtype, "lora": {"rank": 4, "alpha": 8}, "gradient_checkpointing": checkpointed}
    )
    policy = Policy.load(folder, None, settings)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    torch.manual_seed(1)
    for parameter in policy.parameters("planner"):
        torch.nn.init.normal_(parameter, std=0.2)
    return policy


def _gradients(policy: Policy) -> tuple[list[Tensor], int]:
    """Gradients of a packed row's summed log-probabilities and entropies; bytes kept for backward."""
    [row] = packed_rows(PROMPTS, COMPLETIONS, 4000)
    with Allocations() as memory:
        scored = row_logprobs(policy, row, [len(p) for p in PROMPTS], 0.7)
        kept = memory.alive
        (scored.values.sum() + 0.1 * scored.entropies.sum()).backward()
    return [p.grad for p in policy.parameters("planner") if p.grad is not None], kept


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "gemma3_text"])
def test_gradients_are_equal_bit_by_bit_and_less_is_kept(
    tmp_path: Path, architecture: str, dtype: str
) -> None:
    plain, kept = _gradients(_policy(tmp_path, architecture, False, dtype))
    again, kept_less = _gradients(_policy(tmp_path, architecture, True, dtype))
    assert len(plain) == len(again) == 2 * 2 * 7  # A and B of seven matrices in two layers
    for expected, found in zip(plain, again, strict=True):
        assert expected.abs().sum() > 0
        assert torch.equal(expected, found)
    assert kept_less < 0.4 * kept


def test_scoring_without_gradients_is_that_of_the_plain_model(tmp_path: Path) -> None:
    values = []
    for checkpointed in (False, True):
        policy = _policy(tmp_path, "llama", checkpointed)
        [row] = packed_rows(PROMPTS, COMPLETIONS, 4000)
        with torch.no_grad():
            values.append(row_logprobs(policy, row, [len(p) for p in PROMPTS]).values)
    assert torch.equal(*values)


def test_adapters_added_later_and_copies_for_decoding_are_whole(tmp_path: Path) -> None:
    from cahl_core.policy.engine import Engine

    texts = []
    for checkpointed in (False, True):
        policy = _policy(tmp_path, "llama", checkpointed)
        policy.new_adapter("executor", 3)
        [[done]] = Engine(policy).generate([PROMPTS[0]], "planner", max_tokens=8)
        texts.append(done.token_ids)
    assert texts[0] == texts[1]


def test_a_model_without_layers_that_can_be_checkpointed_is_refused() -> None:
    with pytest.raises(ModelError, match="Linear has no layers that can be checkpointed"):
        checkpointing.install(torch.nn.Linear(2, 2))
