"""What the processes of `worlds` run: the small project's stages, whole or cut short."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cahl_core.config import validate
from cahl_core.files import read_json, write_json
from cahl_core.stage import StageRun

Rows = list[dict[str, float]]


def prepare(root: Path, backbone: Path, values: dict[str, Any]) -> Path:
    """The small project with these settings, and random SFT adapters to start from."""
    from small_project import SMALL, make_project, random_start

    make_project(root, backbone)
    merged = {key: {**SMALL.get(key, {}), **values.get(key, {})} for key in {*SMALL, *values}}
    settings = validate(merged)
    random_start(root, settings)
    write_json(root / "settings.json", settings.model_dump(mode="json", by_alias=True))
    return root


def _stage(name: str, root: Path) -> StageRun:
    return StageRun(name, root, validate(read_json(root / "settings.json")))


def train(root: Path, trouble: Callable[[Any, int], None] | None = None) -> tuple[int, Rows]:
    """Trains; returns the world's size and the rows of metrics."""
    from small_project import pay_for_even_tokens

    from cahl_core.training import joint
    from cahl_core.training.distributed import Workers
    from cahl_core.training.places import Places
    from cahl_core.training.trainer import Trainer

    pay_for_even_tokens(pytest.MonkeyPatch())
    original = Trainer._step

    def step(self: Trainer, number: int, folder: Path) -> None:
        if trouble is not None:
            trouble(self.workers, number)
        original(self, number, folder)

    pytest.MonkeyPatch().setattr(Trainer, "_step", step)
    rows = joint.train(_stage("train", root), Places.of_project(root))
    return Workers().count, rows


def train_on_hosts(roots: list[Path], stop_after: int | None = None) -> tuple[int, Rows] | str:
    """Trains as processes of several hosts do: each has a project of its own, and sees no other."""
    root = roots[int(os.environ["RANK"])]
    return train(root) if stop_after is None else train_then_stop(root, stop_after)


def train_then_stop(root: Path, after: int) -> str:
    """Trains ``after`` steps and is interrupted, on all processes, before the next one."""

    def stop(workers: Any, number: int) -> None:
        if number == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(root, stop)
    return "stopped"


def sft(root: Path, stop_after: int | None = None) -> int:
    """Runs SFT, to its end or for so many optimizer steps; returns the world's size."""
    from cahl_core.training import sft as stage
    from cahl_core.training.distributed import Workers

    original, done = stage._step, [0]

    def step(*arguments: Any) -> Any:
        if done[0] == stop_after:
            raise KeyboardInterrupt
        done[0] += 1
        return original(*arguments)

    pytest.MonkeyPatch().setattr(stage, "_step", step)
    if stop_after is None:
        stage.run(_stage("sft", root))
    else:
        with pytest.raises(KeyboardInterrupt):
            stage.run(_stage("sft", root))
    return Workers().count


def lose_one(root: Path, how: str) -> tuple[int, Rows]:
    """Trains; in the second step rank 1 dies, or hangs."""

    def trouble(workers: Any, number: int) -> None:
        if number == 1 and workers.rank == 1:
            if how == "dies":
                os._exit(9)
            time.sleep(18)

    return train(root, trouble)


def held(root: Path) -> tuple[int, int]:
    """How many numbers of the decoder's layers, and of the adapters, this process holds."""
    from cahl_core.policy.backbone import Policy
    from cahl_core.training.distributed import Workers
    from cahl_core.training.sharding import shard

    workers, settings = Workers(), _stage("train", root).settings
    policy = Policy.load(root / "data/backbone", root / "models/sft", settings.model)
    shard(policy, workers)
    adapters = {id(p) for name in policy.adapters for p in policy.parameters(name)}
    layers = [p for p in policy.decoder.layers.parameters() if id(p) not in adapters]
    return sum(_part(p).numel() for p in layers), len(adapters)


def _part(parameter: Any) -> Any:
    """What this process keeps of it: FSDP2's part, DeepSpeed's, or all."""
    if hasattr(parameter, "to_local"):
        return parameter.to_local()
    return getattr(parameter, "ds_tensor", parameter)
