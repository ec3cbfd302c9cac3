"""One cell, or one SFT start, in a process of its own: ``python -m cahl_core.experiments.worker SPEC``.

A process per cell returns all memory and keeps a crash to itself. Its state file says how it ended; the
sums of the result files are in it, and are written last.
"""

from __future__ import annotations

import importlib.metadata
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from cahl_core.config import Settings, validate
from cahl_core.experiments.phases import work
from cahl_core.experiments.spec import Spec
from cahl_core.experiments.state import State, held
from cahl_core.files import read_json
from cahl_core.stage import StageRun

LIBRARIES = ("torch", "transformers", "peft")
FAILED, INTERRUPTED, TERMINATED = 1, 130, 143


def main(arguments: list[str]) -> int:
    """Runs the spec in the file; the exit code says how it ended, the state file says more."""
    signal.signal(signal.SIGTERM, _terminate)
    _end_with_parent()
    spec = Spec(**read_json(Path(arguments[0])))
    try:
        (run_start if spec.kind == "start" else run_cell)(spec)
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        print(f"[{spec.cell}] error: {error}", file=sys.stderr, flush=True)
        return FAILED
    return 0


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _no_more_signals() -> None:
    """A second Ctrl-C or SIGTERM must not cut short what the first one has to record."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: it holds the other end of stdin."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


# --- the start -----------------------------------------------------------------------------------


def run_start(spec: Spec) -> None:
    """SFT in a project directory of its own that borrows this project's data.

    Raises:
        CahlError: as `training.sft.run`; the traceback is in the start's ``error.log``.
    """
    made = spec.sft
    with held(made.path), _noted(made.traceback):
        if made.done():
            return
        from cahl_core.training import sft

        _borrow_data(Path(spec.root), made.path)
        stage = StageRun("sft", made.path, validate(spec.start))
        clock = time.perf_counter()
        sft.run(stage)
        seconds = round(time.perf_counter() - clock, 1)
        metrics = read_json(made.path / "metrics/sft.json")
        made.finish(metrics=metrics, seconds=seconds, **_about(stage.settings))


def _borrow_data(root: Path, project: Path) -> None:
    (project / "data").mkdir(exist_ok=True)
    for name in ("backbone", "prepared"):
        link = project / "data" / name
        link.unlink(missing_ok=True)
        link.symlink_to((root / "data" / name).absolute())


# --- a cell --------------------------------------------------------------------------------------


def run_cell(spec: Spec) -> None:
    """Trains, evaluates and crosses one cell, from wherever it was left.

    Raises:
        Exception: whatever went wrong, after it was recorded in the state file.
    """
    folder = spec.folder
    with folder.lock():
        before = folder.read() or State(spec.cell)
        state = folder.write(
            replace(
                before,
                status="running",
                facts=spec.facts,
                inputs=spec.inputs,
                attempts=before.attempts + 1,
                error="",
                products={},
            )
        )
        try:
            with _noted(folder.traceback), _tracked(spec) as stage:
                folder.write(replace(state, mlflow_run_id=stage.mlflow_run_id or ""))
                work(spec, stage)
                about = {**_about(stage.settings), "seconds": dict(stage.phases)}
        except BaseException as error:
            stopped = not isinstance(error, Exception)
            status = "interrupted" if stopped else "failed"
            reason = str(error) or type(error).__name__
            if stopped:
                ctrl_c = isinstance(error, KeyboardInterrupt)
                reason = f"stopped by {'Ctrl-C' if ctrl_c else 'SIGTERM'}"
            folder.write(replace(folder.read() or state, status=status, error=reason))
            raise
        done = folder.read() or state
        folder.write(replace(done, status="finished", products=folder.products(), about=about))


# --- what surrounds both -------------------------------------------------------------------------


@contextmanager
def _tracked(spec: Spec) -> Iterator[StageRun]:
    """The cell's MLflow run around the body, ended the way the body ends."""
    from cahl_core.experiments.runs import CellRun, CellTracker
    from cahl_core.stage import stage_params

    settings, root = validate(spec.settings), Path(spec.root)
    tracker = CellTracker(root, settings, spec.experiment)
    stage = CellRun(spec.cell, root, settings, tracker)
    params = {**stage_params("train", settings), "variant": spec.tags["variant"]}
    tags = {f"cahl.{k}": v for k, v in spec.tags.items()}
    tags |= {f"cahl.input.{k}": v for k, v in spec.inputs.items()}
    tracker.open(spec.cell, spec.key, tags, params)
    try:
        yield stage
    except Exception:
        tracker.end("FAILED")
        raise
    except BaseException:
        _no_more_signals()
        tracker.end("KILLED")
        raise
    tracker.end("FINISHED")


@contextmanager
def _noted(path: Path) -> Iterator[None]:
    """Keeps the traceback of a failure beside the results; removes an older one."""
    path.unlink(missing_ok=True)
    try:
        yield
    except Exception:
        path.write_text(traceback.format_exc(), encoding="utf-8")
        raise


def _about(settings: Settings) -> dict[str, Any]:
    """Code, library versions, device and number type: what else the results depend on."""
    from cahl_core.policy.backbone import pick_device, pick_dtype
    from cahl_core.stage import git_tags

    device = pick_device()
    dtype = str(pick_dtype(settings.model.dtype, device)).removeprefix("torch.")
    return {
        "versions": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "numbers": [device.type, dtype],
        "code": git_tags(Path(__file__).parent),  # of this code, wherever the project is
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
