"""Runs the cells of a grid one after the other, each in a process of its own.

Finished cells whose settings and inputs are unchanged are kept; a half-done one goes on from its
checkpoints; a failing one is recorded and the others go on.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cahl_core.experiments.grid import Grid
from cahl_core.experiments.plan import Cell, Inputs, cells, changes
from cahl_core.experiments.spec import Spec
from cahl_core.experiments.state import (
    CellFolder,
    Shared,
    State,
    cell_folder,
    start_folder,
    status_of,
    superseded,
    training_folder,
)
from cahl_core.files import write_json

INTERRUPT_SECONDS = 5.0  # for a worker to end by the Ctrl-C that it got too
GRACE_SECONDS = 60.0  # for a worker to save its state after SIGTERM

Launch = Callable[[Path], int]
Log = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """A grid with its cells and the digests of what they read."""

    grid: Grid
    root: Path
    cells: Sequence[Cell]
    inputs: Inputs

    @classmethod
    def of(cls, grid: Grid, root: Path) -> Experiment:
        """Everything that can be wrong with a grid is said here, before anything runs.

        Raises:
            ConfigError, StageInputError: see `plan.cells` and `plan.Inputs.of`.
        """
        return cls(grid, root, cells(grid, root), Inputs.of(grid, root))

    def folder(self, cell: Cell) -> CellFolder:
        return cell_folder(self.root, self.grid.name, cell.id, self.inputs.key(cell))

    def status(self, cell: Cell) -> str:
        return status_of(self.folder(cell))

    def start(self, cell: Cell) -> Shared:
        return start_folder(self.root, self.inputs.start_key(cell))

    def training(self, cell: Cell) -> Shared:
        return training_folder(self.root, self.inputs.train_key(cell))

    def spec(self, cell: Cell, kind: str) -> Spec:
        """What the process for this cell, or for its start, is told."""
        return Spec(
            kind=kind,
            root=str(self.root),
            experiment=self.grid.name,
            cell=cell.id,
            tags={"arm": cell.arm, "variant": cell.variant, "seed": str(cell.seed)},
            trains=cell.trains,
            key=self.inputs.key(cell),
            start_key=self.inputs.start_key(cell),
            train_key=self.inputs.train_key(cell),
            settings=cell.settings.model_dump(mode="json", by_alias=True),
            start=cell.start.model_dump(mode="json", by_alias=True),
            facts=cell.facts(),
            inputs=dict(self.inputs.sums),
            evaluate=self.grid.evaluate.model_dump(mode="json"),
            cross_play=cell.cross_play.model_dump(mode="json") if cell.cross_play else None,
        )


def run(experiment: Experiment, chosen: Sequence[Cell], launch: Launch, log: Log) -> dict[str, str]:
    """Brings every chosen cell to an end; returns the error of each that failed."""
    errors: dict[str, str] = {}
    failed_starts: dict[Shared, str] = {}
    for number, cell in enumerate(chosen, 1):
        place = f"{number}/{len(chosen)} {cell.id}"
        status = experiment.status(cell)
        if status == "finished":
            log(f"{place}: finished before, kept")
            continue
        log(f"{place}: {_why(experiment, cell, status)}")
        start = experiment.start(cell)
        if start not in failed_starts and not start.done():
            log(f"{place}: first its SFT start {start.path.name}")
            if error := _launch_start(experiment, cell, launch):
                failed_starts[start] = error
        if start in failed_starts:
            errors[cell.id] = failed_starts[start]
            _record(experiment, cell, errors[cell.id])
            log(f"{place}: failed: {errors[cell.id]}")
            continue
        code = launch(_write_spec(experiment, cell, "cell"))
        state = _settled(experiment, cell, code)
        if state.status != "finished":
            errors[cell.id] = state.error
            log(f"{place}: {state.status}: {state.error}")
    return errors


def _why(experiment: Experiment, cell: Cell, status: str) -> str:
    """What is about to be done, and why results that were there do not count."""
    folder = experiment.folder(cell)
    known = {
        "half-done": "goes on where it was left",
        "failed": f"tried again; it had failed: {(folder.read() or State(cell.id)).error}",
        "damaged": "its result files are not those it finished with; they are made again",
        "running": "another process is at it",
    }
    if status == "damaged":
        for name in (folder.outcomes, folder.crossplay, folder.rows):
            name.unlink(missing_ok=True)
    if status in known:
        return known[status]
    old = superseded(folder)
    if old is None:
        return "runs"
    different = [*changes(old.facts, cell.facts()), *_changed(old.inputs, experiment.inputs.sums)]
    return f"runs, since its earlier results are of other inputs: {'; '.join(different)}"


def _changed(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return [f"{path} has changed" for path in new if old.get(path) != new[path]]


def _launch_start(experiment: Experiment, cell: Cell, launch: Launch) -> str:
    """Makes the cell's start; returns what went wrong."""
    code = launch(_write_spec(experiment, cell, "start"))
    start = experiment.start(cell)
    if start.done():
        return ""
    return f"its SFT start failed: {_last_line(start.traceback) or _ended(code)}"


