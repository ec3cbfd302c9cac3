"""The compiled kernels against PyTorch in float64, and what happens where they cannot be compiled."""

from __future__ import annotations

import copy
import logging
import math
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cahl_core.config import ModelSettings
from cahl_core.policy import native
from cahl_core.policy.backbone import Policy
from cahl_core.policy.compiled import compiler as find_compiler
from cahl_core.policy.engine import Engine
from cahl_core.policy.fused import FusedModel, Heads
from cahl_core.policy.native import Kernels
from cahl_core.policy.prefix_state import PrefixState
from tests.parity.architectures import make_config

FINISHES = {
    "none": lambda y, other: y,
    "silu": lambda y, other: torch.nn.functional.silu(y),
    "times": lambda y, other: y * other,
    "plus": lambda y, other: y + other,
}


@pytest.fixture(scope="module", params=[(), ("-mno-avx512f",), ("-DLANES=16",)], ids=str)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    """For vectors of 8 and of 16 numbers, whichever the processor has."""
    compiler = find_compiler()
    if native.kernels() is None or compiler is None:
        pytest.skip("needs an x86 processor with AVX2 and a C compiler")
    return native.load(compiler, (*native.FLAGS, *request.param))


@pytest.fixture
def compiled() -> None:
    if native.kernels() is None:
        pytest.skip("needs an x86 processor with AVX2 and a C compiler")


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 40),
    size=st.integers(1, 200),
    cols=st.integers(1, 130),
    kind=st.sampled_from(sorted(FINISHES)),
    biased=st.booleans(),
    threads=st.integers(1, 3),
)
def test_products_of_any_shape(
    kernels: Kernels, rows: int, size: int, cols: int, kind: str, biased: bool, threads: int
) -> None:
    torch.manual_seed(rows * size * cols)
    x, weight = torch.randn(rows, size), torch.randn(cols, size)
    bias = torch.randn(cols) if biased else None
    other = torch.randn(rows, cols) if kind in ("times", "plus") else None
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        found = kernels.linear(x, weight, bias, kind, other)
    finally:
        torch.set_num_threads(before)
    wide = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    expected = FINISHES[kind](wide, None if other is None else other.double())
    scale = math.sqrt(size) * (1 if other is None else float(other.abs().max()))
    torch.testing.assert_close(found.double(), expected, atol=2e-6 * scale, rtol=2e-6)


def test_large_products_fill_several_strips(kernels: Kernels) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(130, 1536), torch.randn(700, 1536)
    expected = (x.double() @ weight.double().T).float()
    torch.testing.assert_close(kernels.linear(x, weight, None, "none"), expected, atol=2e-4, rtol=0)
    views = torch.randn(130, 3072)[:, ::2]  # not contiguous
    expected = (views.double() @ weight.double().T).float()
    found = kernels.linear(views, weight, None, "none")
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


def test_silu_of_extreme_values(kernels: Kernels) -> None:
    x = torch.tensor([[-200.0], [-88.0], [-20.0], [-1e-7], [0.0], [3.0], [90.0], [1e30]])
    found = kernels.linear(x, torch.ones(9, 1), None, "silu")
    expected = torch.nn.functional.silu(x.double()).expand(-1, 9)
    torch.testing.assert_close(found.double(), expected, atol=1e-30, rtol=1e-6)
    undefined = kernels.linear(torch.tensor([[float("nan")]]), torch.ones(3, 1), None, "silu")
    assert undefined.isnan().all()


@pytest.mark.parametrize("shape", [(1, 5), (3, 64), (700, 3, 72)])
def test_rms_norm(kernels: Kernels, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(shape), torch.randn(shape[-1])
    expected = torch.nn.functional.rms_norm(x.double(), shape[-1:], weight.double(), 1e-5)
    found = kernels.rms_norm(x, torch.cat([weight, weight]), 1e-5)
    torch.testing.assert_close(found.double(), expected, atol=1e-6, rtol=2e-6)


def _model(groups: int, heads: int, width: int) -> Any:
    own: Any = SimpleNamespace(groups=groups, kv_heads=heads, width=width, scaling=0.2, eps=1e-6)
    own.norm = lambda x, weight: FusedModel.norm(own, x, weight)
    return own


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("lengths", [[1], [256, 257, 3], [70, 900, 5, 600]])
@pytest.mark.parametrize(
    "samples, groups, heads, width", [(1, 1, 2, 32), (7, 3, 2, 64), (4, 2, 1, 96)]
)
def test_attention_over_prompts_and_suffixes(
    kernels: Kernels,
    lengths: list[int],
    samples: int,
    groups: int,
    heads: int,
    width: int,
    normed: bool,
) -> None:
    """Suffixes longer than what is scored at one time, and rows that leave."""
    torch.manual_seed(0)
    model = _model(groups, heads, width)
    norms = (torch.rand(width).repeat(2), torch.rand(width).repeat(2)) if normed else None
    state = PrefixState.empty(lengths, samples, 300, torch.device("cpu"), torch.float32)
    for index, length in enumerate(lengths):
        state.write(0, index, *(torch.randn(heads, length, width) for _ in range(2)))
    state.suffix_keys[0].normal_(), state.suffix_values[0].normal_()
    for step in range(280):
        state.advance()
        if step == 200 and len(lengths) > 1:
            kept = [0, len(lengths) - 1]
            rows = [p * samples + s for p in kept for s in range(1, samples)] or kept
            state.select(kept, torch.tensor(rows))
        if step in (0, 150, 255, 256, 279):
            found, expected = _both(kernels, state, model, norms)
            torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)


