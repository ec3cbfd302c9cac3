"""How an asset starts its stage: ``dvc repro --single-item`` below a Pipes session."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dagster as dg
import psutil

STOP_SECONDS = 20

# Dagster warns about its own use of a preview function each time a Pipes session opens.
warnings.filterwarnings("ignore", category=dg.PreviewWarning)


def project_root() -> Path:
    """The directory with ``dvc.yaml``: ``CAHL_ROOT``, the working directory, or this checkout."""
    if named := os.environ.get("CAHL_ROOT"):
        return Path(named).absolute()
    here = Path.cwd()
    return here if (here / "dvc.yaml").exists() else Path(__file__).parent.parent.absolute()


def dvc(*arguments: str) -> list[str]:
    """A ``dvc`` command of this interpreter's environment, activated or not."""
    return [sys.executable, "-m", "dvc", *arguments]


def stage_environment() -> dict[str, str]:
    """Variables under which a stage finds this interpreter, and DVC stays quiet."""
    return {
        "CAHL_PYTHON": sys.executable,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "DVC_NO_ANALYTICS": "1",
        "DO_NOT_TRACK": "true",
    }


class StageFailedError(Exception):
    """The command below Pipes ended with an exit code other than 0."""


class StageClient(dg.PipesSubprocessClient):
    """Runs a stage's command below Pipes, its output on this process's own terminal.

    Differs from the base class when the run is terminated: DVC ignores the SIGINT that it alone
    would get, and the stage would go on without a parent. Here the stage gets SIGTERM, and the
    session stays open until it has said its last words.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(env=stage_environment(), cwd=str(root))

    def run_stage(
        self, command: list[str], context: dg.AssetExecutionContext
    ) -> dg.PipesClientCompletedInvocation:
        """Returns when the command has succeeded.

        Raises:
            StageFailedError: it has not.
        """
        with dg.open_pipes_session(context, self.context_injector, self.message_reader) as session:
            environment = {**os.environ, **self.env, **session.get_bootstrap_env_vars()}
            process = psutil.Popen(command, cwd=self.cwd, env=environment)
            try:
                code = process.wait()
            except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
                _terminate(process)
                raise
            if code != 0:
                raise StageFailedError(f"exit code {code}")
        return dg.PipesClientCompletedInvocation(session)


def resources(root: Path) -> Mapping[str, Any]:
    """What the assets ask for by name."""
    return {"stage_client": StageClient(root)}


def _terminate(dvc_process: psutil.Process) -> None:
    """Stops what DVC started; DVC then ends by itself, with its locks released."""
    below = dvc_process.children(recursive=True)
    for process in below:
        try:
            process.terminate()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs([dvc_process, *below], timeout=STOP_SECONDS)
