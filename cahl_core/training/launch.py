"""What the launcher asked for, read from the environment that torchrun, accelerate or MPI leave.

Launchers that start fewer processes than they were asked for say nothing; these checks do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cahl_core.errors import ConfigError
from cahl_core.training.zero3 import SHIPPED, Stage3, read_config

WORLD = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
TIMEOUT = "CAHL_PROCESS_TIMEOUT"
DEEPSPEED = "ACCELERATE_USE_DEEPSPEED"
DEEPSPEED_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
UNSUPPORTED = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor, context and sequence parallelism",
}


@dataclass(frozen=True, slots=True)
class Launch:
    """What this process is one of.

    Attributes:
        processes: how many were asked for.
        sharded: whether the weights are to be sharded over them (FSDP2, or DeepSpeed).
        reshard: whether FSDP2 drops a layer's whole weights again after its forward pass.
        timeout: how long a process waits for the others.
        zero3: how DeepSpeed partitions; ``None`` where the launch is not DeepSpeed's.
    """

    processes: int
    sharded: bool
    reshard: bool
    timeout: timedelta
    zero3: Stage3 | None = None


def read_launch(environment: Mapping[str, str]) -> Launch:
    """Reads the environment of this process.

    Raises:
        ConfigError: it asks for what cannot be had, or for several processes where one was started.
    """
    found = (environment[key] for key in WORLD if environment.get(key))
    processes = int(next(found, "1"))
    _refuse_lone_process(environment, processes)
    _refuse_unsupported(environment)
    fsdp = _flag(environment, "ACCELERATE_USE_FSDP")
    if fsdp:
        _check_fsdp(environment)
    zero3 = _read_deepspeed(environment)
    return Launch(
        processes,
        fsdp or zero3 is not None,
        environment.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() not in ("false", "0"),
        _timeout(environment),
        zero3,
    )


@contextmanager
def without_deepspeed() -> Iterator[None]:
    """Inside, accelerate sees a plain launch: its plugin wants one engine for all that trains."""
    asked = os.environ.pop(DEEPSPEED, None)
    try:
        yield
    finally:
        if asked is not None:
            os.environ[DEEPSPEED] = asked


def _read_deepspeed(environment: Mapping[str, str]) -> Stage3 | None:
    if not _flag(environment, DEEPSPEED):
        return None
    file = environment.get(DEEPSPEED_FILE, "none")
    if file.lower() == "none":
        raise ConfigError(
            "this run was launched with DeepSpeed and without a DeepSpeed configuration",
            f"set deepspeed_config_file: {SHIPPED} in accelerate's configuration "
            "(configs/accelerate/deepspeed_zero3.yaml)",
        )
    return read_config(Path(file))


def _refuse_lone_process(environment: Mapping[str, str], processes: int) -> None:
    """`accelerate launch` for CPUs announces a meeting point, and starts one process only."""
    from_accelerate = "ACCELERATE_MIXED_PRECISION" in environment
    alone = processes == 1 and not any(key in environment for key in WORLD)
    if from_accelerate and alone and "MASTER_ADDR" in environment:
        raise ConfigError(
            "accelerate launch was asked for several processes and started one: without a GPU it "
            "leaves starting them to MPI",
            "torchrun --nproc_per_node 2 -m cahl_core.cli train, or accelerate launch --multi_gpu "
            "--num_processes 2 -m cahl_core.cli train; both work on CPUs too",
        )


def _refuse_unsupported(environment: Mapping[str, str]) -> None:
    for key, name in UNSUPPORTED.items():
        if _flag(environment, key):
            raise ConfigError(
                f"{name} ({key}) cannot be combined with packed rows",
                "allowed: data parallelism, and sharded weights by FSDP2 or DeepSpeed "
                "(configs/accelerate/ddp.yaml, fsdp2.yaml, deepspeed_zero3.yaml)",
            )


def _check_fsdp(environment: Mapping[str, str]) -> None:
    if (version := environment.get("FSDP_VERSION", "1")) != "2":
        raise ConfigError(
            f"fsdp_version {version} cannot shard a model whose adapters are switched",
            "set fsdp_version: 2 in accelerate's configuration (configs/accelerate/fsdp2.yaml)",
        )
    if _flag(environment, "FSDP_OFFLOAD_PARAMS"):
        raise ConfigError(
            "fsdp_offload_params: true is not supported: adapters and head stay on the device",
            "set fsdp_offload_params: false; more processes shard the weights further",
        )


def _timeout(environment: Mapping[str, str]) -> timedelta:
    text = environment.get(TIMEOUT, "1800")
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{TIMEOUT}={text!r} is not a number of seconds above 0")
    return timedelta(seconds=seconds)


def _flag(environment: Mapping[str, str], key: str) -> bool:
    return environment.get(key, "false").lower() in ("1", "true", "yes", "y", "on")
