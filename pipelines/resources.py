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


class StageClient(dg.PipesSubprocessClient):
    """Runs a command below Pipes; when the run is terminated, the stage itself gets SIGTERM.

    DVC ignores the SIGINT that the base class would send to it alone, and the stage would go on
    without a parent.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(env=stage_environment(), cwd=str(root), forward_termination=False)

    def run(self, **arguments: Any) -> Any:
        """See `dagster.PipesSubprocessClient.run`."""
        try:
            return super().run(**arguments)
        except (dg.DagsterExecutionInterruptedError, KeyboardInterrupt):
            _terminate(list(arguments["command"]))
            raise


def resources(root: Path) -> Mapping[str, Any]:
    """What the assets ask for by name."""
    return {"stage_client": StageClient(root)}


def _terminate(command: list[str]) -> None:
    for child in psutil.Process().children():
        try:
            if child.cmdline() != command:
                continue
            below = child.children(recursive=True)
        except psutil.Error:
            continue
        for process in below:
            _send_sigterm(process)
        psutil.wait_procs([child, *below], timeout=STOP_SECONDS)


def _send_sigterm(process: psutil.Process) -> None:
    try:
        process.terminate()
    except psutil.NoSuchProcess:
        return
