"""What a model's texts depend on, apart from what it is shown: the parts of `models.Model.key`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cahl_core
from cahl_core.config import ModelSettings
from cahl_core.files import tree_digest

LIBRARIES = ("torch", "transformers", "peft")
PROMPTS = ("protocol", "serving/agent.py", "serving/results.py", "serving/writers.py", "records.py",
           "roles.py")  # fmt: skip
LOCAL = (*PROMPTS, "policy", "evaluation/solvers.py", "evaluation/weights.py")
ENDPOINT = (*PROMPTS, "evaluation/endpoint.py", "evaluation/endpoint_agent.py",
            "evaluation/endpoint_native.py", "datasets/schemas.py")  # fmt: skip


def versions() -> dict[str, str]:
    """Versions that texts of local models depend on, without local build tags."""
    found = {name: importlib.metadata.version(name).partition("+")[0] for name in LIBRARIES}
    return {"cahl": cahl_core.__version__, **found}


def arithmetic(settings: ModelSettings) -> list[str]:
    """Device and number type the weights will have: the texts may differ between them."""
    from cahl_core.policy.backbone import pick_device, pick_dtype

    device = pick_device()
    return [device.type, str(pick_dtype(settings.dtype, device)).removeprefix("torch.")]


def code_digest(parts: Sequence[str]) -> list[Any]:
    """Digests of modules and packages of this program, by name."""
    package = Path(cahl_core.__file__).parent
    return [[part, _code(package / part)] for part in parts]


def _code(path: Path) -> Any:
    files = [path] if path.is_file() else sorted(path.glob("*.py"))
    return [[f.name, tree_digest(f)] for f in files]


def folder_digest(path: Path) -> str:
    """`tree_digest`, read once per process while no file in it changes."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    stamps = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _folder_digest(path, stamps)


@lru_cache(maxsize=64)
def _folder_digest(path: Path, stamps: tuple[Any, ...]) -> str:
    return tree_digest(path)
