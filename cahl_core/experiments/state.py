"""What is known of a cell on disk: its directory, its state file, whether its results still hold.

A cell's directory is named after the digest of everything its results depend on, so results of other
settings are never taken for its own, and are found again when the settings come back.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cahl_core.errors import DataError, StageInputError
from cahl_core.files import read_json, sha256, storage_errors, tree_digest, write_json

WORK = Path(".cahl/experiments")
PRODUCTS = ("outcomes.jsonl", "rows.jsonl", "crossplay.jsonl")
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class State:
    """The state file of a cell.

    Attributes:
        status: pending, running, finished, failed, interrupted; `status_of` adds what only a look at
            the files can tell.
        facts, inputs: what the results depend on (`Cell.facts`, `Inputs.sums`).
        products: sha256 of the result files, written with ``finished``.
        about: code, versions, device and durations of the process that finished it.
    """

    cell: str
    status: str = "pending"
    facts: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    attempts: int = 0
    error: str = ""
    updated: float = 0.0
    mlflow_run_id: str = ""
    products: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CellFolder:
    """The files of one cell at one digest."""

    path: Path

    @property
    def state_file(self) -> Path:
        return self.path / "state.json"

    @property
    def outcomes(self) -> Path:
        """One line per task, split, mode and sample of the final evaluation."""
        return self.path / "outcomes.jsonl"

    @property
    def rows(self) -> Path:
        """One line per training step, as the training left it."""
        return self.path / "rows.jsonl"

    @property
    def crossplay(self) -> Path:
        return self.path / "crossplay.jsonl"

    @property
    def traceback(self) -> Path:
        return self.path / "error.log"

    def read(self) -> State | None:
        """The state; ``None`` where there is none that can be read."""
        try:
            values = read_json(self.state_file)
            return State(**values)
        except (OSError, DataError, TypeError):
            return None

    def write(self, state: State) -> State:
        """Replaces the state file as a whole."""
        state = replace(state, updated=time.time())
        write_json(self.state_file, asdict(state))
        return state

    def products(self) -> dict[str, str]:
        """sha256 of the result files that are there."""
        files = [self.path / name for name in PRODUCTS]
        return {f.name: sha256(f) for f in files if f.exists()}

    def lock(self) -> AbstractContextManager[None]:
        """Held by the process that works on the cell."""
        return held(self.path)

    @property
    def busy(self) -> bool:
        """Whether a process holds the lock now."""
        if not (self.path / "lock").exists():
            return False
        with (self.path / "lock").open("a+") as stream:
            return not _try_lock(stream)


@dataclass(frozen=True)
class Shared:
    """A directory that cells share: an SFT start, or a training run whatever it is evaluated on.

    ``made`` names the directory with the weights; the mark that they are finished holds its digest.
    """

    path: Path
    made: str

    @property
    def weights(self) -> Path:
        return self.path / self.made

    @property
    def traceback(self) -> Path:
        return self.path / "error.log"

    @property
    def mark(self) -> Path:
        return self.path / "finished.json"

    def done(self) -> bool:
        """Whether the weights are there as they were finished."""
        try:
            return bool(read_json(self.mark)["weights"] == tree_digest(self.weights))
        except (OSError, DataError, KeyError, TypeError):
            return False

    def finish(self, **facts: Any) -> None:
        """Marks the weights as finished."""
        write_json(self.mark, {"weights": tree_digest(self.weights), **facts})


@contextmanager
def held(folder: Path, seconds: float = LOCK_SECONDS) -> Iterator[None]:
    """Holds the folder's lock; waits for a process that is just ending.

    Raises:
        StageInputError: another process holds it for longer.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / "lock").open("a+")
    with stream:
        deadline = time.monotonic() + seconds
        while not _try_lock(stream):
            if time.monotonic() > deadline:
                raise StageInputError(
                    f"another process works in {folder}", "wait for it, or stop it"
                )
            time.sleep(0.2)
        yield


def _try_lock(stream: Any) -> bool:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def cell_folder(root: Path, experiment: str, cell: str, key: str) -> CellFolder:
    """Where the cell works when its digest is ``key``."""
    return CellFolder(root / WORK / experiment / cell / key)


def start_folder(root: Path, key: str) -> Shared:
    """The SFT start of this digest: a project directory of its own, for all experiments."""
    return Shared(root / WORK / ".starts" / key, "models/sft")


def training_folder(root: Path, key: str) -> Shared:
    """The training run of this digest, for all experiments."""
    return Shared(root / WORK / ".trained" / key, "adapters")


def status_of(folder: CellFolder) -> str:
    """finished, damaged, failed, running, half-done or pending, as the files have it."""
    state = folder.read()
    if state is None:
        return "half-done" if folder.rows.exists() else "pending"
    if state.status == "finished":
        return "finished" if state.products == folder.products() else "damaged"
    if folder.busy:
        return "running"
    return "failed" if state.status == "failed" else "half-done"


def superseded(folder: CellFolder) -> State | None:
    """The newest state of the same cell under another digest, ``None`` where there is none."""
    others = [CellFolder(p) for p in folder.path.parent.glob("*") if p != folder.path]
    states = [state for other in others if (state := other.read())]
    return max(states, key=lambda s: s.updated, default=None)
