"""Tiny random models of several architectures, every weight, bias and norm far from its default."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.conftest import make_tokenizer

WINDOW = 7
LAYERS = {"num_hidden_layers": 3}
GEMMA: dict[str, Any] = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": WINDOW,
    "query_pre_attn_scalar": 20,
    "rope_parameters": {
        "sliding_attention": {"rope_type": "default", "rope_theta": 100.0},
        "full_attention": {"rope_type": "default", "rope_theta": 10_000.0},
    },
}
# name: the type of its config, and what differs from the common shape
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "qwen2": ("qwen2", {}),
    "qwen2-window": (
        "qwen2",
        {**LAYERS, "use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", {}),
    "mistral-window": ("mistral", {"sliding_window": WINDOW}),
    "gemma3": ("gemma3_text", {**LAYERS, **GEMMA}),
    "gemma3-capped": ("gemma3_text", {**LAYERS, **GEMMA, "final_logit_softcapping": 4.0}),
    "granite": ("granite", {"logits_scaling": 3.0, "attention_multiplier": 0.2}),
    "cohere": ("cohere", {"logit_scale": 0.4}),
}


def make_architecture(folder: Path, name: str, seed: int = 0) -> None:
    """Writes model and tokenizer to ``folder``; weights in float32."""
    kind, own = ARCHITECTURES[name]
    make_config(folder, kind, own, seed)


def make_config(folder: Path, kind: str, own: dict[str, Any], seed: int = 0) -> None:
    """As `make_architecture`, for a config type that need not be one of those served."""
    make_tokenizer(folder)
    torch.manual_seed(seed)
    common: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
        "tie_word_embeddings": True,
    }
    config = CONFIG_MAPPING[kind](**{**common, **own})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8.0)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.save_pretrained(folder)
