"""What a running stage talks to: log, progress, metrics, artifacts, materialization metadata.

A stage module exposes ``run(stage: StageRun) -> None``; the CLI opens the `StageRun`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cahl_core.config import Settings


class StageRun:
    """One execution of one stage."""

    def __init__(self, name: str, root: Path, settings: Settings) -> None:
        self.name = name
        self.root = root
        self.settings = settings
        self.phases: dict[str, float] = {}

    def log(self, message: str) -> None:
        """One line for the user (stderr, Dagster's run log)."""
        print(f"[{self.name}] {message}", file=sys.stderr, flush=True)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Parameters of the MLflow run."""

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Metrics of the MLflow run, buffered; non-finite values are dropped with a warning."""

    def log_input(self, path: Path, name: str, context: str) -> None:
        """A dataset the stage reads, with its digest, as MLflow dataset input."""

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file or directory kept with the MLflow run (checkpoint, plot, report)."""

    def metadata(self, **values: Any) -> None:
        """Values shown on the Dagster materialization (numbers, text, links, markdown)."""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the wall time of the body to ``phases[name]`` (seconds)."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def cache_dir(self, key: str) -> Path:
        """A directory outside DVC's outs for resumable state, keyed by config + input digests."""
        path = self.root / ".cahl" / self.name / key
        path.mkdir(parents=True, exist_ok=True)
        return path
