"""``python -m pipelines.run``: the whole job in this process, then the summary.

Stages write to the terminal directly, so their progress bars are live; Dagster's own event stream
stays in its instance, where ``make ui`` shows the run.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import dagster as dg

from cahl_core.errors import CahlError, ConfigError
from cahl_core.lineage import read_stages
from cahl_core.stage_record import sidecar
from pipelines.home import dagster_home
from pipelines.resources import dvc, project_root

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
INTERRUPTED = 130


def main() -> int:
    """Runs the job; the exit code says whether every stage and check passed."""
    root = project_root()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        return run(root)
    except CahlError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        print("interrupted; run again to go on from the last finished stage", file=sys.stderr)
        return INTERRUPTED


def run(root: Path) -> int:
    """Materializes every asset of ``root`` in order and prints what came of it."""
    from pipelines.definitions import build_definitions

    dagster_home(root)
    _settle_scm(root)
    started = time.time()
    job = build_definitions(root).resolve_job_def("pipeline")
    with _instance() as instance:
        result = job.execute_in_process(instance=instance, raise_on_error=False, run_config=QUIET)
    if not result.success:
        return _explain(result, root)
    _summarize(root, started)
    return 0


def _instance() -> dg.DagsterInstance:
    instance = dg.DagsterInstance.get()
    # Capturing output would put a pipe between the stages and the terminal.
    from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

    instance._compute_log_manager = NoOpComputeLogManager()
    return instance


def _settle_scm(root: Path) -> None:
    """Lets DVC work in a copy of the project that is no git repository (image, archive)."""
    if not (root / ".dvc").is_dir():
        raise ConfigError(f"{root} has no .dvc directory", "run from a clone of the project")
    if any((place / ".git").exists() for place in (root, *root.parents)):
        return
    command = dvc("config", "--local", "core.no_scm", "true")
    subprocess.run(command, cwd=root, check=True)


def _summarize(root: Path, started: float) -> None:
    from pipelines.summary import show, summary

    stages = list(read_stages(root))
    paths = {name: sidecar(root, name) for name in stages}
    ran = [n for n, path in paths.items() if path.exists() and path.stat().st_mtime >= started]
    show(summary(root, stages, ran))


def _explain(result: dg.ExecuteInProcessResult, root: Path) -> int:
    print(file=sys.stderr)
    if any(_was_interrupted(event) for event in result.all_events):
        raise KeyboardInterrupt
    for event in result.all_events:
        if event.is_step_failure:
            print(f"error: {_sentence(event.step_failure_data)}", file=sys.stderr)
    for check in _failed_checks(result):
        print(f"error: {check}", file=sys.stderr)
    print(
        f"  → the run is in Dagster (make ui) as {result.run_id}; finished stages are kept, "
        "run again to go on",
        file=sys.stderr,
    )
    return 1


def _was_interrupted(event: dg.DagsterEvent) -> bool:
    error = event.step_failure_data.error if event.is_step_failure else None
    return error is not None and error.cls_name == "DagsterExecutionInterruptedError"


def _sentence(data: Any) -> str:
    described = data.user_failure_data.description if data.user_failure_data else None
    return described or (data.error.message.strip() if data.error else "a step failed")


def _failed_checks(result: dg.ExecuteInProcessResult) -> list[str]:
    return [
        f"check '{check.check_name}' on {check.asset_key.to_user_string()}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.severity == dg.AssetCheckSeverity.ERROR
    ]


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
