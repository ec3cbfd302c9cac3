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

from cahl_core.experiments.comparison import (
    Outcomes,
    compare,
    label_of,
    reference_of,
    tokens_of,
)
from cahl_core.experiments.crossplay import Matrix, diagonal_gain, matrix
from cahl_core.experiments.measures import observations
from cahl_core.experiments.notes import notes
from cahl_core.experiments.plan import Cell
from cahl_core.experiments.runner import Experiment
from cahl_core.experiments.state import State
from cahl_core.experiments.statistics import LEVEL, ROUNDS, Interval, difference
from cahl_core.files import read_json, read_jsonl

CROSSED = ("reward", "success")


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
        "reference": reference_of(experiment.cells),
        "cells": found,
        "starts": _starts(experiment),
        "tables": _tables(experiment, outcomes),
        "cross_play": _cross_play(experiment, finished),
        "curves": {c.id: _curve(experiment, c) for c in finished if c.trains},
    }
    return {**results, "notes": notes(results)}


def _tables(
    experiment: Experiment, outcomes: Mapping[str, Sequence[dict[str, Any]]]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """By split and mode; each row with what its cells sampled in training."""
    options = experiment.grid.evaluate
    tables: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for split in options.splits:
        for mode in ("greedy", "sampled")[: 2 if options.samples else 1]:
            chosen = {
                cell: [o for o in found if o["split"] == split and o["mode"] == mode]
                for cell, found in outcomes.items()
            }
            rows = compare(experiment.cells, chosen)
            for row in rows:
                row["sampled_tokens"] = [
                    tokens_of(experiment.folder(c))
                    for c in experiment.cells
                    if c.id in outcomes and label_of(c) == row["row"]
                ]
            tables.setdefault(split, {})[mode] = rows
    return tables


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
