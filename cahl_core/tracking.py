"""MLflow: one run per pipeline run, one child per stage, metrics sent in batches.

mlflow takes two seconds to import, so this module imports it only when a `Tracker` starts.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from cahl_core.config import Settings
from cahl_core.errors import CahlError, RegistryError
from cahl_core.files import tree_digest

FLUSH_SECONDS = 10.0
BATCH = 900
PARAMS_PER_CALL = 100
TRACE_QUEUE = "mlflow.tracing.export.async_export_queue"
Status = Literal["FINISHED", "FAILED", "KILLED"]


def tracking_uri(root: Path, settings: Settings) -> str:
    """``MLFLOW_TRACKING_URI``, else the setting; a relative sqlite path is one below ``root``."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or settings.tracking.uri
    prefix = "sqlite:///"
    if uri.startswith(prefix) and not uri.startswith(prefix + "/"):
        return f"{prefix}{root.absolute() / uri[len(prefix) :]}"
    return uri


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """Where a browser finds the run; for a local store, the server that ``make ui`` starts."""
    port = os.environ.get("MLFLOW_PORT", "5000")
    server = uri.rstrip("/") if uri.startswith("http") else f"http://127.0.0.1:{port}"
    return f"{server}/#/experiments/{experiment_id}/runs/{run_id}"


def pipeline_identity(dagster_run_id: str | None) -> str | None:
    """What one pipeline run's stages have in common: the Dagster run, else the ``dvc`` process.

    ``None`` for a stage started by hand: its run has no parent.
    """
    if dagster_run_id:
        return f"dagster:{dagster_run_id}"
    import psutil

    for parent in psutil.Process().parents():
        try:
            command = parent.cmdline()[:3]  # python -m dvc, python /…/bin/dvc
        except psutil.Error:
            continue
        if any(Path(word).name == "dvc" for word in command):
            return f"dvc:{socket.gethostname()}:{parent.pid}:{parent.create_time():.2f}"
    return None


