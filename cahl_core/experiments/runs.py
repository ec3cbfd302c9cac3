"""MLflow: one run per cell below one parent run per experiment, found again by its digest.

A cell that is run again goes on in the run it had: what MLflow already has of a metric is not sent
twice, and a parameter that is there is the same one, because the digest is.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cahl_core.config import Settings
from cahl_core.stage import StageRun
from cahl_core.tracking import Status, Tracker, registry_errors

KIND = "experiment"


class CellTracker(Tracker):
    """The MLflow run of one cell."""

    def __init__(self, root: Path, settings: Settings, experiment: str) -> None:
        super().__init__(root, settings)
        self.grid = experiment  # MLflow's own word `experiment` is a folder of runs
        self._known: dict[str, set[int]] = {}
        self._resumed = False

    def open(self, cell: str, key: str, tags: Mapping[str, str], params: Mapping[str, Any]) -> None:
        """Opens the cell's run, the one it had if there is one, as mlflow's active run.

        Raises:
            RegistryError: the store cannot be reached or is locked.
        """
        import mlflow

        self._connect()
        with registry_errors(self.uri):
            self.parent_id = self._experiment_run()
            query = f"tags.`cahl.cell_key` = '{key}' and tags.`cahl.grid` = '{self.grid}'"
            found = self._client.search_runs([self.experiment_id], query, max_results=1)
            self._resumed = bool(found)
            own = {
                "cahl.kind": "cell",
                "cahl.grid": self.grid,
                "cahl.cell": cell,
                "cahl.cell_key": key,
                "mlflow.parentRunId": self.parent_id,
                **tags,
            }
            if found:
                self.run_id = str(found[0].info.run_id)
                self._client.update_run(self.run_id, status="RUNNING")
            else:
                run = self._client.create_run(self.experiment_id, run_name=cell, tags=own)
                self.run_id = str(run.info.run_id)
            mlflow.start_run(run_id=self.run_id)
        self.set_tags(own)
        self.log_params(params)

    def log_experiment(self, report: Path, values: Mapping[str, float], status: Status) -> None:
        """Report and headline numbers of the whole experiment, in the run that its cells lie below."""
        from mlflow.entities import Metric

        self._connect()
        with registry_errors(self.uri):
            self.run_id = self._experiment_run()
            now = int(time.time() * 1000)
            metrics = [Metric(key, value, now, 0) for key, value in values.items()]
            self._client.log_batch(self.run_id, metrics=metrics, synchronous=True)
            self._client.log_artifacts(self.run_id, str(report), "report")
            self._client.set_terminated(self.run_id, status)

    def log_metrics(self, values: Mapping[str, float], step: int | None) -> None:
        """As in `Tracker`; what a resumed run already has at this step is left out."""
        fresh = {k: v for k, v in values.items() if (step or 0) not in self._steps(k)}
        super().log_metrics(fresh, step)

    def _steps(self, metric: str) -> set[int]:
        if not self._resumed:
            return set()
        if metric not in self._known:
            with registry_errors(self.uri):
                history = self._client.get_metric_history(self.run_id, metric)
            self._known[metric] = {m.step for m in history}
        return self._known[metric]

    def _connect(self) -> None:
        import mlflow

        with registry_errors(self.uri):
            mlflow.set_tracking_uri(self.uri)
            self._client = mlflow.MlflowClient(self.uri)
            self.experiment_id = self._experiment_id()

    def _experiment_run(self) -> str:
        query = f"tags.`cahl.grid` = '{self.grid}' and tags.`cahl.kind` = '{KIND}'"
        found = self._client.search_runs([self.experiment_id], query, max_results=1)
        if found:
            parent = str(found[0].info.run_id)
            self._client.update_run(parent, status="RUNNING")
            return parent
        tags = {"cahl.grid": self.grid, "cahl.kind": KIND}
        name = f"experiment {self.grid}"
        return str(
            self._client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        )


class CellRun(StageRun):
    """What a training run in a cell talks to: the terminal and the cell's MLflow run."""

    def __init__(self, cell: str, root: Path, settings: Settings, tracker: Tracker | None) -> None:
        super().__init__(cell, root, settings)
        self._tracker = tracker
