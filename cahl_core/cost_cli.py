"""``cahl plan-run``: what a run will take, before it starts.

Mounted by `cahl_core.cli`; imports nothing heavy at module level.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cahl_core.config import Settings
    from cahl_core.cost.prediction import Prediction
    from cahl_core.records import ToolTask

app = typer.Typer(rich_markup_mode=None)


@app.command("plan-run")
def plan_run(
    profile: Annotated[
        str | None, typer.Option(help="Overlay in configs/; default: that of params.yaml.")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.KEY=VALUE", help="Override one setting; repeatable."
        ),
    ] = None,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate", help="Measure this machine's speed, for the seconds."
        ),
    ] = True,
    again: Annotated[
        bool, typer.Option("--again", help="Measure even where a measurement is kept.")
    ] = False,
    signal: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="Share of groups with a signal: only these are trained on."
        ),
    ] = 1.0,
    against: Annotated[
        Path | None,
        typer.Option(help="Compare with a run's .cahl/reports/train_steps.jsonl."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
    root: Annotated[Path, typer.Option(help="Project directory.")] = Path(),
) -> None:
    """Predict tokens, memory and time of `cahl train` for these settings."""
    from cahl_core import cli

    root = root.absolute()
    with cli._failures("plan-run", root):
        settings = cli._prepare("plan-run", root, profile, overrides)
        from cahl_core.cost.report import against as compare
        from cahl_core.cost.report import as_json as machine
        from cahl_core.cost.report import comparison, lines, read_rows

        rows = read_rows(against) if against else None
        steps = len(rows) if rows else None
        prediction, free = _predict(root, settings, calibrated, again, signal, steps)
        found = compare(prediction, rows) if rows else None
        if as_json:
            import json

            print(json.dumps(machine(prediction, free) | ({"against": found} if found else {})))
            return
        for line in lines(prediction, free):
            print(line)
        for line in comparison(found) if found else ():
            print(line)


def _predict(
    root: Path,
    settings: Settings,
    calibrated: bool,
    again: bool,
    signal: float,
    steps: int | None,
) -> tuple[Prediction, int | None]:
    from dataclasses import replace

    import mlflow  # noqa: F401  as in a run, whose libraries take memory too

    from cahl_core.cost.calibration import calibrate
    from cahl_core.cost.prediction import STEPS, calibration_shape, predict, predict_seconds
    from cahl_core.memory import free_memory, resident_now
    from cahl_core.policy.backbone import pick_device
    from cahl_core.training import joint  # noqa: F401

    tasks, tokenizer = inputs(root, settings)
    device = pick_device()
    process = resident_now() if device.type == "cpu" else 0
    backbone, looked_at = root / "data/backbone", min(steps or STEPS, 4 * STEPS)
    prediction = predict(
        backbone, settings, tasks, tokenizer, signal=signal, process=process, steps=looked_at
    )
    free = free_memory(device)
    if free is not None and device.type == "cpu":
        free += process
    if calibrated:
        shape = calibration_shape(prediction.steps, settings)
        print("measuring this machine's speed, unless it is known …", file=sys.stderr)
        speed = calibrate(root, settings, shape, again=again)
        seconds = predict_seconds(prediction.steps, settings, speed, signal)
        prediction = replace(prediction, seconds=seconds, speed=speed)
    return prediction, free


def inputs(root: Path, settings: Settings) -> tuple[Sequence[ToolTask], Any]:
    """The prepared tasks and the backbone's tokenizer.

    Raises:
        StageInputError: nothing is prepared. ModelError: there is no backbone.
    """
    from transformers import AutoTokenizer

    from cahl_core.cost.skeleton import read_config
    from cahl_core.training.data import load_split

    read_config(root / "data/backbone")
    tasks = load_split(root / "data/prepared", "train")
    return tasks, AutoTokenizer.from_pretrained(str(root / "data/backbone"), local_files_only=True)
