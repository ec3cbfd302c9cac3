"""What the finished cells of an experiment say: tables with intervals, cross-play, curves, notes."""

from __future__ import annotations

import csv
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cahl_core.experiments.crossplay import Matrix, diagonal_gain, matrix
from cahl_core.experiments.grid import START
from cahl_core.experiments.measures import MEASURES, observations
from cahl_core.experiments.notes import notes
from cahl_core.experiments.plan import Cell
from cahl_core.experiments.runner import Experiment
from cahl_core.experiments.state import CellFolder, State
from cahl_core.experiments.statistics import LEVEL, ROUNDS, Interval, difference, estimate
from cahl_core.files import read_json, read_jsonl

REFERENCE = "joint"
CROSSED = ("reward", "success")
Outcomes = dict[int, list[dict[str, Any]]]  # by seed


def collect(experiment: Experiment) -> dict[str, Any]:
    """Everything the report shows, as JSON values; computed from the cells' files alone."""
    grid = experiment.grid
    found = [_cell(experiment, cell) for cell in experiment.cells]
    finished = [c for c, entry in zip(experiment.cells, found, strict=True)
                if entry["status"] == "finished"]  # fmt: skip
    outcomes = {
        cell.id: list(read_jsonl(experiment.folder(cell).outcomes)) for cell in finished
    }  # fmt: skip
    results: dict[str, Any] = {
        "experiment": grid.name,
        "description": grid.description,
        "grid": grid.model_dump(mode="json"),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "intervals": {"level": LEVEL, "rounds": ROUNDS, "over": "seeds and tasks, crossed"},
        "inputs": dict(experiment.inputs.sums),
        "reference": _reference(experiment),
        "cells": found,
        "starts": _starts(experiment),
        "tables": {
            split: {
                mode: _table(experiment, finished, outcomes, split, mode)
                for mode in ("greedy", "sampled")
                if mode == "greedy" or grid.evaluate.samples
            }
            for split in grid.evaluate.splits
        },
        "cross_play": _cross_play(experiment, finished),
        "curves": {c.id: _curve(experiment, c) for c in finished if c.trains},
    }
    return {**results, "notes": notes(results)}


def label_of(cell: Cell) -> str:
    """The name of a row: the arm, and the variant where the grid has several."""
    return cell.arm if len(cell.grid.variants) == 1 else f"{cell.arm} / {cell.variant}"


def _reference(experiment: Experiment) -> str:
    labels = list(dict.fromkeys(label_of(c) for c in experiment.cells if c.trains))
    return next((x for x in labels if x.split(" / ")[0] == REFERENCE), labels[0])


