"""The frozen backbone with its LoRA adapters: loading, switching, saving.

One backbone in memory serves planner, executor, and the frozen references of both: adapters are
switched, never reloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cahl_core.config import ModelSettings
from cahl_core.errors import ModelError
from cahl_core.policy import attention, checkpointing, checks, lora, norms, provenance
from cahl_core.policy.packing import Packed
from cahl_core.roles import ROLES, Role, roles_of
from cahl_core.signals import held_signals

__all__ = ["ROLES", "Policy", "Role", "load_backbone", "pick_device", "pick_dtype"]

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def pick_device() -> torch.device:
    """CUDA where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pick_dtype(setting: str, device: torch.device) -> torch.dtype:
    """``auto`` is bfloat16 where the processor multiplies in it, else float32."""
    if setting != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[setting]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    capability = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if capability() else torch.float32


class Policy:
    """Backbone plus adapters. ``model`` is the peft model, or the bare backbone without adapters."""

    def __init__(self, model: Any, tokenizer: Any, settings: ModelSettings) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.settings = settings
        self.adapters: tuple[str, ...] = tuple(getattr(model, "peft_config", {}))
        # by name in `causal`, where its own parameters are shards and decoding needs all of them
        self.whole: dict[str, Tensor] = {}

    @classmethod
    def load(
        cls,
        backbone: Path,
        adapters: Path | None,
        settings: ModelSettings,
        *,
        device: torch.device | None = None,
    ) -> Policy:
        """Loads the backbone and, if given, the adapter of every role of the form below ``adapters``.

        Raises:
            ModelError: a file is missing or broken, or an adapter is of another backbone.
        """
        model, tokenizer = load_backbone(backbone, settings, device)
        policy = cls(model, tokenizer, settings)
        if adapters is not None:
            roles = roles_of(settings.form)
            for role in roles:
                policy.add_adapter(role, adapters / role)
            policy.activate(roles[0])
        return policy

    @property
    def causal(self) -> Any:
        """The transformers causal LM, with LoRA layers in place if there are any."""
        return self.model.get_base_model() if self.adapters else self.model

    @property
    def decoder(self) -> Any:
        """The stack below the language-model head: token ids in, hidden states out."""
        return self.causal.base_model

    @cached_property
    def fingerprint(self) -> str:
        """Of the backbone's weights, adapters aside; to be asked before they are sharded or trained."""
        return provenance.fingerprint(self.causal)

    @property
    def head(self) -> Tensor:
        """The frozen output embedding, ``[vocabulary, hidden]``."""
        weight: Tensor = self.causal.get_output_embeddings().weight
        return weight

    @property
    def device(self) -> torch.device:
        return self.head.device

    @property
    def dtype(self) -> torch.dtype:
        return self.head.dtype

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 autocast where the backbone is bfloat16: the adapters stay float32."""
        if self.dtype == torch.bfloat16:
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return nullcontext()

    def hidden_states(self, row: Packed) -> Tensor:
        """Last hidden states ``[L, hidden]`` of a packed row, with the active adapter."""
        with self.autocast():
            output = self.decoder(**attention.packed_inputs(row, self.device), use_cache=False)
        hidden: Tensor = output.last_hidden_state[0, : len(row)]
        return hidden

    def new_adapter(self, name: str, seed: int) -> None:
        """Adds a fresh adapter; its first output is zero, its A matrices are drawn from ``seed``."""
        from peft import LoraConfig, get_peft_model

        shape = self.settings.lora
        config = LoraConfig(
            r=shape.rank,
            lora_alpha=shape.alpha,
            lora_dropout=shape.dropout,
            target_modules=list(shape.targets),
            task_type="CAUSAL_LM",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if self.adapters:
                self.model.add_adapter(name, config)
            else:
                self.model = get_peft_model(self.model, config, adapter_name=name)
        self._adapters_changed()

    def add_adapter(self, name: str, path: Path, *, trainable: bool = False) -> None:
        """Loads a saved adapter under ``name``.

        Raises:
            ModelError: it is missing, broken, or of another backbone (`provenance`).
        """
        from peft import PeftModel

        if not (path / "adapter_config.json").exists():
            raise ModelError(
                f"no adapter in {path} (adapter_config.json is missing)",
                "run `cahl sft` or `cahl train` first",
            )
        if self.settings.check_adapters:
            provenance.check_origin(path, self.settings.backbone, self.fingerprint)
        try:
            with held_signals():  # their exceptions vanish in the loader's C code
                if self.adapters:
                    self.model.load_adapter(str(path), name, is_trainable=trainable)
                else:
                    self.model = PeftModel.from_pretrained(
                        self.model, str(path), adapter_name=name, is_trainable=trainable
                    )
        except (RuntimeError, ValueError, OSError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ModelError(
                f"the adapter in {path} does not load on this backbone: {reason}",
                "adapters belong to the backbone they were trained on; train them again",
            ) from error
        self._adapters_changed()

    def remove_adapter(self, name: str) -> None:
        """Takes an adapter out of memory; one other has to remain."""
        self.model.delete_adapter(name)
        self._adapters_changed()

    def activate(self, name: str) -> None:
        """Makes ``name`` the adapter of the next forward passes, and the only one with gradients."""
        if name not in self.adapters:
            raise ModelError(f"no adapter '{name}'; loaded: {', '.join(self.adapters) or 'none'}")
        self.model.set_adapter(name)

    @contextmanager
    def using(self, name: str | None) -> Iterator[None]:
        """Runs the body with adapter ``name``; ``None``, or no adapters at all, is the backbone."""
        if name is None and self.adapters:
            with self.model.disable_adapter():
                yield
            return
        if name is not None and self.adapters:
            self.activate(name)
        yield

    def parameters(self, name: str | None) -> list[nn.Parameter]:
        """The tensors of one adapter in a fixed order; ``None``: all of the model that train."""
        if name is None:
            return [p for p in self.model.parameters() if p.requires_grad]
        marker = f".{name}."
        return [p for key, p in self.model.named_parameters() if marker in key]

    def save_adapter(self, name: str, path: Path) -> None:
        """Writes one adapter in peft's format (safetensors) directly into ``path``."""
        from peft import get_peft_model_state_dict
        from safetensors.torch import save_file

        path.mkdir(parents=True, exist_ok=True)
        tensors = get_peft_model_state_dict(
            self.model, adapter_name=name, save_embedding_layers=False
        )
        tensors = {k: v.detach().float().contiguous().cpu() for k, v in sorted(tensors.items())}
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
        provenance.write_origin(path, self.settings.backbone, self.fingerprint)
        config = self.model.peft_config[name]
        kept = (config.base_model_name_or_path, config.inference_mode, config.target_modules)
        # what depends on this machine or on hash order has no place in an artifact with a digest
        config.base_model_name_or_path, config.inference_mode = self.settings.backbone, True
        config.target_modules = sorted(self.settings.lora.targets)
        config.save_pretrained(str(path))
        config.base_model_name_or_path, config.inference_mode, config.target_modules = kept

    def _adapters_changed(self) -> None:
        self.adapters = tuple(self.model.peft_config)
        lora.install(self.model)


