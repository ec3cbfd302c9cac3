"""What a running stage talks to: log, metrics, artifacts, materialization metadata.

A stage module exposes ``run(stage: StageRun) -> None``; the CLI opens the `StageRun` with
`open_stage`, which connects it to MLflow, to Dagster where the stage runs below it, and to the
sidecar ``.cahl/stages/<stage>.json``. A `StageRun` that was only constructed keeps to the terminal.
"""

from __future__ import annotations

import fcntl
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.errors import CahlError, StageInputError
from cahl_core.files import storage_errors
from cahl_core.lineage import dvc_md5, git_state, locked_sums, read_stages, sums
from cahl_core.memory import PhaseMemory, gib
from cahl_core.stage_record import Record, peak_rss, was_stopped

if TYPE_CHECKING:
    from dagster_pipes import PipesContext

    from cahl_core.tracking import Status, Tracker

# The sections of the settings a stage reads; dvc.yaml lists the same ones as its params.
SECTIONS: dict[str, tuple[str, ...]] = {
    "fetch": ("fetch", "model.backbone"),
    "prepare": ("prepare", "fetch.use", "model"),
    "sft": ("seed", "model", "sft"),
    "train": ("seed", "model", "train"),
    "evaluate": ("seed", "model", "evaluate"),
    "register": ("model", "register", "evaluate.plan_tokens", "evaluate.call_tokens"),
}


class StageRun:
    """One execution of one stage."""

    def __init__(self, name: str, root: Path, settings: Settings) -> None:
        self.name = name
        self.root = root
        self.settings = settings
        self.phases: dict[str, float] = {}
        self.memory = PhaseMemory()
        self.reported: dict[str, Any] = {}
        self._tracker: Tracker | None = None
        self._pipes: PipesContext | None = None

    @property
    def mlflow_run_id(self) -> str | None:
        """The stage's MLflow run, which is also mlflow's active run; ``None`` without tracking."""
        return self._tracker.run_id if self._tracker else None

    @property
    def mlflow_parent_id(self) -> str | None:
        """The MLflow run of the whole pipeline run, if the stage is part of one."""
        return self._tracker.parent_id if self._tracker else None

    def log(self, message: str) -> None:
        """One line for the user (stderr, Dagster's run log)."""
        print(f"[{self.name}] {message}", file=sys.stderr, flush=True)
        if self._pipes:
            with suppress(OSError):  # Dagster is gone: the stage still finishes for DVC
                self._pipes.log.info(message)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Parameters of the MLflow run, beside the stage's settings, which are always there."""
        if self._tracker:
            self._tracker.log_params(values)

    def log_metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Metrics of the MLflow run, buffered; non-finite values are dropped with a warning."""
        finite = {key: float(value) for key, value in values.items() if math.isfinite(value)}
        if dropped := sorted(set(values) - set(finite)):
            self.log(f"not finite at step {step}, not sent to MLflow: {', '.join(dropped)}")
        if self._tracker:
            self._tracker.log_metrics(finite, step)
            while self._tracker.warnings:
                self.log(f"warning: {self._tracker.warnings.pop()}")

    def log_input(self, path: Path, name: str, context: str) -> None:
        """A dataset the stage reads, with its digest, as MLflow dataset input."""
        if self._tracker:
            self._tracker.log_input(path, name, context)

    def log_artifact(self, path: Path, folder: str = "") -> None:
        """A file or directory kept with the MLflow run (checkpoint, plot, report)."""
        if self._tracker:
            self._tracker.log_artifact(path, folder)

    def log_traces(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Rollout trees (`traces.record`) as MLflow traces of the run."""
        if self._tracker:
            for record in records:
                self._tracker.log_trace(record)

    def metadata(self, **values: Any) -> None:
        """Values shown on the Dagster materialization (numbers, text, links, markdown)."""
        self.reported.update(values)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Adds the wall time of the body to ``phases[name]`` (seconds); its peak goes to ``memory``."""
        start = time.perf_counter()
        try:
            with self.memory.phase(name):
                yield
        finally:
            self.phases[name] = self.phases.get(name, 0.0) + time.perf_counter() - start

    def cache_dir(self, key: str) -> Path:
        """A directory outside DVC's outs for resumable state, keyed by config + input digests."""
        path = self.root / ".cahl" / self.name / key
        with storage_errors(path):
            path.mkdir(parents=True, exist_ok=True)
        return path


@contextmanager
def open_stage(name: str, root: Path, settings: Settings) -> Iterator[StageRun]:
    """Runs the body as one execution of the stage, recorded whichever way it ends.

    Only the process of rank 0 talks to Dagster, MLflow and the sidecar.

    Raises:
        StageInputError: another process runs the same stage in this project.
        RegistryError: MLflow cannot be reached.
    """
    stage = StageRun(name, root, settings)
    if os.environ.get("RANK", "0") != "0":
        yield stage
        return
    record = Record(stage)
    with ExitStack() as stack:
        stack.enter_context(lock(root, name))
        try:
            _open_pipes(stage, stack)
            _open_tracker(stage)
            yield stage
        except BaseException as error:
            _close_tracker(stage, "KILLED" if was_stopped(error) else "FAILED")
            record.write("interrupted" if was_stopped(error) else "failed", error)
            raise
        _report_memory(stage)
        _close_tracker(stage, "FINISHED")
        record.write("finished")
        _report_materialization(stage)


