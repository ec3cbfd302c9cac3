"""The fused decoder computes what transformers' modules compute, in every processor format it has."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cahl_core.config import LoraSettings, ModelSettings
from cahl_core.errors import MemoryLimitError
from cahl_core.policy import engine as engine_module
from cahl_core.policy import native
from cahl_core.policy.backbone import Policy
from cahl_core.policy.decoder import DecodingModel, FusedRunner, ModuleRunner, decoding_model
from cahl_core.policy.engine import Engine
from cahl_core.policy.linear import FrozenLinear, packs
from cahl_core.policy.packing import pack
from cahl_core.policy.prefix_state import (
    CALL,
    PrefixState,
    attend_cpu,
    attend_static,
    runs_of,
)
from tests.parity.architectures import make_architecture, make_config

FUSED = ("llama", "qwen2", "qwen3")


def _policy(folder: Path, dtype: str = "float32") -> Policy:
    settings = ModelSettings(dtype=dtype, max_context=256, lora=LoraSettings(rank=4, alpha=8))  # type: ignore[arg-type]
    policy = Policy.load(folder, None, settings)
    policy.new_adapter("planner", 0)
    torch.manual_seed(1)
    for parameter in policy.parameters("planner"):
        torch.nn.init.normal_(parameter, std=0.05)
    return policy


def _prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, 259) for _ in range(n)] for n in (4, 70, 33)]


def _walk(model: DecodingModel) -> Tensor:
    """The logits of prefill and of five forced steps."""
    model.refresh("planner")
    prompts, logits = _prompts(), []
    state = PrefixState.empty(
        [len(p) for p in prompts], 2, 5, torch.device("cpu"), model.policy.dtype
    )
    for row in pack(prompts, 80):
        paths = [torch.from_numpy(p) for p in row.paths]

        def sink(layer: int, keys: Tensor, values: Tensor) -> None:
            for index, path in zip(row.indices, paths, strict=True):  # noqa: B023
                state.write(layer, index, keys[:, path], values[:, path])

        logits.append(model.runner.logits(model.runner.prefill(row, sink)))
    for step in range(5):
        state.advance()
        tokens = torch.arange(6) * 7 + step + 3
        logits.append(model.runner.step(tokens, state.ends.repeat_interleave(2) + step, state))
    return torch.cat(logits)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("architecture", FUSED)
@torch.no_grad()
def test_fused_layers_equal_the_modules(
    tmp_path: Path, architecture: str, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "kernels", lambda: None)
    make_config(tmp_path, architecture, {"head_dim": native.WIDTHS})
    policy = _policy(tmp_path)
    assert isinstance(decoding_model(policy).runner, FusedRunner)
    fused = _walk(DecodingModel(policy, fused=True))
    modules = _walk(DecodingModel(policy, fused=False))
    scale = float(modules.abs().max())
    torch.testing.assert_close(fused / scale, modules / scale, atol=3e-6, rtol=0)


@pytest.mark.parametrize("architecture", FUSED)
@torch.no_grad()
def test_in_half_precision_both_are_equally_far_from_the_truth(
    tmp_path: Path, architecture: str
) -> None:
    make_architecture(tmp_path, architecture)
    policy = _policy(tmp_path, "bfloat16")
    fused, modules = (_walk(DecodingModel(policy, fused=f)) for f in (True, False))
    for parameter in policy.model.parameters():
        parameter.data = parameter.data.float()
    truth = _walk(DecodingModel(policy, fused=False))
    errors = [float((x - truth).norm() / truth.norm()) for x in (fused, modules)]
    assert errors[0] < 1.3 * errors[1] + 1e-3
    assert errors[0] < 0.05


@pytest.mark.parametrize(
    "kind, own",
    [
        ("llama", {"hidden_act": "gelu"}),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
        ("mistral", {"sliding_window": 7}),
        ("granite", {}),
    ],
)
def test_what_differs_from_the_one_shape_is_left_to_its_modules(
    tmp_path: Path, kind: str, own: dict[str, object]
) -> None:
    make_config(tmp_path, kind, own)
    policy = Policy.load(tmp_path, None, ModelSettings(dtype="float32", max_context=256))
    assert isinstance(decoding_model(policy).runner, ModuleRunner)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 64, 300])
def test_frozen_linear_layers_compute_their_products(
    dtype: torch.dtype, rows: int, compiled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr(native, "kernels", lambda: None)
    torch.manual_seed(0)
    weight, bias = torch.randn(96, 48, dtype=dtype), torch.randn(96, dtype=dtype)
    x, other = torch.randn(rows, 48, dtype=dtype), torch.randn(rows, 96, dtype=dtype)
    layer = FrozenLinear(weight, bias)
    truth = x.double() @ weight.double().T + bias.double()
    wide = other.double()
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if dtype == torch.bfloat16 else {}
    cases = [
        (layer(x), truth),
        (layer.silu(x), torch.nn.functional.silu(truth)),
        (layer.times(x, other), truth * wide),
        (layer.plus(x, other), truth + wide),
    ]
    for ours, expected in cases:
        torch.testing.assert_close(ours, expected.to(dtype), **tolerance)  # type: ignore[arg-type]
    assert not packs(weight.double())


@pytest.mark.parametrize("attend", [attend_cpu, attend_static])
@pytest.mark.parametrize("lengths", [[5, 64, 30], [64], [5, 9, 1300, 1200, 30, 700]])
def test_both_parts_of_the_attention_add_up_to_the_whole(
    attend: object, lengths: list[int]
) -> None:
    torch.manual_seed(0)
    samples, groups, heads, width, room = 4, 3, 2, 16, 5
    rows = len(lengths) * samples
    state = PrefixState.empty(lengths, samples, room, torch.device("cpu"), torch.float32)
    prefix = [[torch.randn(heads, n, width) for n in lengths] for _ in range(2)]
    for index in range(len(lengths)):
        state.write(0, index, prefix[0][index], prefix[1][index])
    own: list[list[Tensor]] = [[], []]
    for _ in range(room):
        query = torch.randn(rows, groups, heads, width)
        for part in own:
            part.append(torch.randn(rows, heads, width))
        state.advance()
        out = attend(state, 0, query, own[0][-1], own[1][-1], 0.3)  # type: ignore[operator]
        for row in range(rows):
            keys, values = (
                torch.cat([prefix[i][row // samples], torch.stack([x[row] for x in own[i]], 1)], 1)
                for i in range(2)
            )
            weights = torch.softmax(torch.einsum("ghd,hld->ghl", query[row], keys) * 0.3, dim=2)
            expected = torch.einsum("ghl,hld->ghd", weights, values).flatten()
            torch.testing.assert_close(out[row], expected, atol=2e-6, rtol=1e-5)


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=7))
def test_runs_of_prompts_are_the_cheapest_cut(lengths: list[int]) -> None:
    def cost(cut: Sequence[tuple[int, int]]) -> int:
        return sum(max(lengths[a:b]) * (b - a) + CALL for a, b in cut)

    places = range(1, len(lengths))
    cuts = [
        list(pairwise((0, *inner, len(lengths))))
        for n in range(len(lengths))
        for inner in combinations(places, n)
    ]
    found = runs_of(lengths)
    assert [(a, b) for a, b, _ in found] in cuts
    assert all(longest == max(lengths[a:b]) for a, b, longest in found)
    assert cost([(a, b) for a, b, _ in found]) == min(map(cost, cuts))


def test_prompts_that_stay_are_cut_anew() -> None:
    lengths = [10, 1000, 1010, 4000]
    state = PrefixState.empty(lengths, 1, 4, torch.device("cpu"), torch.float32)
    assert state.runs == [(0, 1, 10), (1, 3, 1010), (3, 4, 4000)]
    state.select([0, 2], torch.tensor([0, 2]))
    assert state.runs == [(0, 1, 10), (1, 2, 1010)]


# --- out of memory --------------------------------------------------------------------------------


def _starving(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Memory for batches of at most ``most`` rows."""
    real = PrefixState.empty

    def empty(lengths: list[int], samples: int, *rest: object) -> PrefixState:
        if len(lengths) * samples > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(lengths, samples, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(engine_module.PrefixState, "empty", empty)


def test_out_of_memory_halves_the_batch_and_changes_no_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_architecture(tmp_path, "llama")
    policy = _policy(tmp_path)
    options = {"samples": 5, "max_tokens": 8, "temperature": 1.0, "seeds": list("abc")}
    expected = Engine(policy).generate(_prompts(), "planner", **options)  # type: ignore[arg-type]
    _starving(monkeypatch, 2)
    engine, finished = Engine(policy), []
    done = engine.generate(_prompts(), "planner", on_finished=finished.append, **options)  # type: ignore[arg-type]
    assert [[c.token_ids for c in cs] for cs in done] == [
        [c.token_ids for c in cs] for cs in expected
    ]
    assert sum(finished) == 3
    assert "ran out of memory" in engine.notes[0]
    assert engine.batch_tokens < 32768


def test_a_sample_that_does_not_fit_alone_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_architecture(tmp_path, "llama")
    policy = _policy(tmp_path)
    _starving(monkeypatch, 0)
    with pytest.raises(MemoryLimitError, match="4 tokens with 8 to generate") as caught:
        Engine(policy).generate(_prompts(), "planner", samples=3, max_tokens=8)
    assert "max_context" in str(
        caught.value.hint if hasattr(caught.value, "hint") else caught.value
    )
