"""The decoding copy of a policy: LoRA merged into the backbone's matrices, in the backbone's dtype.

Decoding reads every weight at every step, so the adapters are merged once per update instead of being
multiplied at every token. What no adapter touches shares memory with the backbone.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cahl_core.policy import attention, lora, native, prefix_attention
from cahl_core.policy.attention import PackedRuns, packed_attention, packed_inputs
from cahl_core.policy.backbone import Policy
from cahl_core.policy.cuda_graph import GraphedStep
from cahl_core.policy.fused import FusedModel, Heads, supports
from cahl_core.policy.head import Head
from cahl_core.policy.packing import Packed
from cahl_core.policy.prefix_state import PrefixState, attend_cpu, attend_static
from cahl_core.policy.prefix_store import Continuation

Sink = Callable[[int, Tensor, Tensor], None]
WeightOf = Callable[[nn.Module], Tensor]
Whole = Callable[[Tensor], Tensor]


class Runner(Protocol):
    """How the merged model is computed."""

    def refresh(self) -> None:
        """Takes over the present weights."""

    def prefill(self, row: Packed, sink: Sink) -> Tensor:
        """Hidden states ``[L, hidden]`` of a packed row.

        ``sink`` gets every layer's number, keys and values ``[H, L', D]``, the first ``L`` of them
        the row's.
        """

    def extend(self, continuation: Continuation) -> Tensor:
        """Hidden states ``[U, hidden]`` of the new tokens of a row; completes its keys and values."""

    def step(self, tokens: Tensor, positions: Tensor, state: PrefixState) -> Tensor:
        """Logits ``[N, vocabulary]`` of the next token of every row, in at least float32.

        They may be overwritten by the next step.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """``[N, vocabulary]``, in at least float32."""


def decoding_model(policy: Policy) -> DecodingModel:
    """The fastest way that serves the policy's architecture."""
    return DecodingModel(policy, fused=supports(policy.causal))


class DecodingModel:
    """A policy's inference copy, its weights those of the last `refresh`."""

    def __init__(self, policy: Policy, *, fused: bool) -> None:
        self.policy = policy
        self._adapter: str | None = None
        self._names = {id(p): name for name, p in policy.causal.named_parameters()}
        kind = FusedRunner if fused else ModuleRunner
        self.runner: Runner = kind(policy, self.weight_of, self.whole)

    @torch.no_grad()
    def refresh(self, name: str | None) -> None:
        """Makes the weights those of backbone + adapter ``name`` (``None``: the backbone)."""
        self._adapter = name
        # sharding, which comes after this object is made, replaces parameters
        self._names = {id(p): path for path, p in self.policy.causal.named_parameters()}
        self.runner.refresh()

    def weight_of(self, module: Any) -> Tensor:
        """A linear module's weight ``[out, in]`` with the adapter merged, whole and without gradient."""
        layer = getattr(module, "base_layer", module)
        weight = self.whole(layer.weight).detach()
        name = self._adapter
        if name is not None and name in getattr(module, "lora_A", ()):
            weight = lora.merged(module, name, weight)
        return weight

    def whole(self, parameter: Tensor) -> Tensor:
        """All of a parameter, also where this process trains on a part of it only."""
        found = self.policy.whole.get(self._names[id(parameter)])
        return parameter if found is None else found.to(self.policy.device)


class FusedRunner:
    """Llama-shaped layers, computed by `FusedModel`."""

    def __init__(self, policy: Policy, weight_of: WeightOf, whole: Whole) -> None:
        self.policy = policy
        self.model = FusedModel(policy.causal, weight_of, whole)
        self.logits = self.model.logits
        on_cuda = policy.device.type == "cuda" and policy.settings.cuda_graphs
        self._graphs = GraphedStep(self._step) if on_cuda else None

    def refresh(self) -> None:
        """`Runner.refresh`."""
        if self._graphs:
            self._graphs.forget()
        self.model.refresh()

    def prefill(self, row: Packed, sink: Sink) -> Tensor:
        """`Runner.prefill`."""
        device = self.policy.device
        wide = row.padded(attention.PAD)
        runs = PackedRuns.of(wide, device)
        layers = self.policy.decoder.layers

        def attend(layer: int, projected: Heads) -> Tensor:
            q, k, v = projected.turned()
            length, groups, heads, width = q.shape
            keys, values = k.transpose(0, 1), v.transpose(0, 1)
            sink(layer, keys, values)
            out, _ = packed_attention(
                layers[layer].self_attn,
                q.permute(2, 1, 0, 3).reshape(1, heads * groups, length, width),
                keys[None],
                values[None],
                None,
                projected.scaling,
                packed_runs=runs,
            )
            return out.view(length, heads, groups, -1).transpose(1, 2).reshape(length, -1)

        hidden = self.model.hidden(
            torch.from_numpy(wide.input_ids).to(device),
            torch.from_numpy(wide.position_ids).to(device),
            attend,
        )
        return hidden[: len(row)]

    def extend(self, continuation: Continuation) -> Tensor:
        """`Runner.extend`."""

        def attend(layer: int, projected: Heads) -> Tensor:
            q, k, v = projected.turned()
            length, groups, heads, width = q.shape
            query = q.permute(2, 1, 0, 3).reshape(heads * groups, length, width)
            keys, values = k.transpose(0, 1), v.transpose(0, 1)
            out = continuation.attend(layer, query, keys, values, projected.scaling)
            return out.reshape(length, heads, groups, -1).transpose(1, 2).reshape(length, -1)

        ids, positions = new_tokens(continuation, self.policy.device)
        return self.model.hidden(ids, positions, attend)

    def step(self, tokens: Tensor, positions: Tensor, state: PrefixState) -> Tensor:
        """`Runner.step`."""
        return (self._graphs or self._step)(tokens, positions, state)

    def _step(self, tokens: Tensor, positions: Tensor, state: PrefixState) -> Tensor:
        compiled = native.serves(self.policy.dtype, tokens.device)
        by_operations = attend_cpu if tokens.device.type == "cpu" else attend_static

        def attend(layer: int, heads: Heads) -> Tensor:
            if compiled is not None and compiled.attends(self.model.width):
                return compiled.attend(state, layer, heads)
            return by_operations(state, layer, *heads.turned(), heads.scaling)

        return self.logits(self.model.hidden(tokens, positions, attend))


