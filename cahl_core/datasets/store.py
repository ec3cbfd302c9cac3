"""Tasks on disk while they are prepared: appended once, read back by number, never all in memory."""

from __future__ import annotations

import json
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any

from cahl_core.files import storage_errors
from cahl_core.records import ToolTask

BUFFER = 1 << 20


class LineStore:
    """An append-only file of JSON lines; memory holds eight bytes for each.

    A context manager: the file is removed when it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = array("Q", [0])
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w+b", buffering=BUFFER)
        self._flushed = 0

    def append(self, line: bytes) -> int:
        """Stores one line, its newline included; returns its number."""
        with storage_errors(self.path):
            self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        return len(self._offsets) - 2

    def line(self, number: int) -> bytes:
        """Line ``number``, its newline included."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        start, end = self._offsets[number], self._offsets[number + 1]
        if end > self._flushed:
            self.flush()
        # reads at a position of its own: forked processes share the file's
        return os.pread(self._file.fileno(), end - start, start)

    def flush(self) -> None:
        """Makes all lines readable, by forked processes too."""
        with storage_errors(self.path):
            self._file.flush()
        self._flushed = self._offsets[-1]

    def value(self, number: int) -> Any:
        """The JSON value of line ``number``."""
        return json.loads(self.line(number))

    def task(self, number: int) -> ToolTask:
        """The task of line ``number``."""
        return ToolTask.from_json(self.value(number))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> LineStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)