def _record(experiment: Experiment, cell: Cell, error: str) -> None:
    folder = experiment.folder(cell)
    before = folder.read() or State(cell.id)
    facts, inputs = cell.facts(), dict(experiment.inputs.sums)
    folder.write(replace(before, status="failed", facts=facts, inputs=inputs, error=error))


def _settled(experiment: Experiment, cell: Cell, code: int) -> State:
    """The state after the process has ended; one that could not write it is recorded here."""
    folder = experiment.folder(cell)
    if experiment.status(cell) in ("pending", "half-done", "running"):
        before = folder.read() or State(cell.id)
        if before.status != "interrupted":
            _record(experiment, cell, _ended(code))
    return folder.read() or State(cell.id)


def _ended(code: int) -> str:
    if code < 0:
        hint = ": out of memory?" if code == -9 else ""
        return f"its process was ended by signal {-code}{hint}"
    return f"its process ended with code {code} before it could say why"


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").strip().splitlines() if path.exists() else []
    return lines[-1] if lines else ""


def _write_spec(experiment: Experiment, cell: Cell, kind: str) -> Path:
    spec = experiment.spec(cell, kind)
    path = spec.folder.path / f"{kind}.json"
    write_json(path, asdict(spec))
    return path


def spawn(spec: Path) -> int:
    """Runs the worker on ``spec`` and returns its exit code (negative: ended by that signal).

    The worker ends when this process does: it sees its stdin close. When this process is stopped, the
    worker is too, and is waited for, so that it leaves whole files.
    """
    command = [sys.executable, "-m", "cahl_core.experiments.worker", str(spec)]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            return process.wait()
        except BaseException as reason:
            if isinstance(reason, KeyboardInterrupt):  # Ctrl-C went to the worker too
                with suppress(subprocess.TimeoutExpired):
                    process.wait(INTERRUPT_SECONDS)
            process.terminate()
            with suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
                process.wait(GRACE_SECONDS)
            process.kill()
            raise


def overview(experiment: Experiment, chosen: Sequence[Cell]) -> list[tuple[str, ...]]:
    """A row per cell: id, status, steps, sampled tokens, what went wrong."""
    rows: list[tuple[str, ...]] = []
    for cell in chosen:
        folder = experiment.folder(cell)
        state = folder.read() or State(cell.id)
        steps, tokens = progress_of(folder)
        note = state.error if state.status in ("failed", "interrupted") else ""
        rows.append((cell.id, experiment.status(cell), steps, tokens, note))
    return rows


def progress_of(folder: CellFolder) -> tuple[str, str]:
    """Steps and sampled tokens of a cell whose training has ended, else empty."""
    if not folder.rows.exists():
        return "", ""
    lines = folder.rows.read_text(encoding="utf-8").splitlines()
    tokens = sum(json.loads(line).get("sampled_tokens") or 0 for line in lines)
    return str(len(lines)), f"{tokens:.0f}"
