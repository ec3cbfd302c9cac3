"""The backbone without its weights: sizes, and the memory that passes through it will take.

Passes run on fake tensors, which have shapes and no memory, through the code that training runs. Two
short models are traced and the rest follows, since every further layer of a stack adds the same.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from cahl_core.config import ModelSettings
from cahl_core.cost.allocations import Allocations
from cahl_core.errors import ModelError
from cahl_core.policy import attention, checkpointing
from cahl_core.policy.backbone import Policy
from cahl_core.policy.logprobs import row_logprobs
from cahl_core.policy.packing import Packed

TRACED = (2, 3)  # layers


@dataclass(frozen=True, slots=True)
class Passes:
    """Bytes that the passes over one packed row need beside the weights, at their peak."""

    scored: int
    trained: int
    trained_checkpointed: int


@dataclass(frozen=True, slots=True)
class Sizes:
    """Parameters of a backbone and of one adapter on it, in numbers of elements.

    Attributes:
        total: tied tables count once.
        decoder: of the linear layers below the head.
        adapted: of those that an adapter is merged into.
        attention: of those of the attention.
        head: of the output table.
        adapter: of one adapter.
        trained_whole: of what trains where roles do not share the backbone.
        kv_width: keys and values of one token in one layer.
    """

    total: int
    decoder: int
    adapted: int
    attention: int
    head: int
    adapter: int
    trained_whole: int
    layers: int
    kv_width: int
    vocabulary: int


def read_config(folder: Path) -> Any:
    """The transformers configuration of a backbone.

    Raises:
        ModelError: there is none.
    """
    from transformers import AutoConfig

    if not (folder / "config.json").exists():
        raise ModelError(f"no model in {folder} (config.json is missing)", "run `cahl fetch` first")
    return AutoConfig.from_pretrained(str(folder), local_files_only=True)


def sizes(config: Any, settings: ModelSettings) -> Sizes:
    """Counts the parameters of the backbone with an adapter of ``settings.lora``."""
    policy = _skeleton(config, settings, torch.float32)
    causal: Any = policy.causal
    head = causal.get_output_embeddings().weight
    modules: list[Any] = list(policy.decoder.modules())
    linear = [m for m in modules if isinstance(m, nn.Linear)]
    adapted = [m.base_layer for m in modules if hasattr(m, "lora_A")]
    tables = {id(causal.get_input_embeddings().weight), id(head)}
    adapter = sum(p.numel() for p in policy.parameters("planner"))
    total = sum(p.numel() for p in causal.parameters()) - adapter
    trained = sum(p.numel() for p in policy.decoder.parameters() if id(p) not in tables) - adapter
    text = config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    small = {id(p) for p in policy.parameters("planner")}
    matrices = [m.weight for m in linear if id(m.weight) not in small]
    attention = {id(m) for n, m in policy.decoder.named_modules() if ".self_attn." in n}
    own = [m.weight for m in linear if id(m) in attention and id(m.weight) not in small]
    return Sizes(
        total=total,
        decoder=sum(w.numel() for w in matrices),
        adapted=sum(m.weight.numel() for m in adapted),
        attention=sum(w.numel() for w in own),
        head=head.numel(),
        adapter=adapter,
        trained_whole=trained,
        layers=text.num_hidden_layers,
        kv_width=2 * text.num_key_value_heads * width,
        vocabulary=head.shape[0],
    )


def trace_passes(
    config: Any,
    settings: ModelSettings,
    dtype: torch.dtype,
    row: Packed,
    prompt_lengths: list[int],
) -> Passes:
    """Peak bytes of scoring and of training on ``row``, for as many layers as ``config`` has."""
    layers = config.get_text_config().num_hidden_layers
    peaks = []
    for checkpointed, train in ((False, False), (False, True), (True, True)):
        own = settings.model_copy(update={"gradient_checkpointing": checkpointed})
        found = [
            _trace(config, own, dtype, row, prompt_lengths, n, train)
            for n in TRACED[: 1 if layers <= TRACED[0] else 2]
        ]
        slope = found[-1] - found[0]
        peaks.append(found[0] + max(layers - TRACED[0], 0) * slope)
    return Passes(*peaks)


def _trace(
    config: Any,
    settings: ModelSettings,
    dtype: torch.dtype,
    row: Packed,
    prompt_lengths: list[int],
    layers: int,
    train: bool,
) -> int:
    policy = _skeleton(_shortened(config, layers), settings, dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _make_fake(policy.model)
        with torch.set_grad_enabled(train), Allocations() as memory:
            scored = row_logprobs(policy, row, prompt_lengths)
            if train:
                scored.values.sum().backward()  # type: ignore[no-untyped-call]
    return int(memory.peak)


def _shortened(config: Any, layers: int) -> Any:
    short = copy.deepcopy(config)
    text = short.get_text_config()
    text.num_hidden_layers = min(layers, text.num_hidden_layers)
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    return short


def _skeleton(config: Any, settings: ModelSettings, dtype: torch.dtype) -> Policy:
    """A policy without storage, with one adapter."""
    from transformers import AutoModelForCausalLM

    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    attention.register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=dtype)
        model.config._attn_implementation = attention.PACKED
        model.requires_grad_(False)
        model.train(False)
        if settings.gradient_checkpointing:
            checkpointing.install(model)
        policy = Policy(model, None, settings)
        policy.new_adapter("planner", 0)
        policy.activate("planner")
    return policy


def _make_fake(model: nn.Module) -> None:
    """Replaces what has no device by fake tensors of the CPU; to be called in a `FakeTensorMode`."""
    made: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}
    for module in model.modules():
        for name, old in module._parameters.items():
            if old is not None:
                if id(old) not in made:
                    empty = torch.empty(old.shape, dtype=old.dtype)
                    made[id(old)] = nn.Parameter(empty, requires_grad=old.requires_grad), old
                module._parameters[name] = made[id(old)][0]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
