"""Records of finished attempts, one line each, written as soon as an attempt is done.

A killed evaluation loses the attempts that were under way and nothing else. What a record depends on is
in its key, so a file may be read by any later run: what fits is used, the rest is ignored.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cahl_core.evaluation.core import Attempt, Record
from cahl_core.files import digest, dump_json, storage_errors


def attempt_key(attempt: Attempt) -> str:
    """Digest of everything a model's texts depend on that is not the model: item and sample."""
    return digest([attempt.item.shown, attempt.seed])


class RecordStore:
    """Append-only file of records by `attempt_key`; one process at a time may write it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._records: dict[str, Record] = {}
        self._read()

    def __len__(self) -> int:
        return len(self._records)

    def get(self, attempt: Attempt) -> Record | None:
        """What was kept for the attempt, if it was."""
        return self._records.get(attempt_key(attempt))

    def add(self, attempt: Attempt, record: Record) -> None:
        """Keeps a record; on disk when this returns.

        Raises:
            StorageError: the file cannot be written.
        """
        key = attempt_key(attempt)
        line = dump_json({"key": key, "id": attempt.item.id, "record": record}) + "\n"
        with storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab") as stream:
                stream.write(line.encode())
                stream.flush()
                os.fsync(stream.fileno())
        # as it will be read back: a tuple is a list then
        self._records[key] = json.loads(line)["record"]

    def _read(self) -> None:
        """Takes over whole lines; what a kill left of the last one is cut off."""
        if not self.path.exists():
            return
        whole = 0
        for line in self.path.read_bytes().splitlines(keepends=True):
            entry = _entry(line)
            if entry is None and not line.endswith(b"\n"):
                break
            whole += len(line)
            if entry is not None:  # a damaged line in between costs that attempt only
                self._records[entry["key"]] = entry["record"]
        if whole < self.path.stat().st_size:
            with storage_errors(self.path):
                os.truncate(self.path, whole)


def _entry(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        entry = json.loads(line)
    except ValueError:
        return None
    fits = isinstance(entry, dict) and isinstance(entry.get("record"), dict) and "key" in entry
    return entry if fits else None
