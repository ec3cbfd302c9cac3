"""Whether a backbone can be trained and sampled exactly: asked once, when it is loaded.

Packed rows and shared prefixes replace the model's attention and read its head directly. For an
architecture that does more than these compute, the numbers would be wrong without a word. So the config
is looked at, and then the loaded model is run on a small tree of tokens: packed, and as transformers
runs it, one sequence at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cahl_core.errors import ModelError
from cahl_core.memory import is_out_of_memory
from cahl_core.policy.attention import PACKED, packed_attention, packed_inputs
from cahl_core.policy.head import Head
from cahl_core.policy.packing import pack

PROBE = "cahl_packed_probe"
LAYERS = ("full_attention", "sliding_attention")
CHANGE = "choose a backbone of plain attention, as Llama, Qwen2, Qwen3, Mistral, Gemma 3 or Granite"
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}  # relative, of the logits
HALF_TOLERANCE = 0.2


def check_backbone(model: Any, max_context: int) -> None:
    """Raises ModelError unless packed rows of ``model`` give the model's own logits.

    The attention implementation is `PACKED` afterwards.
    """
    from transformers import AttentionInterface

    name = type(model).__name__
    config = model.config.get_text_config()
    _check_config(name, config, max_context)
    own = model.config._attn_implementation
    windows: dict[int, int | None] = {}

    def probe(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        windows[int(module.layer_idx)] = kwargs.get("sliding_window")  # type: ignore[arg-type]
        return packed_attention(module, *args, **kwargs)

    AttentionInterface.register(PROBE, probe)
    try:
        expected = _logits(model, own, packed=False)
        actual = _logits(model, PROBE, packed=True)
    except ModelError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(f"{name} does not run on packed rows: {reason}", CHANGE) from error
    finally:
        model.config._attn_implementation = PACKED
    _check_layers(name, config, windows)
    distance = float((actual - expected).norm() / expected.norm())
    if not distance < TOLERANCE.get(model.dtype, HALF_TOLERANCE):
        raise ModelError(
            f"{name}: logits of packed rows differ from the model's own (relative error "
            f"{distance:.2g})",
            CHANGE,
        )


def _check_config(name: str, config: Any, max_context: int) -> None:
    others = sorted({t for t in getattr(config, "layer_types", None) or () if t not in LAYERS})
    if others:
        raise ModelError(
            f"{name} has layers of {', '.join(others)}; packed rows serve {' and '.join(LAYERS)}",
            CHANGE,
        )
    if getattr(config, "index_topk", None):
        raise ModelError(f"{name} attends to chosen tokens only (index_topk)", CHANGE)
    rope = getattr(config, "rope_parameters", None) or {}
    places = [rope.get("original_max_position_embeddings")]
    places += [getattr(config, f"{k}max_position_embeddings", None) for k in ("original_", "")]
    original = next((int(n) for n in places if n), max_context)
    if rope.get("rope_type") in ("dynamic", "longrope") and max_context > original:
        raise ModelError(
            f"{name} rotates by the length of the whole sequence beyond {original} tokens "
            f"(rope_type {rope['rope_type']}), which a row of several sequences cannot follow",
            f"set model.max_context to at most {original}",
        )


def _check_layers(name: str, config: Any, windows: dict[int, int | None]) -> None:
    count = config.num_hidden_layers
    missing = [i for i in range(count) if i not in windows]
    if missing:
        raise ModelError(
            f"{name}: {len(missing)} of {count} layers do not attend by the attention that was set "
            "(state-space or linear layers, or an attention of their own)",
            CHANGE,
        )
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        every = window is not None and getattr(config, "use_sliding_window", True)
        kinds = ["sliding_attention" if every else "full_attention"] * count
    wrong = [i for i in range(count) if (kinds[i] == LAYERS[1]) != (windows[i] is not None)]
    if wrong:
        raise ModelError(f"{name}: layer {wrong[0]} does not say its sliding window", CHANGE)


@torch.no_grad()
def _logits(model: Any, implementation: str, *, packed: bool) -> Tensor:
    """The logits of two sequences that share an opening, ``[tokens of both, vocabulary]``."""
    model.config._attn_implementation = implementation
    size = model.get_output_embeddings().weight.shape[0]
    ids = [(7 * i * i + 11 * i + 3) % size for i in range(24)]
    sequences = [ids[:16], ids[:6] + ids[16:]]
    device = model.device
    if not packed:
        flat = [model(input_ids=torch.tensor([s], device=device)).logits[0] for s in sequences]
        return torch.cat(flat).float()
    [row] = pack(sequences, 64)
    hidden = model.base_model(**packed_inputs(row, device), use_cache=False).last_hidden_state[0]
    order = np.concatenate([row.paths[row.indices.index(i)] for i in range(len(sequences))])
    return Head.of(model).logits(hidden[torch.from_numpy(order).to(device)]).float()