def stage_params(name: str, settings: Settings) -> dict[str, Any]:
    """The settings the stage reads, flattened to dotted keys."""
    values = settings.model_dump(mode="json", by_alias=True)
    flat: dict[str, Any] = {"profile": settings.profile}
    for section in SECTIONS.get(name, ()):
        found: Any = values
        for part in section.split("."):
            found = found[part]
        flat |= _flatten(section, found)
    return flat


@contextmanager
def lock(root: Path, name: str) -> Iterator[None]:
    """Holds the project's lock ``name``; `StageInputError` names the process that has it."""
    path = root / ".cahl" / "locks" / f"{name}.lock"
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = path.open("a+")
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            raise StageInputError(
                f"stage '{name}' is already running here (process {stream.read().strip()})",
                "wait for it, or stop it",
            ) from None
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def _open_pipes(stage: StageRun, stack: ExitStack) -> None:
    # Outside Dagster open_dagster_pipes() hands out mocks, so it is opened only below Dagster.
    if "DAGSTER_PIPES_CONTEXT" in os.environ:
        from dagster_pipes import open_dagster_pipes

        stage._pipes = stack.enter_context(_while_dagster_listens(open_dagster_pipes()))


@contextmanager
def _while_dagster_listens(pipes: PipesContext) -> Iterator[PipesContext]:
    """Closes the session with what was raised; a listener that has gone is no failure of ours."""
    try:
        yield pipes
    except BaseException:
        with suppress(OSError):
            pipes.__exit__(*sys.exc_info())
        raise
    with suppress(OSError):
        pipes.close()


def _open_tracker(stage: StageRun) -> None:
    from cahl_core.tracking import Tracker, pipeline_identity

    dagster_run = stage._pipes.run_id if stage._pipes else None
    tags = {"cahl.profile": stage.settings.profile, **git_tags(stage.root), **_dep_tags(stage)}
    if dagster_run:
        tags["dagster.run_id"] = dagster_run
    tracker = Tracker(stage.root, stage.settings)
    stage._tracker = tracker
    params = stage_params(stage.name, stage.settings)
    tracker.start(stage.name, pipeline_identity(dagster_run), tags, params)


def _close_tracker(stage: StageRun, status: Status) -> None:
    tracker = stage._tracker
    if not tracker or not tracker.run_id:
        return
    try:
        phases = {f"phase_seconds/{key}": value for key, value in stage.phases.items()}
        peaks = gib(stage.memory.highest)
        tracker.log_metrics(phases | peaks | {"peak_rss_gb": peak_rss() / 1e9}, None)
        if status == "FINISHED":
            tracker.set_tags(_out_tags(stage))
        tracker.end(status)
    except CahlError as error:
        # The stage's files are whole: losing the last lines of its log does not undo them.
        stage.log(f"warning: {error}")
    for warning in tracker.warnings:
        stage.log(f"warning: {warning}")


def _report_memory(stage: StageRun) -> None:
    stage.metadata(**{name: round(value, 3) for name, value in gib(stage.memory.highest).items()})


def _report_materialization(stage: StageRun) -> None:
    if stage._pipes and stage._pipes.is_asset_step:
        known = {key: value for key, value in stage.reported.items() if value is not None}
        with suppress(OSError):
            stage._pipes.report_asset_materialization(metadata=known or None)


def _dep_tags(stage: StageRun) -> dict[str, str]:
    declared = read_stages(stage.root).get(stage.name)
    deps = [d for d in declared.deps if d not in declared.code] if declared else []
    known = sums(deps, stage.root, locked_sums(stage.root))
    return {f"dvc.dep.{path}": md5 for path, md5 in known.items()}


def _out_tags(stage: StageRun) -> dict[str, str]:
    # dvc.lock is written after this process ends; the sums are the ones DVC is about to record.
    declared = read_stages(stage.root).get(stage.name)
    made = [p for p in (declared.products if declared else ()) if (stage.root / p).exists()]
    return {f"dvc.out.{path}": dvc_md5(stage.root / path) for path in made}


def git_tags(root: Path) -> dict[str, str]:
    """The commit as MLflow spells it, and whether files differ from it; empty outside of git."""
    state = git_state(root)
    if state is None:
        return {}
    return {"mlflow.source.git.commit": state[0], "git.dirty": str(state[1])}


def _flatten(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {
        k: v for key, inner in value.items() for k, v in _flatten(f"{prefix}.{key}", inner).items()
    }
