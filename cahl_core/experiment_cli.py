"""``cahl experiment``: run a declared grid, see how far it is, write its report.

Mounted by `cahl_core.cli`; imports nothing heavy at module level.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cahl_core.config import Settings
    from cahl_core.experiments.plan import Cell
    from cahl_core.experiments.runner import Experiment

GridName = Annotated[str, typer.Argument(help="A grid of configs/experiments, or a YAML file.")]
Root = Annotated[Path, typer.Option(help="Project directory, with params.yaml and configs/.")]
Only = Annotated[
    list[str] | None,
    typer.Option(metavar="ARM[/SEED]", help="Only these cells: ARM, ARM/SEED, '*/SEED', or an id."),
]

app = typer.Typer(
    name="experiment",
    help="Grids of arms, seeds and settings: run, status, report.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command()
def run(
    grid: GridName,
    only: Only = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the grid and show what would run.")
    ] = False,
    root: Root = Path(),
) -> None:
    """Run every cell that is not finished, one after the other, then write the report."""
    with _experiment("experiment run", grid, root) as (experiment, settings):
        from cahl_core.errors import TrainingError
        from cahl_core.experiments import runner
        from cahl_core.experiments.plan import select
        from cahl_core.stage import lock

        chosen = select(experiment.cells, only or [])
        if dry_run:
            _show(experiment, chosen)
            return
        with lock(experiment.root, f"experiment-{experiment.grid.name}"):
            errors = runner.run(experiment, chosen, runner.spawn, _say)
            _report(experiment, settings)
            _track(experiment, settings, failed=bool(errors))
        if errors:
            first, reason = next(iter(errors.items()))
            raise TrainingError(
                f"{len(errors)} of {len(chosen)} cells did not finish; {first}: {reason}",
                f"see `cahl experiment status {grid}`; run it again to try them again",
            )


@app.command()
def status(grid: GridName, only: Only = None, root: Root = Path()) -> None:
    """How far every cell is."""
    with _experiment("experiment status", grid, root) as (experiment, _):
        from cahl_core.experiments.plan import select

        _show(experiment, select(experiment.cells, only or []))


@app.command()
def report(grid: GridName, root: Root = Path()) -> None:
    """Write table, intervals, cross-play and plots of the finished cells again."""
    with _experiment("experiment report", grid, root) as (experiment, settings):
        _report(experiment, settings)


def _say(message: str) -> None:
    print(f"[experiment] {message}", file=sys.stderr, flush=True)


def _show(experiment: Experiment, chosen: list[Cell]) -> None:
    from cahl_core.experiments.runner import overview
    from cahl_core.tables import show_table

    grid = experiment.grid
    show_table(
        ("cell", "status", "steps", "sampled tokens", "note"), overview(experiment, chosen)
    )  # fmt: skip
    starts = {experiment.start(c) for c in chosen}
    missing = sum(not start.done() for start in starts)
    print(f"\n{len(chosen)} cells, {grid.budget.sampled_tokens:,} sampled tokens each; "
          f"{len(starts)} SFT starts, {missing} of them to be made")  # fmt: skip


def _report(experiment: Experiment, settings: Settings) -> None:
    from cahl_core.experiments.report import write_report

    path = write_report(experiment, settings)
    _say(f"report: {os.path.relpath(path)}")


def _track(experiment: Experiment, settings: Settings, failed: bool) -> None:
    from cahl_core.errors import RegistryError
    from cahl_core.experiments.report import FOLDER, headline
    from cahl_core.experiments.runs import CellTracker

    name = experiment.grid.name
    folder = experiment.root / FOLDER / name
    tracker = CellTracker(experiment.root, settings, name)
    try:
        tracker.log_experiment(folder, headline(folder), "FAILED" if failed else "FINISHED")
    except RegistryError as error:  # the report itself is written
        _say(f"warning: {error}")


@contextmanager
def _experiment(command: str, grid: str, root: Path) -> Iterator[tuple[Experiment, Settings]]:
    """The checked experiment and its base settings; failures end as those of a stage do."""
    from cahl_core import cli

    root = root.absolute()
    with cli._failures(command, root):
        from cahl_core.experiments.grid import load_grid

        declared = load_grid(root, grid)
        settings = cli._prepare("experiment", root, declared.base, [])
        from cahl_core.experiments.runner import Experiment

        yield Experiment.of(declared, root), settings