def _cell(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    folder = experiment.folder(cell)
    state = folder.read() or State(cell.id)
    rows = list(read_jsonl(folder.rows)) if folder.rows.exists() else []
    return {
        "id": cell.id,
        "row": label_of(cell),
        "arm": cell.arm,
        "variant": cell.variant,
        "seed": cell.seed,
        "trains": cell.trains,
        "status": experiment.status(cell),
        "error": state.error,
        "attempts": state.attempts,
        "key": experiment.inputs.key(cell),
        "start": experiment.inputs.start_key(cell),
        "training": experiment.inputs.train_key(cell),
        "steps": len(rows),
        "sampled_tokens": sum(r.get("sampled_tokens") or 0 for r in rows),
        "skipped_updates": sum(r.get("skipped_updates") or 0 for r in rows),
        "mlflow_run_id": state.mlflow_run_id,
        **state.about,
    }


def _starts(experiment: Experiment) -> dict[str, Any]:
    starts = {experiment.start(cell) for cell in experiment.cells}
    return {s.path.name: read_json(s.mark) for s in starts if s.mark.exists()}


# --- tables --------------------------------------------------------------------------------------


def _table(
    experiment: Experiment,
    finished: Sequence[Cell],
    outcomes: Mapping[str, Sequence[dict[str, Any]]],
    split: str,
    mode: str,
) -> list[dict[str, Any]]:
    rows: dict[str, Outcomes] = defaultdict(dict)
    cells: dict[str, list[Cell]] = defaultdict(list)
    for cell in finished:
        own = [o for o in outcomes[cell.id] if o["split"] == split and o["mode"] == mode]
        rows[label_of(cell)][cell.seed] = own
        cells[label_of(cell)].append(cell)
    tasks = list(dict.fromkeys(o["task"] for r in rows.values() for s in r.values() for o in s))
    reference = _reference(experiment)
    table = []
    for label in dict.fromkeys(label_of(c) for c in experiment.cells):
        if label in rows:
            values, differences = {}, {}
            for name in MEASURES:
                mine = observations(rows[label], tasks, name)
                values[name] = asdict(estimate(mine))
                if label != reference and reference in rows:
                    mine = observations(
                        _repeated(experiment, cells[label], rows[label]), tasks, name
                    )
                    differences[name] = asdict(
                        difference(mine, observations(rows[reference], tasks, name))
                    )
            table.append(
                {
                    "row": label,
                    "seeds": sorted(rows[label]),
                    "tasks": len(tasks),
                    "void": sum(o["void"] for s in rows[label].values() for o in s),
                    "sampled_tokens": [_tokens(experiment.folder(c)) for c in cells[label]],
                    "measures": values,
                    "less_reference": differences,
                }
            )
    return table


def _repeated(experiment: Experiment, cells: Sequence[Cell], own: Outcomes) -> Outcomes:
    """A start that all seeds share is every seed's start when it is compared with what came of it."""
    if cells[0].arm != START or experiment.grid.sft.per_seed:
        return own
    (only,) = own.values()
    return dict.fromkeys(experiment.grid.seeds, only)


def _tokens(folder: CellFolder) -> float:
    if not folder.rows.exists():
        return 0.0
    return float(sum(r.get("sampled_tokens") or 0 for r in read_jsonl(folder.rows)))


# --- cross-play ----------------------------------------------------------------------------------


def _cross_play(experiment: Experiment, finished: Sequence[Cell]) -> dict[str, Any]:
    rows: dict[str, Outcomes] = defaultdict(dict)
    for cell in finished:
        path = experiment.folder(cell).crossplay
        if cell.cross_play and path.exists():
            rows[label_of(cell)][cell.seed] = list(read_jsonl(path))
    found: dict[str, Any] = {}
    for label, by_seed in rows.items():
        tables = {name: matrix(by_seed, name) for name in CROSSED}
        found[label] = {name: _matrix(m, by_seed, name) for name, m in tables.items() if m}
    return {label: tables for label, tables in found.items() if tables}


def _matrix(found: Matrix, by_seed: Outcomes, name: str) -> dict[str, Any]:
    return {
        "seeds": list(found.seeds),
        "left_out": sorted(set(by_seed) - set(found.seeds)),
        "steps": {str(s): steps for s, steps in found.steps.items()},
        "tasks": len({o["task"] for o in by_seed[found.seeds[0]]}),
        "planner_by_executor": _numbers(found.values),
        "by_seed": {str(s): _numbers(t) for s, t in zip(found.seeds, found.by_seed, strict=True)},
        **diagonal_gain(found.values),
        "gap_interval": asdict(_gap(found, by_seed, name)),
    }


def _gap(found: Matrix, by_seed: Outcomes, name: str) -> Interval:
    """Diagonal less off-diagonal, task by task, with its interval."""
    tasks = list(dict.fromkeys(o["task"] for o in by_seed[found.seeds[0]]))
    parts = []
    for diagonal in (True, False):
        chosen = {
            seed: [
                {**o, "runs": 1, "reward": o[name]}
                for o in by_seed[seed]
                if (o["planner"] == o["executor"]) == diagonal
            ]
            for seed in found.seeds
        }
        parts.append(observations(chosen, tasks, "reward"))
    return difference(parts[0], parts[1])


def _numbers(table: Any) -> list[list[float | None]]:
    return [[None if np.isnan(v) else round(float(v), 6) for v in row] for row in table]


# --- curves --------------------------------------------------------------------------------------


def _curve(experiment: Experiment, cell: Cell) -> dict[str, Any]:
    """Training rewards per step, and the alignment metrics on the dev tasks, over sampled tokens."""
    rows = list(read_jsonl(experiment.folder(cell).rows))
    tokens = np.cumsum([r.get("sampled_tokens") or 0 for r in rows]).tolist()
    names = ("planner_reward", "executor_reward", "task_success")
    training = {n: [r.get(n) for r in rows] for n in names}
    after = [0.0, *tokens]
    dev: dict[str, list[Any]] = defaultdict(list)
    for row in _read_csv(experiment.training(cell).path / "alignment.csv"):
        dev["tokens"].append(after[min(int(row["step"]), len(tokens))])
        for key, value in row.items():
            if key != "step":
                dev[key].append(float(value) if value else None)
    return {"tokens": tokens, "training": training, "dev": dict(dev)}


def _read_csv(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))