def load_backbone(
    path: Path, settings: ModelSettings, device: torch.device | None = None
) -> tuple[Any, Any]:
    """Model (frozen, evaluation mode) and tokenizer from a directory of safetensors.

    Raises:
        ModelError: the directory is not a model, its context is shorter than ``max_context``, or its
            architecture is none that packed rows compute exactly (`checks`).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()  # it loads in a second; the stage has bars of its own
    # peft 0.21 reads an attribute that transformers 5.23 renamed; it still works
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
    if not (path / "config.json").exists():
        raise ModelError(f"no model in {path} (config.json is missing)", "run `cahl fetch` first")
    device = device or pick_device()
    dtype = pick_dtype(settings.dtype, device)
    try:
        with held_signals():
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            model = AutoModelForCausalLM.from_pretrained(
                str(path),
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the model in {path} does not load: {reason}", "fetch it again"
        ) from error
    longest = getattr(model.config, "max_position_embeddings", settings.max_context)
    if settings.max_context > longest:
        raise ModelError(
            f"model.max_context={settings.max_context}, but {settings.backbone} has {longest}",
            f"set model.max_context to at most {longest}",
        )
    attention.register()
    model.requires_grad_(False)
    model.train(False)
    model = model.to(device)  # type: ignore[arg-type]
    checks.check_backbone(model, settings.max_context)
    norms.install(model)
    if settings.gradient_checkpointing:
        checkpointing.install(model)
    return model, tokenizer
