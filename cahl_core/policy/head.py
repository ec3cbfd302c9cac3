"""The head of a causal LM: from hidden states to logits, as its architecture defines them.

Most are one matrix; some add a bias (Phi), multiply (Cohere) or divide (Granite) the logits, or cap them
softly (Gemma). `checks` compares the result with the model's own when a backbone is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MULTIPLIERS = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling",)


@dataclass(frozen=True, slots=True)
class Head:
    """logits = cap(scale * (h Wᵀ + bias)), cap(x) = softcap * tanh(x / softcap).

    Attributes:
        weight: ``[vocabulary, hidden]``; frozen, as the bias is.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, causal: Any) -> Head:
        """The head of a transformers causal LM."""
        config, table = causal.config.get_text_config(), causal.get_output_embeddings()
        scale = 1.0
        for name in MULTIPLIERS:
            scale *= float(getattr(config, name, None) or 1.0)
        for name in DIVISORS:
            scale /= float(getattr(config, name, None) or 1.0)
        softcap = getattr(config, "final_logit_softcapping", None)
        return cls(table.weight, getattr(table, "bias", None), scale, softcap)

    def logits(self, hidden: Tensor) -> Tensor:
        """``[..., hidden]`` → ``[..., vocabulary]`` in at least float32."""
        out = torch.nn.functional.linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = out.to(torch.promote_types(out.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = torch.tanh(logits / self.softcap) * self.softcap
        return logits

    def curve(self, logits: Tensor) -> Tensor | float:
        """The derivative of the logits by what the matrix gave."""
        if self.softcap is None:
            return self.scale
        return self.scale * (1 - (logits / self.softcap) ** 2)
