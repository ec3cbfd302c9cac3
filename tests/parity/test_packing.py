"""Packed rows equal flat rows: log-probabilities, loss and gradients, on several architectures."""

from __future__ import annotations

import random
from itertools import combinations
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.policy.attention import PACKED
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import packed_rows, row_logprobs
from cahl_core.policy.packing import distinct_tokens, pack
from tests.parity.architectures import ARCHITECTURES, make_architecture

SETTINGS = ModelSettings(dtype="float32", lora=LoraSettings(rank=4, alpha=8))
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)


@given(sequences, st.integers(1, 20))
def test_every_sequence_is_found_along_its_path(items: list[list[int]], budget: int) -> None:
    rows = pack(items, budget)
    assert sorted(i for r in rows for i in r.indices) == list(range(len(items)))
    for row in rows:
        assert len(row) <= max(budget, max(len(items[i]) for i in row.indices))
        for index, path in zip(row.indices, row.paths, strict=True):
            assert row.input_ids[path].tolist() == items[index]
            assert row.position_ids[path].tolist() == list(range(len(items[index])))
            assert row.parents[path].tolist() == [-1, *path[:-1].tolist()]


def test_nothing_packs_into_no_rows() -> None:
    assert pack([], 10) == []
    assert distinct_tokens([]) == 0


@given(sequences)
def test_a_row_holds_each_distinct_prefix_once(items: list[list[int]]) -> None:
    [row] = pack(items, 10_000)
    prefixes = {tuple(s[:n]) for s in items for n in range(1, len(s) + 1)}
    assert len(row) == len(prefixes)


@given(sequences)
def test_the_least_there_is_to_encode_is_one_token_per_distinct_prefix(
    items: list[list[int]],
) -> None:
    assert distinct_tokens(items) == len(
        {tuple(s[:n]) for s in items for n in range(1, len(s) + 1)}
    )


@given(sequences, st.integers(1, 20))
def test_a_tree_that_fits_is_never_divided(items: list[list[int]], budget: int) -> None:
    where = {i: number for number, row in enumerate(pack(items, budget)) for i in row.indices}
    for first in {s[0] for s in items}:
        tree = [i for i, s in enumerate(items) if s[0] == first]
        if distinct_tokens([items[i] for i in tree]) <= budget:
            assert len({where[i] for i in tree}) == 1


@given(sequences, st.integers(1, 20))
def test_no_two_rows_would_fit_into_one(items: list[list[int]], budget: int) -> None:
    """Where nothing is shared between rows: rows are filled."""
    rows = pack(items, budget)
    for first, second in combinations(rows, 2):
        together = distinct_tokens([items[i] for i in (*first.indices, *second.indices)])
        if together == len(first) + len(second):
            assert together > budget


def _ids(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(50_000) for _ in range(count)]


def _trees(name: str) -> list[list[int]]:
    draw = random.Random(0)
    if name == "task":  # a prompt and its samples
        prompt = _ids(draw, 1000)
        return [prompt + _ids(draw, 64) for _ in range(8)]
    if name == "step":  # four such tasks, and executor prompts that share their tool lists
        items = []
        for _ in range(4):
            prompt, tools = _ids(draw, 500), _ids(draw, 400)
            items += [prompt + _ids(draw, 60) for _ in range(8)]
            for _ in range(8):
                step = tools + _ids(draw, 40)
                items += [step + _ids(draw, 40) for _ in range(4)]
        return items
    if name == "large":  # over the budget: three rows are the least
        prompt = _ids(draw, 300)
        return [prompt + _ids(draw, 64) for _ in range(64)]
    groups = [(_ids(draw, draw.randrange(30, 200)), draw.randrange(1, 5)) for _ in range(60)]
    return [p + _ids(draw, draw.randrange(5, 60)) for p, samples in groups for _ in range(samples)]


@pytest.mark.parametrize(
    ("name", "most"), [("task", 1.0), ("step", 1.05), ("small groups", 1.0), ("large", 1.14)]
)
def test_few_tokens_are_encoded_twice_and_rows_are_full(name: str, most: float) -> None:
    items = _trees(name)
    rows = pack(items, 2048)
    least, encoded = distinct_tokens(items), sum(map(len, rows))
    assert least <= encoded <= most * least
    assert len(rows) <= -(-encoded // 2048) + 1


@given(sequences)
def test_a_token_attends_to_its_own_prefix_and_nothing_else(items: list[list[int]]) -> None:
    [row] = pack(items, 10_000)
    mask = row.mask()
    for path in row.paths:
        for depth, position in enumerate(path):
            assert mask[position].nonzero()[0].tolist() == sorted(path[: depth + 1].tolist())


def _policy(folder: Path, architecture: str) -> Policy:
    make_architecture(folder, architecture)
    policy = Policy.load(folder, None, SETTINGS)
    policy.new_adapter("planner", 0)
    policy.activate("planner")
    torch.manual_seed(1)
    for parameter in policy.parameters("planner"):
        torch.nn.init.normal_(parameter, std=0.2)
    return policy


def _tree(seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """A task prompt with plans; executor prompts that share tools, and steps, with samples.

    Everything but the completions is longer than the sliding windows; completions share openings.
    """
    draw = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [draw.randrange(3, 259) for _ in range(n)]

    task, tools, step, opening = ids(11), ids(12), ids(8), ids(2)
    executor = [tools + ids(3), tools + step + ids(3), tools + step + ids(9)]
    prompts = [task] * 3 + [p for p in executor for _ in range(2)]
    completions = [opening + ids(draw.randrange(1, 10)) for _ in prompts]
    completions[1] = list(completions[0])  # twice the same sample
    return prompts, completions


def _flat(policy: Policy, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The log-probabilities of one sequence by transformers' own forward."""
    policy.causal.config._attn_implementation = "eager"
    try:
        logits = policy.causal(input_ids=torch.tensor([prompt + completion])).logits[0]
    finally:
        policy.causal.config._attn_implementation = PACKED
    logp = torch.log_softmax(logits[len(prompt) - 1 : -1].float() / 0.7, dim=-1)
    return logp.gather(1, torch.tensor(completion)[:, None])[:, 0]


def _gradients(policy: Policy) -> torch.Tensor:
    grads = [p.grad for p in policy.parameters("planner")]
    out = torch.cat([g.flatten() for g in grads if g is not None])
    for parameter in policy.parameters("planner"):
        parameter.grad = None
    return out


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packed_loss_and_gradients_equal_flat_ones(tmp_path: Path, architecture: str) -> None:
    policy = _policy(tmp_path, architecture)
    prompts, completions = _tree()
    coefficients = torch.linspace(-1, 1, len(prompts))
    flat = [_flat(policy, p, c) for p, c in zip(prompts, completions, strict=True)]
    loss = sum((k * f.sum() for k, f in zip(coefficients, flat, strict=True)), torch.zeros(()))
    loss.backward()
    expected = _gradients(policy)
    for budget in (30, 1000):
        total = 0.0
        for row in packed_rows(prompts, completions, budget):
            scored = row_logprobs(policy, row, [len(p) for p in prompts], temperature=0.7)
            part = torch.zeros(())
            for index, member in zip(scored.indices, scored.members, strict=True):
                torch.testing.assert_close(
                    scored.values[member], flat[index].detach(), atol=1e-5, rtol=1e-5
                )
                part = part + coefficients[index] * scored.values[member].sum()
            part.backward()
            total += float(part.detach())
        assert total == pytest.approx(float(loss.detach()), rel=1e-5)
        assert float((_gradients(policy) - expected).norm() / expected.norm()) < 1e-5