class ModuleRunner:
    """Any architecture, by transformers' own modules and registered attention functions."""

    def __init__(self, policy: Policy, weight_of: WeightOf, whole: Whole) -> None:
        self.policy = policy
        self._layers = _lora_layers(policy.causal)
        self._weight_of = weight_of
        self.model = _shell(policy.causal, self._layers, whole)
        self._head = Head.of(self.model)
        self._plain = dict(self.model.named_modules())

    def refresh(self) -> None:
        """`Runner.refresh`."""
        for path, layer in self._layers.items():
            self._plain[path].weight.data = self._weight_of(layer)

    def prefill(self, row: Packed, sink: Sink) -> Tensor:
        """`Runner.prefill`."""
        from transformers import DynamicCache

        self.model.config._attn_implementation = attention.PACKED
        # without its configuration the cache keeps every token, also of sliding-window layers
        cache: Any = DynamicCache()
        hidden: Tensor = self.model.base_model(
            **packed_inputs(row, self.policy.device), past_key_values=cache, use_cache=True
        ).last_hidden_state[0]
        for number, layer in enumerate(cache.layers):
            sink(number, layer.keys[0], layer.values[0])
        return hidden[: len(row)]

    def extend(self, continuation: Continuation) -> Tensor:
        """`Runner.extend`."""
        self.model.config._attn_implementation = prefix_attention.CONTINUE
        ids, positions = new_tokens(continuation, self.policy.device)
        hidden: Tensor = self.model.base_model(
            input_ids=ids[None],
            position_ids=positions[None],
            attention_mask=prefix_attention.passthrough_mask(ids.device),
            use_cache=False,
            continuation=continuation,
        ).last_hidden_state[0]
        return hidden

    def step(self, tokens: Tensor, positions: Tensor, state: PrefixState) -> Tensor:
        """`Runner.step`."""
        self.model.config._attn_implementation = prefix_attention.DECODE
        hidden: Tensor = self.model.base_model(
            input_ids=tokens[:, None],
            position_ids=positions[:, None],
            attention_mask=prefix_attention.passthrough_mask(tokens.device),
            use_cache=False,
            prefix_state=state,
        ).last_hidden_state[:, 0]
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """`Runner.logits`."""
        return self._head.logits(hidden)


def new_tokens(continuation: Continuation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and positions ``[U]`` of what is to be encoded."""
    row, new = continuation.row, continuation.new
    ids, positions = (torch.from_numpy(x[new]) for x in (row.input_ids, row.position_ids))
    return ids.to(device), positions.to(device)


def _lora_layers(causal: nn.Module) -> dict[str, Any]:
    return {n: m for n, m in causal.named_modules() if hasattr(m, "base_layer")}


def _shell(causal: Any, layers: dict[str, Any], whole: Whole) -> Any:
    """The backbone's modules without LoRA wrappers, parameters shared until refreshed."""
    # deepcopy with every tensor pre-seeded in the memo copies structure only, no weights
    memo: dict[int, Any] = {}
    for tensor in causal.buffers():
        memo[id(tensor)] = tensor
    for parameter in causal.parameters():
        memo[id(parameter)] = nn.Parameter(whole(parameter).data, requires_grad=False)
    for layer in layers.values():
        base = layer.base_layer
        plain: Any = nn.Linear(1, 1, bias=base.bias is not None, device="meta")
        plain.in_features, plain.out_features = base.in_features, base.out_features
        plain.weight = memo[id(base.weight)]
        plain.bias = None if base.bias is None else memo[id(base.bias)]
        memo[id(layer)] = plain
    shell = copy.deepcopy(causal, memo)
    shell.config = copy.deepcopy(causal.config)
    for module in shell.modules():
        if hasattr(module, "config"):
            module.config = shell.config
    return shell.eval()
