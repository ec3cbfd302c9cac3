"""What a model's texts depend on, apart from what it is shown: the parts of `models.Model.key`."""

from __future__ import annotations

import ast
import importlib.metadata
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import cahl_core
from cahl_core.config import ModelSettings
from cahl_core.files import digest, tree_digest

PACKAGE = Path(cahl_core.__file__).parent
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


def arithmetic(settings: ModelSettings) -> dict[str, str]:
    """Device and number type the weights will have, and kernels: the texts may differ between them."""
    from cahl_core.policy import native
    from cahl_core.policy.backbone import pick_device, pick_dtype

    device = pick_device()
    dtype = pick_dtype(settings.dtype, device)
    return {
        "device": device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "kernels": "native" if native.serves(dtype, device) else "torch",
    }


def code_digest(parts: Sequence[str]) -> list[Any]:
    """Digests of modules and packages of this program, by name."""
    return [[part, _code(PACKAGE / part)] for part in parts]


def _code(path: Path) -> Any:
    code = (".py", ".c")
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.suffix in code)
    return [[f.name, tree_digest(f)] for f in files]


def folder_digest(path: Path) -> str:
    """`tree_digest`, read once per process while no file in it changes."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    stamps = tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)
    return _folder_digest(path, stamps)


@lru_cache(maxsize=64)
def _folder_digest(path: Path, stamps: tuple[Any, ...]) -> str:
    return tree_digest(path)


# What no text depends on: settings, which have their own place in a key, and what only judges texts.
PLUMBING = frozenset(
    {
        "config", "errors", "evaluate_config", "files", "lineage", "memory", "progress", "rollout_config",
        "stage", "stage_record", "tables", "tracking", "train_config",
        "api_bank_labels", "api_bank_rule", "judge", "model_keys", "outcomes", "qa_metrics",
    }
)  # fmt: skip


def reached_digest(module: str) -> str:
    """Digest of the code of a module of this program and of all it imports of it, directly or not."""
    found: set[Path] = set()
    _reach(module, found)
    return digest([[str(p.relative_to(PACKAGE)), tree_digest(p)] for p in sorted(found)])


def _reach(module: str, found: set[Path]) -> None:
    parts = module.split(".")
    path = PACKAGE.joinpath(*parts[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    known = parts[0] == PACKAGE.name and path.is_file() and parts[-1] not in PLUMBING
    if not known or path in found:
        return
    found.add(path)
    beside = module.split(".") if path.name == "__init__.py" else parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in _named(node):
            _reach(".".join([*beside, name.removeprefix(".")]) if name[0] == "." else name, found)


def _named(node: ast.AST) -> Iterator[str]:
    """Modules that a node names; with a dot in front those beside its own.

    A worker is started, and loads its parts, by the names of files beside it.
    """
    if isinstance(node, ast.ImportFrom) and node.module:
        yield node.module
        yield from (f"{node.module}.{name.name}" for name in node.names)
    elif isinstance(node, ast.Import):
        yield from (name.name for name in node.names)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str) and node.value.endswith(".py"):
            yield f".{node.value.removesuffix('.py')}"
    elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "_beside":
        names = (a.value for a in node.args if isinstance(a, ast.Constant))
        yield from (f".{name}" for name in names if isinstance(name, str))
