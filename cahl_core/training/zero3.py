"""Frozen layers partitioned over the processes by DeepSpeed (ZeRO stage 3), where a launch asks for it.

DeepSpeed is given a tree of its own: one unit per decoder layer, which holds the layer's frozen
parameters and runs its forward. What it never sees stays whole and ours: adapters, their optimizers
and gradients, embeddings, head. deepspeed is an optional dependency, imported in `partition` only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from cahl_core.errors import ConfigError
from cahl_core.policy.backbone import Policy

SHIPPED = "configs/deepspeed/zero3.json"
Numbers = Annotated[int, Field(ge=0)]


class Stage3(BaseModel):
    """``zero_optimization``: what changes memory and speed, and no result. Counts of parameters."""

    model_config = ConfigDict(extra="forbid", strict=True)
    stage: Literal[3]
    stage3_prefetch_bucket_size: Numbers = 50_000_000
    stage3_max_live_parameters: Numbers = 1_000_000_000
    stage3_max_reuse_distance: Numbers = 0
    stage3_param_persistence_threshold: Numbers = 100_000


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    zero_optimization: Stage3


def read_config(path: Path) -> Stage3:
    """DeepSpeed's configuration file.

    Raises:
        ConfigError: it cannot be read, or asks for what is not DeepSpeed's here.
    """
    try:
        return _File.model_validate(json.loads(path.read_text(encoding="utf-8"))).zero_optimization
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            places = (f"{'.'.join(map(str, e['loc']))}: {e['msg'].lower()}" for e in error.errors())
            reason = "; ".join(places)
        else:
            reason = str(error)
        raise ConfigError(
            f"DeepSpeed's configuration {path} cannot be used: {reason}",
            f"allowed: zero_optimization with {', '.join(Stage3.model_fields)}, as in {SHIPPED}; "
            "batch sizes, optimizers and dtype are this project's settings",
        ) from error


def partition(policy: Policy, replicated: Set[nn.Parameter], config: Stage3) -> None:
    """Partitions every decoder layer of one backbone in place.

    All processes have to call it together, and then run equally many passes.

    Args:
        replicated: parameters that every process keeps whole.

    Raises:
        ConfigError: deepspeed is not installed, or a layer's own parameters train.
    """
    frozen = [[p for p in lay.parameters() if p not in replicated] for lay in policy.decoder.layers]
    if any(p.requires_grad for layer in frozen for p in layer):
        raise ConfigError(
            "model.weights=two_models trains the layers themselves, and with DeepSpeed they are "
            "partitioned only where they are frozen: gradients and optimizer are not DeepSpeed's",
            "launch with configs/accelerate/fsdp2.yaml, or set model.weights=two_adapters",
        )
    units = [_Unit(*one) for one in zip(policy.decoder.layers, frozen, strict=True)]
    _give_to_deepspeed(policy, _Units(units), config)


class _Unit(nn.Module):
    """One layer as DeepSpeed sees it: gathered before it runs, forward and backward, then dropped.

    The layer calls it in place of its own forward. A checkpointed layer computes again inside the
    backward pass without calling it a second time.
    """

    def __init__(self, layer: nn.Module, frozen: list[nn.Parameter]) -> None:
        super().__init__()
        for number, parameter in enumerate(frozen):
            self.register_parameter(str(number), parameter)
        self._run = layer.forward
        vars(layer)["forward"] = self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)


class _Units(nn.Module):
    """All units. Calling it computes nothing and tells DeepSpeed that a new pass begins."""

    def __init__(self, units: list[_Unit]) -> None:
        super().__init__()
        self.units = nn.ModuleList(units)

    def forward(self) -> None:
        return None


def _give_to_deepspeed(policy: Policy, units: _Units, config: Stage3) -> None:
    try:
        import deepspeed
        from deepspeed import ops
    except ImportError as error:
        raise ConfigError(
            f"this run was launched with DeepSpeed, which cannot be imported: {error}",
            "pip install 'cahl[deepspeed]', or launch with configs/accelerate/fsdp2.yaml",
        ) from error
    if policy.device.type == "cpu":
        # else a C++ extension for sums in shared memory is compiled at start; nothing is summed here
        vars(ops)["__compatible_ops__"] = {}
    # without an optimizer stage 3 only partitions and gathers
    engine, *_ = deepspeed.initialize(model=units, config=_complete(config))

    def begin(*_: object) -> None:
        # the first layer's input has no gradient, so nothing told DeepSpeed that its backward ended
        engine.optimizer.release_backward_leftovers()
        units()

    policy.decoder.register_forward_pre_hook(begin)


def _complete(config: Stage3) -> Mapping[str, Any]:
    """With what DeepSpeed has to be told though it changes nothing here, or must not change."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        # the efficient one would replace torch's linear function in the whole process
        "zero_optimization": config.model_dump() | {"memory_efficient_linear": False},
    }
