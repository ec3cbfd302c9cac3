"""The warning before a run that memory will be short, cheap enough for every start."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cahl_core.config import Settings
from cahl_core.cost.peaks import predict_memory, shortage
from cahl_core.cost.prediction import predict
from cahl_core.cost.skeleton import Passes, Sizes, read_config, sizes
from cahl_core.cost.workload import predict_steps
from cahl_core.memory import free_memory, resident_now
from cahl_core.policy.backbone import pick_dtype
from cahl_core.records import ToolTask

AMPLE = 2.0  # no closer look where a generous bound fits this many times
KEPT = (
    4  # tensors as wide as all of a layer's matrices' outputs that a token leaves behind, at most
)


def memory_warnings(
    backbone: Path,
    settings: Settings,
    tasks: Sequence[ToolTask],
    device: torch.device,
    *,
    free: int | None = None,
) -> list[str]:
    """What to say before training where its predicted peak is near or above what is free.

    One step's prompts and a generous bound of the activations come first; only where that is not
    comfortably within what is free are the passes traced.

    Args:
        free: bytes; by default what the device, or the host, has now.
    """
    from transformers import AutoTokenizer

    process = resident_now() if device.type == "cpu" else 0
    if free is None:
        free = free_memory(device)
        if free is None:
            return []
        free += process
    config = read_config(backbone)
    tokenizer = AutoTokenizer.from_pretrained(str(backbone), local_files_only=True)
    found = sizes(config, settings.model)
    loads = predict_steps(tasks, tokenizer, settings, 1)
    dtype = pick_dtype(settings.model.dtype, device)
    longest = max(own.longest_row for own in loads[0].roles.values())
    bound = generous(found, config, max(longest, settings.train.row_tokens))
    rough = predict_memory(settings, found, bound, loads, dtype, device, process=process)
    if rough.highest[1] * AMPLE <= free:
        return []
    exact = predict(backbone, settings, tasks, tokenizer, process=process, steps=2)
    return shortage(exact.memory, settings, exact.passes, free)


def generous(found: Sizes, config: Any, tokens: int) -> Passes:
    """More than the passes over ``tokens`` tokens will need, from sizes alone."""
    text = config.get_text_config()
    per_layer = found.decoder // found.layers // text.hidden_size  # all matrices' outputs together
    kept = tokens * found.layers * per_layer * KEPT * 4
    return Passes(kept // found.layers * 2, kept, kept)
