"""What tests of training over servers share; fixtures are imported by name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rollout_servers import ServerProcess
from safetensors.torch import load_file
from small_project import SMALL, make_project, pay_for_even_tokens, random_start, small_settings

from cahl_core.stage import StageRun
from cahl_core.training import joint
from cahl_core.training.places import Places


@pytest.fixture(scope="module")
def server(
    tiny_backbone: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """One prompt at a time, so that samples do not depend on who else asks."""
    work = tmp_path_factory.mktemp("server")
    with ServerProcess(tiny_backbone, work, SMALL["model"], "--batch", "1") as process:
        yield process


@pytest.fixture
def root(tmp_path: Path, tiny_backbone: Path) -> Path:
    make_project(tmp_path, tiny_backbone)
    random_start(tmp_path, small_settings())
    return tmp_path


@pytest.fixture
def paid(monkeypatch: pytest.MonkeyPatch) -> None:
    pay_for_even_tokens(monkeypatch)


def served(server: ServerProcess, **options: Any) -> dict[str, Any]:
    return {"servers": [server.url], "start_timeout": 5, "max_gap": 0.01, **options}


def train(root: Path, **settings: Any) -> list[dict[str, float]]:
    stage = StageRun("train", root, small_settings(**settings))
    return joint.train(stage, Places.of_project(root))


def adapters(root: Path) -> dict[str, torch.Tensor]:
    return {
        f"{role}.{key}": value
        for role in ("planner", "executor")
        for key, value in load_file(
            root / "models/cahl" / role / "adapter_model.safetensors"
        ).items()
    }


def same_bytes(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[key], second[key]) for key in first | second)