@contextmanager
def registry_errors(uri: str) -> Iterator[None]:
    """Turns what mlflow raises into one `RegistryError` that says where and what to do."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except CahlError:
        raise
    except (MlflowException, SQLAlchemyError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = "start the server or change tracking.uri (MLFLOW_TRACKING_URI has precedence)"
        if uri.startswith("sqlite"):
            hint = (
                "another process may hold the database (make ui?), or the disk is full or read-only"
            )
        raise RegistryError(f"MLflow at {uri}: {reason}", hint) from error


class Tracker:
    """The MLflow run of one stage; `start` it before use, `end` it exactly once."""

    def __init__(self, root: Path, settings: Settings) -> None:
        self.root = root
        self.uri = tracking_uri(root, settings)
        self.experiment = settings.tracking.experiment
        self.run_id = ""
        self.parent_id: str | None = None
        self.experiment_id = ""
        self.warnings: list[str] = []
        self._buffer: list[Any] = []
        self._traced = False
        self._flushed = time.monotonic()

    @property
    def url(self) -> str:
        """Address of the stage's run."""
        return run_url(self.uri, self.experiment_id, self.run_id)

    def start(
        self, stage: str, pipeline: str | None, tags: Mapping[str, str], params: Mapping[str, Any]
    ) -> None:
        """Opens the run, below the pipeline's run if there is one, as mlflow's active run.

        Raises:
            RegistryError: the store cannot be reached or is locked.
        """
        import mlflow

        for name in ("alembic", "mlflow.store.db.utils", "mlflow.tracking.fluent", TRACE_QUEUE):
            logging.getLogger(name).setLevel(logging.WARNING)
        with registry_errors(self.uri):
            mlflow.set_tracking_uri(self.uri)
            self._client = mlflow.MlflowClient(self.uri)
            self.experiment_id = self._experiment_id()
            tags = {"cahl.stage": stage, "cahl.kind": "stage", **tags}
            if pipeline:
                self.parent_id = self._parent(pipeline, tags)
                tags |= {"mlflow.parentRunId": self.parent_id, "cahl.pipeline": pipeline}
            run = self._client.create_run(self.experiment_id, run_name=stage, tags=tags)
            self.run_id = run.info.run_id
            mlflow.start_run(run_id=self.run_id)
        self.log_params(params)

    def log_params(self, values: Mapping[str, Any]) -> None:
        """Parameters as text; long values are cut to MLflow's 6,000 characters."""
        from mlflow.entities import Param

        params = [Param(key, str(value)[:6000]) for key, value in values.items()]
        with registry_errors(self.uri):
            for start in range(0, len(params), PARAMS_PER_CALL):
                batch = params[start : start + PARAMS_PER_CALL]
                self._client.log_batch(self.run_id, params=batch, synchronous=True)

    def log_metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """Buffers finite values; sent every ten seconds, every 900 values, and at the end."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._buffer += [Metric(key, float(v), now, step or 0) for key, v in values.items()]
        if time.monotonic() - self._flushed >= FLUSH_SECONDS or len(self._buffer) >= BATCH:
            self._flush_or_keep()

    def log_input(self, path: Path, name: str, context: str) -> None:
        """A file or directory as dataset input, with its digest."""
        import json

        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = path.relative_to(self.root) if path.is_relative_to(self.root) else path
        dataset = Dataset(
            name=name,
            digest=tree_digest(path),
            source_type="local",
            source=json.dumps({"uri": str(source)}),
        )
        tag = InputTag("mlflow.data.context", context)
        with registry_errors(self.uri):
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])

    def log_artifact(self, path: Path, folder: str) -> None:
        """A file, or a directory with its contents."""
        send = self._client.log_artifacts if path.is_dir() else self._client.log_artifact
        with registry_errors(self.uri):
            send(self.run_id, str(path), folder or None)

    def log_trace(self, record: Mapping[str, Any]) -> None:
        """One rollout tree (`traces.record`) as an MLflow trace of the run; what fails is a warning."""
        from cahl_core.traces.mlflow import log_trace

        self._traced = True
        if warning := log_trace(record, self.run_id, self.experiment_id):
            self.warnings.append(warning)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Tags of the stage's run."""
        from mlflow.entities import RunTag

        batch = [RunTag(key, value) for key, value in tags.items()]
        with registry_errors(self.uri):
            self._client.log_batch(self.run_id, tags=batch, synchronous=True)

    def end(self, status: Status) -> None:
        """Sends what is buffered and closes the run; the pipeline's run takes the same status."""
        import mlflow

        if self._buffer:
            self._flush_or_keep()
        if self._buffer:
            self.warnings.append(f"{len(self._buffer)} metric values could not be sent to MLflow")
        if self._traced:
            self._flush_traces()
        with registry_errors(self.uri):
            mlflow.end_run(status)
            if self.parent_id:
                self._client.set_terminated(self.parent_id, status)

    def _flush_or_keep(self) -> None:
        """Keeps what a busy store did not take: training goes on, `end` reports what is lost."""
        self._flushed = time.monotonic()
        try:
            with registry_errors(self.uri):
                while self._buffer:
                    batch = self._buffer[:BATCH]
                    self._client.log_batch(self.run_id, metrics=batch, synchronous=True)
                    del self._buffer[: len(batch)]
        except RegistryError as error:
            self.warnings.append(str(error))

    def _flush_traces(self) -> None:
        """Waits for traces on their way, so that the finished run has them."""
        import mlflow

        try:
            mlflow.flush_trace_async_logging()
        except Exception as error:  # mlflow's own exporter; the run itself is logged
            self.warnings.append(f"traces could not be sent to MLflow: {error}")

    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(self.experiment)
        if found is None:
            local = not self.uri.startswith(("http", "databricks"))
            place = (self.root.absolute() / "mlartifacts").as_uri() if local else None
            return str(self._client.create_experiment(self.experiment, artifact_location=place))
        if found.lifecycle_stage == "deleted":
            raise RegistryError(
                f"MLflow experiment '{self.experiment}' is deleted",
                "restore it in MLflow or choose another tracking.experiment",
            )
        return str(found.experiment_id)

    def _parent(self, pipeline: str, tags: Mapping[str, str]) -> str:
        query = f"tags.`cahl.pipeline` = '{pipeline}' and tags.`cahl.kind` = 'pipeline'"
        found = self._client.search_runs([self.experiment_id], query, max_results=1)
        if found:
            parent = str(found[0].info.run_id)
            self._client.update_run(parent, status="RUNNING")
            return parent
        shared = ("cahl.profile", "dagster.run_id", "mlflow.source.git.commit")
        about = {key: tags[key] for key in shared if key in tags}
        about |= {"cahl.pipeline": pipeline, "cahl.kind": "pipeline"}
        name = f"pipeline-{uuid.uuid4().hex[:6]}"
        return str(
            self._client.create_run(self.experiment_id, run_name=name, tags=about).info.run_id
        )
