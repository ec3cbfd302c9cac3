"""Inference of Llama-shaped decoders with few, large operations.

transformers' layers spend most of a decoding step on small operations between the matrix products.
Here the adapter is merged, the query, key and value matrices are one, residuals and activations are
part of the products, and query heads are stored in the order in which attention over a shared prefix
reads and writes them without a copy. Architectures whose layers have another shape are served by their
own modules (`decoder.ModuleRunner`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cahl_core.policy import native
from cahl_core.policy.linear import FrozenLinear

# Pre-norm layers with rotary positions, gated silu and grouped queries, and nothing else in them.
LAYERS = (
    "LlamaDecoderLayer",
    "MistralDecoderLayer",
    "Qwen2DecoderLayer",
    "Qwen3DecoderLayer",
)
CHANGING_ROPE = (
    "dynamic",
    "longrope",
)  # whose frequencies depend on the longest position of a batch


def supports(causal: Any) -> bool:
    """Whether every layer of ``causal`` has the one shape that this module computes."""
    config, layers = causal.config, getattr(causal.base_model, "layers", [])
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        bool(layers)
        and all(type(layer).__name__ in LAYERS for layer in layers)
        and all(getattr(layer.self_attn, "sliding_window", None) is None for layer in layers)
        and getattr(config, "hidden_act", None) == "silu"
        and (type(layers[0]).__name__ != "MistralDecoderLayer" or config.sliding_window is None)
        and rope.get("rope_type", "default") not in CHANGING_ROPE
    )


@dataclass(slots=True)
class _Layer:
    attention_norm: Tensor
    mlp_norm: Tensor
    head_norms: tuple[Tensor, Tensor] | None
    qkv: FrozenLinear
    out: FrozenLinear
    gate: FrozenLinear
    up: FrozenLinear
    down: FrozenLinear


@dataclass(slots=True)
class Heads:
    """Queries, keys and values of one layer as its product leaves them.

    Attributes:
        model: whose layer it is.
        qkv: ``[T, (g + 2) * H * D]``: queries ``[g, H]``, keys and values ``[H]``.
        cosine, sine: ``[T, 1, D]`` of the positions, the sine of the first half negated.
        norms: weights of the queries' and the keys' RMS norm, each twice (`FusedModel.norm`).
        scaling: of the scores.
    """

    model: FusedModel
    qkv: Tensor
    cosine: Tensor
    sine: Tensor
    norms: tuple[Tensor, Tensor] | None

    @property
    def scaling(self) -> float:
        return self.model.scaling

    def turned(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``[T, g, H, D]``, keys and values ``[T, H, D]``, normed and at their positions."""
        model, length = self.model, len(self.qkv)
        queries = model.groups * model.kv_heads
        heads = self.qkv.view(length, queries + 2 * model.kv_heads, model.width)
        turning, value = heads[:, : queries + model.kv_heads], heads[:, queries + model.kv_heads :]
        if self.norms is not None:
            parts = turning[:, :queries], turning[:, queries:]
            normed = [model.norm(x, w) for x, w in zip(parts, self.norms, strict=True)]
            turning = torch.cat(normed, dim=1)
        swapped = turning.roll(model.width // 2, dims=2)
        turned = torch.addcmul(turning * self.cosine, swapped, self.sine)
        query = turned[:, :queries].view(length, model.groups, model.kv_heads, model.width)
        return query, turned[:, queries:], value


Attend = Callable[[int, Heads], Tensor]


class FusedModel:
    """A causal LM's inference copy; `refresh` sets its weights.

    Query heads are in the order ``[g, H]``: head ``j`` of key-value head ``h`` is number ``j * H + h``.
    """

    def __init__(
        self,
        causal: Any,
        weight_of: Callable[[nn.Module], Tensor],
        whole: Callable[[Tensor], Tensor],
    ) -> None:
        """
        Args:
            weight_of: a linear module's present weight, ``[out, in]``, adapter merged.
            whole: all of a parameter of which this process may hold a part only.
        """
        self.causal = causal
        self._weight_of = weight_of
        self._whole = whole
        config = causal.config
        attention = causal.base_model.layers[0].self_attn
        self.width: int = attention.head_dim
        self.kv_heads: int = config.num_key_value_heads
        self.groups: int = config.num_attention_heads // config.num_key_value_heads
        self.scaling: float = attention.scaling
        self.eps: float = config.rms_norm_eps
        self._layers: list[_Layer] = []
        self._table = self._last_norm = torch.empty(0)
        self._head: FrozenLinear | None = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Takes over the present weights; the ones before are freed layer by layer."""
        model = self.causal.base_model
        self._table = self._whole(model.embed_tokens.weight)
        self._last_norm = self._doubled(model.norm)
        for index, module in enumerate(model.layers):
            if index < len(self._layers):
                self._layers[index] = self._layer(module)
            else:
                self._layers.append(self._layer(module))
        if self._head is None:  # frozen: no update reaches it
            head = self.causal.get_output_embeddings()
            self._head = FrozenLinear(self._whole(head.weight).detach(), self._bias(head))

    def _layer(self, module: Any) -> _Layer:
        attention, mlp = module.self_attn, module.mlp
        query, query_bias = self._by_group(attention.q_proj)
        parts = [self._weight_of(attention.k_proj), self._weight_of(attention.v_proj)]
        biases = [query_bias, self._bias(attention.k_proj), self._bias(attention.v_proj)]
        bias = None if query_bias is None else torch.cat([b for b in biases if b is not None])
        out = self._weight_of(attention.o_proj)
        shape = (len(out), self.kv_heads, self.groups, self.width)
        return _Layer(
            self._doubled(module.input_layernorm),
            self._doubled(module.post_attention_layernorm),
            (self._doubled(attention.q_norm), self._doubled(attention.k_norm))
            if hasattr(attention, "q_norm")
            else None,
            FrozenLinear(torch.cat([query, *parts]), bias),
            FrozenLinear(out.view(shape).transpose(1, 2).flatten(1), self._bias(attention.o_proj)),
            self._linear(mlp.gate_proj),
            self._linear(mlp.up_proj),
            self._linear(mlp.down_proj),
        )

    def _doubled(self, norm: Any) -> Tensor:
        weight = self._whole(norm.weight).detach()
        return torch.cat([weight, weight]) if weight.device.type == "cpu" else weight

    def _by_group(self, projection: Any) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._weight_of(projection), self._bias(projection)
        shape = (self.kv_heads, self.groups, self.width, weight.shape[1])
        weight = weight.view(shape).transpose(0, 1).reshape(-1, weight.shape[1])
        if bias is not None:
            bias = bias.view(self.kv_heads, self.groups, self.width).transpose(0, 1).flatten()
        return weight, bias

    def _linear(self, projection: Any) -> FrozenLinear:
        return FrozenLinear(self._weight_of(projection), self._bias(projection))

    def _bias(self, module: Any) -> Tensor | None:
        bias = getattr(getattr(module, "base_layer", module), "bias", None)
        return None if bias is None else self._whole(bias).detach()

    def hidden(self, ids: Tensor, positions: Tensor, attend: Attend) -> Tensor:
        """Last hidden states ``[T, hidden]`` of tokens ``[T]`` at ``positions`` ``[T]``.

        Args:
            attend: called once per layer with its number and heads; returns ``[T, g * H * D]``.
        """
        x = nn.functional.embedding(ids, self._table)
        cos, sin = self.causal.base_model.rotary_emb(x, positions[None])
        cos, sin = cos[0, :, None], _signed(sin[0, :, None])
        for number, layer in enumerate(self._layers):
            qkv = layer.qkv(self.norm(x, layer.attention_norm))
            x = layer.out.plus(attend(number, Heads(self, qkv, cos, sin, layer.head_norms)), x)
            h = self.norm(x, layer.mlp_norm)
            x = layer.down.plus(layer.up.times(h, layer.gate.silu(h)), x)
        return self.norm(x, self._last_norm)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[T, vocabulary]`` of hidden states ``[T, hidden]``, in at least float32."""
        assert self._head is not None
        out = self._head(hidden)
        return out.to(torch.promote_types(out.dtype, torch.float32))

    def norm(self, x: Tensor, weight: Tensor) -> Tensor:
        """Weighted RMS norm; ``weight`` as `_doubled` gives it.

        PyTorch composes RMS norm of eight kernels on CPUs. Where there is no compiled one, layer norm
        is one: the mean of x and -x together is zero and their variance the mean of x².
        """
        size = x.shape[-1]
        if (kernels := native.serves(x.dtype, x.device)) is not None:
            return kernels.rms_norm(x, weight, self.eps)
        if len(weight) == size:
            return nn.functional.rms_norm(x, (size,), weight, self.eps)
        both = torch.cat([x, -x], dim=-1)
        return nn.functional.layer_norm(both, (2 * size,), weight, None, self.eps)[..., :size]


def _signed(sin: Tensor) -> Tensor:
    """The sine with the first half's sign turned: rotation needs the halves swapped only."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)
