"""What ``dvc.yaml`` declares and ``dvc.lock`` recorded: stages, their files and their md5 sums.

Reads both files as plain YAML, so neither the CLI nor the Dagster definitions import DVC.
"""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cahl_core.errors import DataError, StageInputError

CODE = "cahl_core"


@dataclass(frozen=True)
class DvcStage:
    """One stage of ``dvc.yaml`` with ``${key}`` filled in from ``params.yaml``."""

    name: str
    cmd: str
    description: str
    deps: tuple[str, ...]
    outs: tuple[str, ...]
    metrics: tuple[str, ...]
    plots: tuple[str, ...]
    params: Mapping[str, tuple[str, ...]]
    meta: Mapping[str, Any]

    @property
    def products(self) -> tuple[str, ...]:
        """Everything the stage writes, metrics and plots included."""
        return self.outs + self.metrics + self.plots

    @property
    def code(self) -> tuple[str, ...]:
        """The dependencies that are this project's own code."""
        return tuple(d for d in self.deps if d == CODE or d.startswith(f"{CODE}/"))


@dataclass(frozen=True)
class Plot:
    """One plot of ``dvc.yaml``: columns of a CSV file over ``x``."""

    name: str
    file: str
    x: str
    columns: tuple[str, ...]
    title: str
    x_label: str
    y_label: str
    bars: bool


def read_plots(root: Path) -> list[Plot]:
    """The top-level plots of ``root/dvc.yaml``, one for each file they draw."""
    plots = []
    for entry in _read_yaml(root / "dvc.yaml").get("plots") or []:
        for name, body in entry.items():
            for file, columns in body["y"].items():
                plots.append(_plot(name, file, columns, body))
    return plots


def _plot(name: str, file: str, columns: str | list[str], body: Mapping[str, Any]) -> Plot:
    return Plot(
        name=name,
        file=file,
        x=body["x"],
        columns=(columns,) if isinstance(columns, str) else tuple(columns),
        title=body.get("title", name),
        x_label=body.get("x_label", body["x"]),
        y_label=body.get("y_label", ""),
        bars="bar" in body.get("template", ""),
    )


def read_stages(root: Path) -> dict[str, DvcStage]:
    """The stages of ``root/dvc.yaml`` in file order; none where there is no such file.

    Raises:
        DataError: the file is not YAML, or a stage has a form this project does not use.
    """
    declared = _read_yaml(root / "dvc.yaml").get("stages") or {}
    values = _read_yaml(root / "params.yaml")
    return {name: _stage(name, body, values) for name, body in declared.items()}


def producer(path: str, stages: Mapping[str, DvcStage]) -> str | None:
    """The stage that writes ``path``, or a directory that ``path`` lies in."""
    for stage in stages.values():
        if any(path == made or path.startswith(f"{made}/") for made in stage.products):
            return stage.name
    return None


def upstream(stage: DvcStage, stages: Mapping[str, DvcStage]) -> tuple[str, ...]:
    """The stages whose files ``stage`` reads, in the order they are declared."""
    makers = {producer(dep, stages) for dep in stage.deps}
    return tuple(name for name in stages if name in makers)


def require_inputs(name: str, root: Path) -> None:
    """Checks that everything the stage reads is on disk.

    Raises:
        StageInputError: names what is missing and the command that makes it.
    """
    stages = read_stages(root)
    if name not in stages:
        return
    missing = [dep for dep in stages[name].deps if not (root / dep).exists()]
    if not missing:
        return
    makers = {producer(dep, stages) for dep in missing}
    commands = [f"cahl {s}" for s in stages if s in makers]
    hint = f"run first: {' && '.join(commands)} (or everything: dvc repro {name})"
    if None in makers:
        files = [dep for dep in missing if producer(dep, stages) is None]
        hint = f"part of the source tree, restore it: git checkout -- {' '.join(files)}"
    raise StageInputError(f"stage '{name}' needs {', '.join(missing)}, not in {root}", hint)


def locked_sums(root: Path) -> dict[str, str]:
    """The md5 of every output recorded in ``dvc.lock``, by path."""
    stages = _read_yaml(root / "dvc.lock").get("stages") or {}
    return {
        out["path"]: out["md5"]
        for stage in stages.values()
        for out in stage.get("outs") or []
        if "md5" in out
    }


def sums(paths: Iterable[str], root: Path, locked: Mapping[str, str]) -> dict[str, str]:
    """The md5 of each path, from ``locked`` where it is there, else from the files themselves."""
    return {
        path: locked.get(path) or dvc_md5(root / path)
        for path in paths
        if path in locked or (root / path).exists()
    }


def dvc_md5(path: Path) -> str:
    """The sum DVC gives a file, or a directory (``….dir``: md5 of its sorted listing)."""
    if path.is_file():
        return _file_md5(path)
    files = sorted((str(p.relative_to(path)), p) for p in path.rglob("*") if p.is_file())
    listing = [{"md5": _file_md5(p), "relpath": name} for name, p in files]
    return hashlib.md5(json.dumps(listing, sort_keys=True).encode()).hexdigest() + ".dir"


def _file_md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _read_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: top level is {type(content).__name__}, must be a mapping")
    return content


def _stage(name: str, body: Mapping[str, Any], values: Mapping[str, Any]) -> DvcStage:
    if "cmd" not in body:
        raise DataError(
            f"dvc.yaml: stage '{name}' has no cmd",
            "foreach and matrix stages cannot be derived as assets; declare each stage",
        )
    body = _fill(dict(body), values, name)
    return DvcStage(
        name=name,
        cmd=body["cmd"],
        description=str(body.get("desc", "")),
        deps=_paths(body.get("deps")),
        outs=_paths(body.get("outs")),
        metrics=_paths(body.get("metrics")),
        plots=_paths(body.get("plots")),
        params=_params(body.get("params")),
        meta=body.get("meta") or {},
    )


def _paths(entries: Iterable[Any] | None) -> tuple[str, ...]:
    return tuple(next(iter(e)) if isinstance(e, dict) else str(e) for e in entries or ())


def _params(entries: Iterable[Any] | None) -> dict[str, tuple[str, ...]]:
    files: dict[str, tuple[str, ...]] = {}
    for entry in entries or ():
        named = entry if isinstance(entry, dict) else {"params.yaml": [entry]}
        for file, keys in named.items():
            files[file] = files.get(file, ()) + tuple(keys or ())
    return files


def _fill(value: Any, values: Mapping[str, Any], stage: str) -> Any:
    if isinstance(value, dict):
        return {_fill(k, values, stage): _fill(v, values, stage) for k, v in value.items()}
    if isinstance(value, list):
        return [_fill(v, values, stage) for v in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"\$\{([^}]+)\}", lambda m: _lookup(m.group(1).strip(), values, stage), value)


def _lookup(key: str, values: Mapping[str, Any], stage: str) -> str:
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, Mapping) or part not in found:
            raise DataError(
                f"dvc.yaml: stage '{stage}' uses ${{{key}}}, which params.yaml does not set"
            )
        found = found[part]
    return str(found)


def git_state(root: Path) -> tuple[str, bool] | None:
    """The commit of a checkout, and whether tracked files differ from it; ``None`` outside of git."""

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return None
