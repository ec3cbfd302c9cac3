"""Tasks on disk while they are prepared: appended once, read back by number, never all in memory."""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from cahl_core.files import storage_errors
from cahl_core.records import ToolTask


class LineStore:
    """An append-only file of JSON lines; memory holds eight bytes for each.

    A context manager: the file is removed when it ends.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets = array("Q", [0])
        with storage_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = path.open("w+b")

    def append(self, line: bytes) -> int:
        """Stores one line, its newline included; returns its number."""
        with storage_errors(self.path):
            self._file.seek(self._offsets[-1])
            self._file.write(line)
        self._offsets.append(self._offsets[-1] + len(line))
        return len(self._offsets) - 2

    def line(self, number: int) -> bytes:
        """Line ``number``, its newline included."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        self._file.seek(self._offsets[number])
        return self._file.read(self._offsets[number + 1] - self._offsets[number])

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
