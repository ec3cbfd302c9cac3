"""What a grid file declares: arms × variants × seeds, one token budget, one evaluation.

The schema is strict: an unknown key, an unknown arm or a grid that contradicts itself is one sentence,
said before anything runs.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, get_args

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from cahl_core.config import known_keys
from cahl_core.errors import ConfigError
from cahl_core.train_config import FORMS, Arm, Natural, Positive, Section

FOLDER = Path("configs/experiments")
ARMS: tuple[str, ...] = get_args(Arm)
START = "start"  # the SFT adapters, evaluated like an arm
# what the grid itself decides, and where
OWNED = {
    "seed": "seeds",
    "profile": "base",
    "train.arm": "arms",
    "model.form": "arms",
    "train.max_sampled_tokens": "budget.sampled_tokens",
    "train.steps": "budget.max_steps",
    "train.snapshot_every": "cross_play.every",
}


def _known_arm(name: str) -> str:
    if name not in ARMS:
        near = difflib.get_close_matches(name, ARMS, n=2, cutoff=0.5)
        hint = f"; nearest: {', '.join(near)}" if near else ""
        raise ValueError(f"there is no arm '{name}'{hint} (arms: {', '.join(ARMS)})")
    return name


def _own_settings(values: dict[str, Any]) -> dict[str, Any]:
    """Nested settings from nested or dotted keys; what the grid decides may not be among them."""
    tree: dict[str, Any] = {}
    for key, value in leaves(values):
        if key in OWNED:
            raise ValueError(f"'{key}' is decided by the grid's '{OWNED[key]}'")
        *parents, last = key.split(".")
        node = tree
        for part in parents:
            node = node.setdefault(part, {})
            if not isinstance(node, dict):
                raise ValueError(f"'{key}' is set both as a value and as a section")
        node[last] = value
    return tree


def leaves(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted keys and values of a nested mapping."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found += leaves(value, f"{name}.")
        else:
            found.append((name, value))
    return found


ArmName = Annotated[str, AfterValidator(_known_arm)]
Overrides = Annotated[dict[str, Any], AfterValidator(_own_settings)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.]*(-[a-z0-9_.]+)*$", max_length=60)]


class Variant(Section):
    """A named set of settings that the arms are run under."""

    set: Overrides = Field(default_factory=dict)
    arms: tuple[ArmName, ...] | None = Field(None, description="only these arms; None: all")


class Budget(Section):
    """What every cell may spend on training."""

    sampled_tokens: Positive = Field(
        description="tokens sampled in rollouts; training ends with the step that reaches it"
    )
    max_steps: Positive = Field(1000, description="upper bound of the steps, and of the schedules")


class Start(Section):
    """The supervised warm start that cells begin with (its settings are those of ``sft``)."""

    per_seed: bool = Field(True, description="a start of its own per seed, or the first seed's")
    evaluate: bool = Field(True, description="evaluate the start itself, as the row `start`")


class Evaluate(Section):
    """The final evaluation: the same tasks for all cells."""

    splits: tuple[str, ...] = Field(("dev",), min_length=1, description="of data/prepared")
    tasks: Positive = Field(32, description="the first so many of each split")
    samples: Natural = Field(4, description="sampled rollouts per task beside the greedy one")


class CrossPlay(Section):
    """Planner of one snapshot with the executor of another."""

    arms: tuple[ArmName, ...] = Field(("joint",), min_length=1)
    every: Positive = Field(5, description="steps between snapshots")
    snapshots: Annotated[int, Field(ge=2)] = Field(4, description="of these, evenly spaced")
    tasks: Positive = 16


class Grid(Section):
    """One experiment."""

    name: Name
    description: str = ""
    base: str = Field("quickstart", description="profile in configs/ that all cells start from")
    set: Overrides = Field(default_factory=dict, description="settings of all cells")
    arms: tuple[ArmName, ...] = Field(min_length=1)
    seeds: tuple[Natural, ...] = Field(min_length=1)
    variants: dict[Name, Variant] = Field(default_factory=lambda: {"default": Variant()})
    budget: Budget
    sft: Start = Start()
    evaluate: Evaluate = Evaluate()
    cross_play: CrossPlay | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Grid:
        _unique("arms", self.arms)
        _unique("seeds", self.seeds)
        _unique("evaluate.splits", self.evaluate.splits)
        if not self.variants:
            raise ValueError("variants is empty: leave it out, or name at least one")
        for name, variant in self.variants.items():
            _subset(f"variants.{name}.arms", variant.arms or (), self.arms)
        if self.cross_play:
            _subset("cross_play.arms", self.cross_play.arms, self.arms)
            if alone := [a for a in self.cross_play.arms if a in FORMS]:
                raise ValueError(
                    f"cross_play.arms: {alone[0]} has no planner and executor to cross"
                )
        return self


def _unique(what: str, values: Sequence[Any]) -> None:
    if repeated := sorted({v for v in values if values.count(v) > 1}):
        raise ValueError(f"{what} names {repeated[0]} twice, which would make duplicate cells")


def _subset(what: str, values: Sequence[str], allowed: Sequence[str]) -> None:
    if outside := [v for v in values if v not in allowed]:
        raise ValueError(f"{what} names {outside[0]}, which is not among the grid's arms")


def grid_path(root: Path, name: str) -> Path:
    """The file of a grid given by its name in configs/experiments, or by a path.

    Raises:
        ConfigError: there is none; names those that there are.
    """
    named = root / FOLDER / f"{name}.yaml"
    if "/" not in name and named.exists():
        return named
    if Path(name).is_file():
        return Path(name)
    known = sorted(p.stem for p in (root / FOLDER).glob("*.yaml"))
    near = difflib.get_close_matches(name, known, n=1)
    raise ConfigError(
        f"there is no grid '{name}', neither {named} nor a file of that path",
        (f"nearest: {near[0]}; " if near else "") + f"grids here: {', '.join(known) or 'none'}",
    )


def load_grid(root: Path, name: str) -> Grid:
    """Reads and checks a grid.

    Raises:
        ConfigError: no such grid, not YAML, an unknown key, a bad value; one line per fault.
    """
    path = grid_path(root, name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: top level is {type(values).__name__}, must be a mapping")
    try:
        return Grid.model_validate(values)
    except ValidationError as error:
        lines = list(dict.fromkeys(_explain(e) for e in error.errors()))
        raise ConfigError(
            f"{path} is not a valid grid: " + "; ".join(lines),
            "all keys and their meaning: docs/experiments.md",
        ) from error


def _explain(error: Any) -> str:
    location = ".".join(str(part) for part in error["loc"])
    if error["type"] == "missing":
        return f"'{location}' is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    if error["type"] != "extra_forbidden":
        return f"{location}: {error['msg']}, got {error['input']!r}"
    parts = [str(p) for p in error["loc"]]
    valid, name = _keys_beside(parts), parts[-1]
    near = difflib.get_close_matches(name, valid, n=3, cutoff=0.5) or valid
    return f"there is no key '{location}'; nearest valid: {', '.join(near)}"


def _keys_beside(parts: Sequence[str]) -> list[str]:
    if parts[0] == "variants":
        return list(Variant.model_fields)
    section = ".".join(parts[:-1])
    keys = [*known_keys(Grid), *(f"cross_play.{k}" for k in CrossPlay.model_fields)]
    return [k.rpartition(".")[2] for k in keys if k.rpartition(".")[0] == section]