def _both(
    kernels: Kernels, state: PrefixState, model: Any, norms: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor]:
    rows = len(state.lengths) * state.samples
    heads = Heads(
        model,
        torch.randn(rows, (model.groups + 2) * model.kv_heads * model.width),
        torch.randn(rows, 1, model.width),
        torch.randn(rows, 1, model.width),
        norms,
    )
    found = kernels.attend(state, 0, heads)
    query, key, value = (x.double() for x in heads.turned())
    written = state.length
    torch.testing.assert_close(
        state.suffix_keys[0][:, :, written - 1].double(), key, atol=2e-6, rtol=0
    )
    assert torch.equal(state.suffix_values[0][:, :, written - 1].double(), value)
    out = []
    for row in range(rows):
        prompt = row // state.samples
        keys, values = (
            torch.cat([shared[prompt, :, : state.lengths[prompt]], own[row, :, :written]], dim=1)
            for shared, own in (
                (state.keys[0], state.suffix_keys[0]),
                (state.values[0], state.suffix_values[0]),
            )
        )
        scores = torch.einsum("ghd,hld->ghl", query[row], keys.double()) * model.scaling
        out.append(torch.einsum("ghl,hld->ghd", scores.softmax(2), values.double()).flatten())
    return found, torch.stack(out)


# --- compiling ------------------------------------------------------------------------------------


@pytest.fixture
def anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing remembered of the machine."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    native.kernels.cache_clear()
    yield tmp_path
    native.kernels.cache_clear()


def test_compiled_once_and_kept(compiled: None, anew: Path) -> None:
    assert native.kernels() is not None
    (library,) = (anew / "cache/cahl").iterdir()
    native.kernels.cache_clear()
    stamp = library.stat().st_mtime_ns
    assert native.kernels() is not None
    assert library.stat().st_mtime_ns == stamp


@pytest.mark.parametrize("found", ["cut short", "another library", "written by others"])
def test_a_library_that_cannot_be_trusted_is_made_again(
    compiled: None, anew: Path, found: str
) -> None:
    assert native.kernels() is not None
    (library,) = (anew / "cache/cahl").iterdir()
    whole, stamp = library.read_bytes(), library.stat().st_mtime_ns
    library.unlink()  # its memory is in use
    if found == "another library":
        other = Path(torch.__file__).parent / "lib/libgomp.so.1"
        library.write_bytes(other.read_bytes() if other.exists() else b"")
    else:
        library.write_bytes(whole[:1000] if found == "cut short" else whole)
    if found == "written by others":
        library.chmod(0o666)
    native.kernels.cache_clear()
    assert native.kernels() is not None
    assert library.stat().st_mtime_ns > stamp
    assert library.stat().st_mode & 0o077 == 0
    assert len(library.read_bytes()) == len(whole)


def test_a_cache_that_cannot_be_written_is_done_without(
    compiled: None, anew: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (anew / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(anew / "file"))
    assert native.kernels() is not None


def test_without_a_compiler_pytorch_serves(
    anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", str(anew / "none"))
    caplog.set_level(logging.INFO)
    assert native.serves(torch.float32, torch.device("cpu")) is None
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_a_compiler_that_cannot_be_read_is_no_crash(
    compiled: None, anew: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", "gcc 'x")
    assert native.kernels() is None
    assert "No closing quotation" in caplog.text


def test_switched_off(anew: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAHL_NATIVE", "0")
    assert native.kernels() is None
    assert not (anew / "cache").exists()


def test_a_compiler_that_fails_is_quoted(
    compiled: None,
    anew: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    broken = anew / "cc"
    broken.write_text("#!/bin/sh\necho no vectors here >&2\nexit 1\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    assert native.kernels() is None
    assert "no vectors here" in caplog.text and "CAHL_NATIVE=0" in caplog.text
    assert not list((anew / "cache/cahl").iterdir())


def test_memory_that_runs_out_halves_the_batch(
    compiled: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_config(tmp_path, "llama", {"head_dim": native.WIDTHS})
    policy = Policy.load(tmp_path, None, ModelSettings(dtype="float32", max_context=256))
    whole = Engine(policy).generate([[5, 6], [7, 8, 9]], "planner", samples=2, max_tokens=4)
    real, calls = Kernels.attend, []

    def attend(self: Kernels, state: PrefixState, layer: int, heads: Heads) -> Tensor:
        calls.append(len(heads.qkv))
        short = copy.copy(self)
        if len(heads.qkv) > 2:
            short._attend = lambda *_: 1
        return real(short, state, layer, heads)

    monkeypatch.setattr(Kernels, "attend", attend)
    engine = Engine(policy)
    halves = engine.generate([[5, 6], [7, 8, 9]], "planner", samples=2, max_tokens=4)
    assert calls[0] == 4 and max(calls[1:]) == 2
    assert "ran out of memory" in engine.notes[0]
    assert [[c.token_ids for c in g] for g in halves] == [[c.token_ids for c in g] for g in whole]


def test_what_is_not_float32_on_a_cpu_is_left_alone() -> None:
    assert native.serves(torch.bfloat16, torch.device("cpu")) is None
    assert native.serves(torch.float32, torch.device("meta")) is None
