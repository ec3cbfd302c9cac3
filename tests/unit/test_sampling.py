"""Drawn tokens follow their distribution exactly where the draw says, whatever the vocabulary's size."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.policy.sampling import BLOCK, choose, uniforms

VOCABULARIES = (1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17)


def _logits(vocabulary: int, seed: int, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, vocabulary, generator=generator) * spread


@given(
    st.sampled_from(VOCABULARIES),
    st.integers(0, 10_000),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0.0, 1.0, 30.0]),
)
def test_a_draw_inverts_the_cumulated_probabilities(
    vocabulary: int, seed: int, draw: float, temperature: float, spread: float
) -> None:
    logits = _logits(vocabulary, seed, spread)
    draws = torch.tensor([draw, 1 - draw if draw > 0 else 0.5], dtype=torch.float64)
    tokens, logprobs = choose(logits, draws, temperature)
    expected = torch.log_softmax(logits.double() / temperature, dim=1)
    cumulated = expected.exp().cumsum(dim=1)
    for row in range(2):
        token = int(tokens[row])
        assert 0 <= token < vocabulary
        assert float(logprobs[row]) == pytest.approx(float(expected[row, token]), abs=2e-5)
        below = float(cumulated[row, token - 1]) if token else 0.0
        assert below - 1e-5 <= float(draws[row]) <= float(cumulated[row, token]) + 1e-5


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
@pytest.mark.parametrize("draw", [0.0, math.nextafter(1.0, 0.0)])
def test_the_ends_of_the_interval_draw_tokens_that_can_occur(vocabulary: int, draw: float) -> None:
    logits = torch.full((1, vocabulary), -math.inf)
    likely = vocabulary // 2
    logits[0, likely] = 3.0
    tokens, logprobs = choose(logits, torch.tensor([draw], dtype=torch.float64), 1.0)
    assert (tokens.tolist(), logprobs.tolist()) == ([likely], [0.0])


def test_the_likeliest_token_is_taken_without_a_draw() -> None:
    logits = _logits(700, 3, 2.0)
    tokens, logprobs = choose(logits, None, 0.0)
    assert tokens.tolist() == logits.argmax(dim=1).tolist()
    expected = torch.log_softmax(logits, dim=1).max(dim=1).values
    torch.testing.assert_close(logprobs, expected)


def test_draws_depend_on_the_seed_alone_and_on_no_global_generator() -> None:
    first = uniforms("task/planner/0", 5)
    torch.manual_seed(1)
    assert torch.equal(first, uniforms("task/planner/0", 5))
    assert torch.equal(first[:3], uniforms("task/planner/0", 3))
    assert not torch.equal(first, uniforms("task/planner/1", 5))
