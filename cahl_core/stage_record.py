"""The record that every execution of a stage leaves in ``.cahl/stages/<stage>.json``.

It holds what DVC's outs must not: durations, memory, run ids, and how the execution ended.
"""

from __future__ import annotations

import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.files import read_json, write_json
from cahl_core.memory import highest_resident

if TYPE_CHECKING:
    from cahl_core.stage import StageRun


def sidecar(root: Path, name: str) -> Path:
    """Where the last execution of the stage left its record."""
    return root / ".cahl" / "stages" / f"{name}.json"


def last_record(root: Path, name: str) -> dict[str, Any]:
    """The sidecar of the stage's last execution, empty where there is none."""
    path = sidecar(root, name)
    record: dict[str, Any] = read_json(path) if path.exists() else {}
    return record


def note_failure(root: Path, name: str, error: BaseException) -> None:
    """Records a failure that came before the stage was opened (bad settings, missing input)."""
    if last_record(root, name).get("pid") == os.getpid():
        return
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record = {"stage": name, "status": "failed", "started": now, "error": sentence(error)}
    write_json(sidecar(root, name), record | {"pid": os.getpid()})


class Record:
    """What the sidecar says: durations and run ids, which DVC's outs must not contain."""

    def __init__(self, stage: StageRun) -> None:
        self._stage = stage
        self._started = datetime.now(UTC)
        self._clock = time.perf_counter()

    def write(self, status: str, error: BaseException | None = None) -> None:
        stage, tracker, pipes = self._stage, self._stage._tracker, self._stage._pipes
        record: dict[str, Any] = {
            "stage": stage.name,
            "status": status,
            "pid": os.getpid(),
            "profile": stage.settings.profile,
            "started": self._started.isoformat(timespec="seconds"),
            "wall_seconds": round(time.perf_counter() - self._clock, 2),
            "peak_rss_bytes": peak_rss(),
            "phases": {key: round(value, 3) for key, value in stage.phases.items()},
            "dagster_run_id": pipes.run_id if pipes else None,
            "memory": {"source": stage.memory.source, "peak_bytes": stage.memory.highest},
            "metadata": stage.reported,
        }
        if tracker and tracker.run_id:
            record["mlflow"] = {
                "run_id": tracker.run_id,
                "parent_run_id": tracker.parent_id,
                "url": tracker.url,
            }
        if error is not None:
            record["error"] = sentence(error)
        write_json(sidecar(stage.root, stage.name), record)


def peak_rss() -> int:
    """Bytes of the largest resident set of this process and its children."""
    import resource

    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    unit = 1 if sys.platform == "darwin" else 1024
    seen = max(resource.getrusage(kind).ru_maxrss for kind in kinds) * unit
    return max(seen, highest_resident())


def was_stopped(error: BaseException) -> bool:
    """Whether the execution was ended from outside, rather than by a failure."""
    return not isinstance(error, Exception)


def sentence(error: BaseException) -> str:
    """How it ended, in words."""
    if was_stopped(error):
        return f"stopped ({type(error).__name__})"
    return str(error) or type(error).__name__
