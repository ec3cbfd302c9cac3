"""Attention of packed rows: every kernel equals dense attention under the written-out mask."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cahl_core.policy import cuda_attention, tree_attention
from cahl_core.policy.attention import PackedRuns
from cahl_core.policy.packing import Packed, pack
from cahl_core.policy.tiles import tiles
from cahl_core.policy.tree_attention import Plan, TreeAttention

CPU = torch.device("cpu")
SCALE = 0.3
sequences = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), min_size=1, max_size=8)
windows = st.one_of(st.none(), st.integers(1, 5))


def _row(seed: int = 0) -> Packed:
    """Prompts longer and shorter than a tile, with branches inside a prompt and small trees."""
    draw = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [draw.randrange(1000) for _ in range(n)]

    prompt, second, middle = ids(150), ids(20), ids(30)
    items = [prompt + ids(60) for _ in range(3)] + [second + ids(25) for _ in range(4)]
    items += [prompt[:50] + middle + ids(7) for _ in range(3)]
    return pack(items, 10_000)[0].padded(64)


def _inputs(row: Packed, dtype: torch.dtype, width: int = 8) -> list[Tensor]:
    torch.manual_seed(0)
    shapes = [(1, len(row), heads, width) for heads in (6, 2, 2)]
    return [torch.randn(s, dtype=dtype).transpose(1, 2).requires_grad_() for s in shapes]


def _allowed(row: Packed, window: int | None) -> Tensor:
    """From the parents alone: walk up from every token."""
    allowed = torch.zeros(len(row), len(row), dtype=torch.bool)
    for query in range(len(row)):
        key, distance = query, 0
        while key >= 0 and (window is None or distance < window):
            allowed[query, key] = True
            key, distance = int(row.parents[key]), distance + 1
    return allowed


def _dense(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    scores = (SCALE * q @ k.transpose(2, 3)).masked_fill(~allowed, float("-inf"))
    return (torch.softmax(scores, 3) @ v).transpose(1, 2)


def _tree(q: Tensor, k: Tensor, v: Tensor, row: Packed, window: int | None) -> Tensor:
    out: Tensor = TreeAttention.apply(q[0], k[0], v[0], Plan(row, window, q.dtype), SCALE)  # type: ignore[no-untyped-call]
    return out[None]


def _with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    torch.manual_seed(1)
    slope = torch.randn(out.shape, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, slope)]


@given(sequences, windows)
def test_a_token_sees_its_ancestors_within_the_window(
    items: list[list[int]], window: int | None
) -> None:
    row = pack(items, 10_000)[0].padded(4)
    assert torch.equal(torch.from_numpy(row.mask(window)), _allowed(row, window))


@given(sequences, windows, st.integers(1, 9))
def test_tiles_hold_every_pair_of_the_mask_once_and_no_key_in_vain(
    items: list[list[int]], window: int | None, size: int
) -> None:
    row = pack(items, 10_000)[0]
    seen = torch.zeros(len(row), len(row), dtype=torch.bool)
    for tile in tiles(row, size, window):
        keys = torch.cat([torch.arange(*span) for span in tile.spans])
        assert len(keys) == tile.keys
        visible = torch.ones(tile.stop - tile.start, tile.keys, dtype=torch.bool)
        visible[:, tile.keys - tile.visible.shape[1] :] = torch.from_numpy(tile.visible)
        assert visible.any(0).all()
        seen[tile.start : tile.stop, keys] |= visible
    assert torch.equal(seen, _allowed(row, window))


@pytest.mark.parametrize("window", [None, 37, 200])
def test_values_and_gradients_equal_dense_attention(window: int | None) -> None:
    row = _row()
    inputs = _inputs(row, torch.float64)
    assert tree_attention.serves(*inputs)
    expected = _with_gradients(_dense(*inputs, _allowed(row, window)), inputs)
    for actual, wanted in zip(
        _with_gradients(_tree(*inputs, row, window), inputs), expected, strict=True
    ):
        torch.testing.assert_close(actual, wanted, rtol=1e-9, atol=1e-11)


def test_in_bfloat16_no_less_exact_than_pytorch() -> None:
    """Scores far from zero: what a rounded score would do to a probability shows."""
    row = _row()
    half = [x.detach() * 3 for x in _inputs(row, torch.bfloat16, 16)]
    exact = [x.double().requires_grad_() for x in half]
    half = [x.requires_grad_() for x in half]
    allowed = _allowed(row, None)
    wanted = _with_gradients(_dense(*exact, allowed), exact)
    ours = _with_gradients(_tree(*half, row, None), half)
    masks = PackedRuns.of(row, CPU)
    theirs = _with_gradients(cuda_attention.attend(*half, masks, None, SCALE), half)
    for mine, other, truth in zip(ours, theirs, wanted, strict=True):
        assert _error(mine, truth) < 1.5 * _error(other, truth) + 1e-3


def _error(actual: Tensor, truth: Tensor) -> float:
    return float((actual.double() - truth).norm() / truth.norm())


@pytest.mark.parametrize("window", [None, 37])
@pytest.mark.parametrize("kernel", ["sdpa", "flex"])
def test_the_kernels_of_accelerators_equal_dense_attention(
    kernel: str, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn.attention.flex_attention import flex_attention

    row = _row()
    inputs = _inputs(row, torch.float32, 16)
    masks = PackedRuns.of(row, CPU)
    with torch.no_grad():  # on the CPU FlexAttention has no backward
        if kernel == "sdpa":
            out = cuda_attention.sdpa(*inputs, masks.mask(window), SCALE)
        else:
            out = cuda_attention.flex(*inputs, masks.blocks(window), SCALE, flex_attention)
        expected = _dense(*inputs, _allowed(row, window))
    torch.testing.assert_close(out.transpose(1, 2), expected, rtol=1e-5, atol=1e-5)


def test_the_block_mask_leaves_out_blocks_in_which_no_token_sees_another() -> None:
    items = [[n] * 128 for n in range(6)]  # six unrelated chains, one block each
    blocks = PackedRuns.of(pack(items, 10_000)[0], CPU).blocks(None)
    assert blocks.seq_lengths == (768, 768)
    assert blocks.sparsity() == pytest.approx(100 * (1 - 6 / 36))


@pytest.mark.parametrize("length", [1, 128, 129, 700, 1025, 5000])
def test_few_padded_lengths(length: int) -> None:
    padded = cuda_attention.padded_length(length)
    assert length <= padded <= max(128, 1.25 * length + 128)
    assert padded % 128 == 0


def test_the_faster_kernel_is_chosen_and_a_broken_one_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(cuda_attention.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(cuda_attention, "_broken", broken := [])

    def taking(seconds: float) -> Any:
        def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            clock[0] += seconds
            return q + k + v

        return kernel

    def failing(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise RuntimeError("no compiler")

    inputs = (torch.ones(1), torch.ones(1), torch.ones(1))
    for slow, fast in (("sdpa", "flex"), ("flex", "sdpa")):
        kernels = {slow: taking(2.0), fast: taking(1.0)}
        assert cuda_attention.fastest(kernels, inputs, training=True) == fast
    with pytest.warns(UserWarning, match="no compiler"):
        kernels = {"sdpa": taking(1.0), "flex": failing}
        assert cuda_attention.fastest(kernels, inputs, training=False) == "sdpa"
    assert broken == ["flex"]
