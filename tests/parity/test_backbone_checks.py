"""A backbone that packed rows cannot serve exactly is refused when it is loaded, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from cahl_core.config import ModelSettings
from cahl_core.errors import ModelError
from cahl_core.policy import attention, checks
from cahl_core.policy.attention import PACKED
from cahl_core.policy.backbone import Policy
from tests.parity.architectures import ARCHITECTURES, make_architecture, make_config

HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
CHUNKED = {"layer_types": ["chunked_attention", "full_attention"]}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "soft caps in attention": ("gemma2", {}, "softcap"),
    "attention sinks": ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}, "s_aux"),
    "linear attention": ("qwen3_next", HYBRID, "linear_attention"),
    "chunks": ("llama4_text", {**CHUNKED, "num_local_experts": 2}, "chunked_attention"),
    "a state space": ("mamba2", {"num_heads": 8, "expand": 2}, "linear_attention"),
    "alibi": ("bloom", {"n_head": 4}, "do not attend|does not run"),
    "a bias by distance": ("mpt", {"n_heads": 4, "d_model": 32}, "do not attend|does not run"),
    "long rope": (
        "llama",
        {
            "rope_parameters": {
                "rope_type": "dynamic",
                "factor": 4.0,
                "rope_theta": 1e4,
                "original_max_position_embeddings": 64,
            }
        },
        "at most 64",
    ),
}


def _load(folder: Path, dtype: str = "float32") -> Policy:
    return Policy.load(folder, None, ModelSettings(dtype=dtype, max_context=256))


@pytest.mark.parametrize("reason", REFUSED)
def test_what_packed_rows_do_not_compute_is_refused(tmp_path: Path, reason: str) -> None:
    kind, own, words = REFUSED[reason]
    make_config(tmp_path, kind, own)
    with pytest.raises(ModelError, match=words):
        _load(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_they_compute_is_served(tmp_path: Path, architecture: str, dtype: str) -> None:
    make_architecture(tmp_path, architecture)
    assert _load(tmp_path, dtype).causal.config._attn_implementation == PACKED


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_numbers_are_noticed(
    tmp_path: Path, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_architecture(tmp_path, "llama")
    real = attention.packed_attention

    def blind(module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        return real(module, query, torch.zeros_like(key), value, *args, **kwargs)

    monkeypatch.setattr(checks, "packed_attention", blind)
    with pytest.raises(ModelError, match="differ from the model's own"):
        _load(tmp_path, dtype)


def test_a_head_that_is_not_understood_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_architecture(tmp_path, "granite")
    monkeypatch.setattr("cahl_core.policy.head.DIVISORS", ())
    with pytest.raises(ModelError, match="differ from the model's own"):
        _load(tmp_path)
