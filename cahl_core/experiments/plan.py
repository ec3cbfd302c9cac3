"""The cells of a grid: one training run each, with its settings, its start and its digest."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.errors import ConfigError
from cahl_core.experiments.grid import START, CrossPlay, Grid, Variant, leaves
from cahl_core.files import digest, tree_digest
from cahl_core.profiles import load_settings
from cahl_core.train_config import FORMS
from cahl_core.training.data import split_files

TRAINED_ON = ("data/prepared/train", "data/backbone")
FORMAT = 1  # of what a cell leaves behind: raised when older results cannot be read any more


@dataclass(frozen=True)
class Cell:
    """One point of the grid.

    Attributes:
        id: ``arm-s<seed>``, with the variant in the middle where the grid has several.
        settings: all of them, as the trainer gets them.
        start: settings of the SFT start; cells with the same `start_key` share one.
        cross_play: set where this cell takes part in it.
    """

    id: str
    arm: str
    variant: str
    seed: int
    settings: Settings
    start: Settings
    grid: Grid
    cross_play: CrossPlay | None

    @property
    def trains(self) -> bool:
        """Whether anything is trained beyond the start."""
        return self.arm != START

    def facts(self) -> dict[str, Any]:
        """Everything the cell's results depend on beside its input files; dotted keys."""
        kept = self.settings.model_dump(mode="json", include={"seed", "model", "train"})
        if not self.trains:
            kept = {"model": kept["model"], "train": kept["train"]}
            for name in ("max_sampled_tokens", "steps", "snapshot_every"):
                del kept["train"][name]
        sft = self.start.model_dump(mode="json", include={"seed", "model", "sft"})
        play = self.cross_play.model_dump(mode="json") if self.cross_play else {}
        values = {
            **kept,
            "arm": self.arm,
            "start": sft,
            "evaluate": self.grid.evaluate.model_dump(mode="json"),
            "cross_play": {k: v for k, v in play.items() if k != "arms"},
            "format": FORMAT,
        }
        return dict(leaves(values))


def cells(grid: Grid, root: Path) -> list[Cell]:
    """All cells, seed by seed, so that an unfinished experiment has every arm of its first seeds.

    Raises:
        ConfigError: settings that do not hold under an arm or a variant, or two equal cells.
    """
    found: list[Cell] = []
    for seed in grid.seeds:
        for name, variant in grid.variants.items():
            for arm in _arms(grid, variant, seed):
                found.append(_cell(grid, root, arm, name, variant, seed))
    seen: dict[str, str] = {}
    for cell in found:
        other = seen.setdefault(digest(cell.facts()), cell.id)
        if other != cell.id:
            raise ConfigError(
                f"grid '{grid.name}': cells {other} and {cell.id} have the same settings",
                "variants must differ in what the arms they name depend on",
            )
    return found


def _arms(grid: Grid, variant: Variant, seed: int) -> Iterator[str]:
    arms = [a for a in grid.arms if variant.arms is None or a in variant.arms]
    shared = not grid.sft.per_seed and seed != grid.seeds[0]
    if grid.sft.evaluate and not shared and any(a not in FORMS for a in arms):
        yield START
    yield from arms


def _cell(grid: Grid, root: Path, arm: str, name: str, variant: Variant, seed: int) -> Cell:
    label = f"-{name}" if len(grid.variants) > 1 else ""
    play = grid.cross_play if grid.cross_play and arm in grid.cross_play.arms else None
    fixed = {
        "seed": seed,
        "model": {"form": arm if arm in FORMS else "hierarchical"},
        "train": {
            "arm": "joint" if arm == START else arm,
            "max_sampled_tokens": grid.budget.sampled_tokens,
            "steps": grid.budget.max_steps,
            "snapshot_every": play.every if play else 0,
        },
    }
    try:
        settings = load_settings(root, grid.base, _overrides(grid.set, variant.set, fixed))
    except ConfigError as error:
        raise ConfigError(
            f"grid '{grid.name}', variant '{name}', arm {arm}: {_one_line(error.what)}", error.hint
        ) from error
    first = seed if grid.sft.per_seed else grid.seeds[0]
    start = settings.model_copy(update={"seed": first})
    return Cell(f"{arm}{label}-s{seed}", arm, name, seed, settings, start, grid, play)


def _one_line(text: str) -> str:
    """The faults of settings in one sentence, without the values of whole sections."""
    lines = text.removeprefix("settings are not valid:\n").splitlines()
    short = (line.partition(", got {")[0].replace("Value error, ", "") for line in lines)
    return "; ".join(line.strip() for line in short)


def _overrides(*layers: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(f"{key}={json.dumps(value)}" for layer in layers for key, value in layer.items())


def select(found: Sequence[Cell], only: Sequence[str]) -> list[Cell]:
    """The cells that a pattern of ``only`` names: a cell id, ``ARM``, ``ARM/SEED`` or ``*/SEED``.

    Raises:
        ConfigError: a pattern that names no cell.
    """
    if not only:
        return list(found)
    for pattern in only:
        if not any(_names(pattern, cell) for cell in found):
            raise ConfigError(
                f"--only {pattern} names no cell of this grid",
                f"cells: {', '.join(c.id for c in found)}; or ARM, ARM/SEED, '*/SEED'",
            )
    return [c for c in found if any(_names(p, c) for p in only)]


def _names(pattern: str, cell: Cell) -> bool:
    names = (cell.id, cell.arm, f"{cell.arm}/{cell.seed}", f"{cell.arm}/{cell.variant}/{cell.seed}")
    return any(fnmatch(name, pattern) for name in names)


@dataclass(frozen=True)
class Inputs:
    """Digests of the files that cells read, by path relative to the project."""

    sums: Mapping[str, str]

    @classmethod
    def of(cls, grid: Grid, root: Path) -> Inputs:
        """Reads them all.

        Raises:
            StageInputError: a split or the backbone is missing.
        """
        prepared = root / "data/prepared"
        splits = ["train", *(s for s in dict.fromkeys(["dev", *grid.evaluate.splits]))]
        sums = {
            f"data/prepared/{split}": digest([tree_digest(f) for f in split_files(prepared, split)])
            for split in splits
        }
        return cls({**sums, "data/backbone": tree_digest(root / "data/backbone")})

    def key(self, cell: Cell) -> str:
        """Digest of everything the cell's results depend on, apart from code."""
        return digest([cell.facts(), dict(self.sums)])

    def train_key(self, cell: Cell) -> str:
        """Digest of what the training depends on, whatever it is evaluated on afterwards."""
        kept = cell.settings.model_dump(mode="json", include={"seed", "model", "train"})
        used = {k: v for k, v in self.sums.items() if k in (*TRAINED_ON, "data/prepared/dev")}
        return digest([kept, used, self.start_key(cell)])

    def start_key(self, cell: Cell) -> str:
        """Digest of what the SFT start depends on."""
        kept = cell.start.model_dump(mode="json", include={"seed", "model", "sft"})
        used = {k: v for k, v in self.sums.items() if k in TRAINED_ON}
        return digest([kept, used])


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs, as ``key old → new``."""
    keys = [k for k in {**old, **new} if old.get(k) != new.get(k)]
    return [f"{k} {_shown(old.get(k))} → {_shown(new.get(k))}" for k in sorted(keys)]


def _shown(value: Any) -> str:
    return "unset" if value is None else str(value)
