"""Which backbone an adapter was trained on.

Two backbones of one architecture have equal shapes, so an adapter of the base model loads on the
instruct model without a word and only the results are bad. Adapters therefore carry a fingerprint of
the weights they were trained on, in a file of their own: the metadata of safetensors with several entries
are written in random order, and artifacts have digests.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cahl_core.errors import ModelError
from cahl_core.files import read_json, write_json

ORIGIN, CONFIG = "backbone.json", "adapter_config.json"
VALUES = 64  # of every tensor: fine-tuning changes all of them, reading more would take seconds
OVERRIDE = "if it is the same model under another name, set model.check_adapters=false"


def fingerprint(causal: nn.Module) -> str:
    """Hex digest (16 characters) of the backbone's weights, adapters aside.

    The same in float32 and bfloat16, on any device: the first values of every tensor, as bfloat16.
    """
    total = hashlib.sha256()
    for name, parameter in sorted(_named(causal).items()):
        head = parameter.detach().reshape(-1)[:VALUES].to(torch.bfloat16).cpu()
        total.update(f"{name}{tuple(parameter.shape)}".encode())
        total.update(head.view(torch.int16).numpy().tobytes())
    return total.hexdigest()[:16]


def _named(causal: nn.Module) -> dict[str, nn.Parameter]:
    return {
        name.replace(".base_layer.", "."): parameter
        for name, parameter in causal.named_parameters()
        if ".lora_" not in name
    }


def check_origin(path: Path, backbone: str, own: str) -> None:
    """Refuses the adapter in ``path`` if it says that it was trained on another backbone.

    Args:
        backbone: name of ours in the settings. own: its fingerprint.

    Raises:
        ModelError: the fingerprints differ, or, where the adapter has none (it is not of this
            program), the names of the models do.
    """
    recorded = _read(path / ORIGIN).get("fingerprint")
    name = str(_read(path / CONFIG).get("base_model_name_or_path") or "")
    if recorded is not None and recorded != own:
        raise ModelError(
            f"the adapter in {path} was trained on other weights than these (on {name or 'unknown'}, "
            f"fingerprint {recorded}; model.backbone={backbone} has {own})",
            f"train it again on {backbone}, or set model.backbone to the one it belongs to; {OVERRIDE}",
        )
    if recorded is None and name and _last(name) != _last(backbone):
        raise ModelError(
            f"the adapter in {path} says that it belongs to {name}, and model.backbone is {backbone}",
            f"set model.backbone to {name}; {OVERRIDE}",
        )


def write_origin(path: Path, backbone: str, own: str) -> None:
    """What `check_origin` reads, beside the adapter's weights."""
    write_json(path / ORIGIN, {"backbone": backbone, "fingerprint": own})


def _read(path: Path) -> dict[str, Any]:
    found = read_json(path) if path.exists() else {}
    return found if isinstance(found, dict) else {}


def _last(name: str) -> str:
    """Hub names, directories and names of this project's sources, without owner and case."""
    return name.rstrip("/").rpartition("/")[2].casefold()
