"""Backbones as plain files: config.json, safetensors, tokenizer; nothing that can run code.

A GGUF is dequantised to bfloat16 once. The files name no path, host or library version, so the same
input gives the same bytes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from cahl_core.errors import ModelError
from cahl_core.files import dump_json, read_json

CONVERSION = "1"  # part of the cache key: raise it when the output of `convert_gguf` changes
SUFFIXES = (".safetensors", ".json", ".jinja", ".model", ".txt")
DROPPED_KEYS = (
    "_name_or_path", "_model_name_or_path", "name_or_path", "transformers_version",
    "is_local", "local_files_only",
)  # fmt: skip


def convert_gguf(gguf: Path, target: Path) -> None:
    """Writes the model of a GGUF file as bfloat16 safetensors with tokenizer and chat template.

    Raises:
        ModelError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # the stage shows its own
    try:
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
        )
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, local_files_only=True
        )
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as error:
        raise ModelError(
            f"{gguf} cannot be read as a GGUF language model: {error}",
            "use an architecture that transformers can dequantise, or a safetensors model",
        ) from error
    _forget_quantisation(model)
    model.config.architectures = [type(model).__name__]
    tokenizer.model_max_length = model.config.max_position_embeddings
    model.generation_config.bos_token_id = tokenizer.bos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.bfloat16().save_pretrained(target)
    tokenizer.save_pretrained(target)
    make_portable(target)


def _forget_quantisation(model: Any) -> None:
    """The loaded weights are dequantised; transformers would refuse to save or train them."""
    model.hf_quantizer = None
    for name in ("is_quantized", "quantization_method"):
        if name in vars(model):
            delattr(model, name)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config


def make_portable(folder: Path) -> None:
    """Removes paths, host-dependent flags and versions from the JSON files; sorts their keys."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        if path.exists():
            values = {k: v for k, v in read_json(path).items() if k not in DROPPED_KEYS}
            path.write_text(dump_json(dict(sorted(values.items())), indent=2) + "\n", "utf-8")


def copy_model(source: Path, target: Path) -> None:
    """Copies a local Hugging Face model: safetensors, configuration and tokenizer files only.

    Raises:
        ModelError: a needed file is missing, weights are not safetensors, or code would be needed.
    """
    check_model(source)
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix in SUFFIXES:
            shutil.copyfile(file, target / file.name)
    make_portable(target)


def check_model(folder: Path) -> None:
    """Raises `ModelError` unless ``folder`` holds a causal LM that needs no code of its own."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} has no config.json", "give a directory of a Hugging Face model")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ModelError(f"{folder / 'config.json'} is not JSON: {error}") from error
    if "auto_map" in config:
        raise ModelError(
            f"{folder} needs its own Python code (auto_map), which is never run",
            "use a model whose architecture is part of transformers",
        )
    if not list(folder.glob("*.safetensors")):
        others = sorted(p.name for p in folder.glob("*.bin"))
        raise ModelError(
            f"{folder} has no *.safetensors (pickled weights are never loaded: {others})",
            "convert the weights to safetensors",
        )
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = set(read_json(index)["weight_map"].values())
        missing = sorted(s for s in shards if not (folder / s).exists())
        if missing:
            raise ModelError(f"{folder} lacks the shards {', '.join(missing)}", "copy them too")
    if not any((folder / n).exists() for n in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{folder} has no tokenizer.json", "copy the tokenizer's files too")
