"""Rollout trees as JSON records on disk: one file per traced step, one line per tree.

A step's file appears whole or not at all, and a resumed run writes it anew, so no tree is there
twice. Reading streams and names the line of what does not hold.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cahl_core.config import Settings
from cahl_core.errors import DataError, StageInputError
from cahl_core.files import atomic_file
from cahl_core.traces.schema import VERSION, TraceRecord

if TYPE_CHECKING:
    from cahl_core.training.tree import Tree

DEFAULT_FOLDER = Path(".cahl/traces/train")
FILE = re.compile(r"step-(\d{6,})\.jsonl")


def trace_record(
    tree: Tree, step: int, settings: Settings, tokenizer: Any | None = None
) -> dict[str, Any]:
    """`build.trace_record`, imported when a tree is written: reading needs no rewards."""
    from cahl_core.traces import build

    return build.trace_record(tree, step, settings, tokenizer)


class TraceWriter:
    """Writes the trees of traced steps (``train.trace``) to ``folder/step-000012.jsonl``.

    Args:
        tokenizer: given, records hold the prompts as text.
    """

    def __init__(self, folder: Path, tokenizer: Any | None = None) -> None:
        self.folder = folder
        self.tokenizer = tokenizer

    def write(self, step: int, trees: Sequence[Tree], settings: Settings) -> list[dict[str, Any]]:
        """Writes the step's file atomically, over one that is there; returns its records.

        Keeps the first ``train.trace.trees`` trees of every ``train.trace.every``-th step; of
        the other steps nothing is written and nothing returned.
        """
        trace = settings.train.trace
        if not trace.every or step % trace.every:
            return []
        records = [
            trace_record(tree, step, settings, self.tokenizer) for tree in trees[: trace.trees]
        ]
        with atomic_file(self.folder / f"step-{step:06d}.jsonl") as path:
            # half a surrogate pair from a record's text becomes its JSON escape
            with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
                out.writelines(_line(record) for record in records)
        return records

    def discard_from(self, step: int) -> int:
        """Removes the files of ``step`` and later ones, which a run that starts there writes anew.

        Returns:
            The number of files removed: 0 where there is nothing to remove.
        """
        late = [path for path, number in step_files(self.folder) if number >= step]
        for path in late:
            path.unlink()
        return len(late)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def step_files(folder: Path) -> list[tuple[Path, int]]:
    """The trace files of a folder with their steps, in the order of the steps."""
    found = ((path, FILE.fullmatch(path.name)) for path in folder.glob("step-*.jsonl"))
    return sorted(((p, int(m[1])) for p, m in found if m), key=lambda pair: pair[1])


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr)


def read_traces(
    path: Path,
    *,
    steps: Collection[int] | None = None,
    task: str | None = None,
    source: str | None = None,
    warn: Callable[[str], None] = _warn,
) -> Iterator[dict[str, Any]]:
    """Yields the records of a trace file, a folder of them, or a project, in the order of steps.

    Args:
        steps: only these; files of other steps are not opened. task: only this task's trees.
        source: only trees of tasks from this source.
        warn: is told about a broken last line, which a killed run may leave.

    Raises:
        StageInputError: there are no traces at ``path``.
        DataError: a line is not JSON or not a trace record; names file and line.
    """
    for file in _files(Path(path), steps):
        for record in _read_file(file, warn):
            if steps is not None and record["step"] not in steps:
                continue
            if task is not None and record["task"]["id"] != task:
                continue
            if source is None or record["task"]["source"] == source:
                yield record


def _files(path: Path, steps: Collection[int] | None) -> list[Path]:
    if path.is_file():
        return [path]
    folder = path / DEFAULT_FOLDER if (path / DEFAULT_FOLDER).is_dir() else path
    found = step_files(folder)
    if not found:
        what = "has no step-*.jsonl" if folder.is_dir() else "does not exist"
        raise StageInputError(
            f"{folder} {what}",
            "`cahl train` writes traces where train.trace.every is not 0; give a folder or a file",
        )
    return [file for file, number in found if steps is None or number in steps]


def _read_file(path: Path, warn: Callable[[str], None]) -> Iterator[dict[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            where = f"{path}:{number}"
            try:
                value = json.loads(line)
            except ValueError as error:  # not JSON, or not UTF-8
                if not line.endswith(b"\n"):
                    warn(f"{where}: the last line is broken off and was left out")
                    return
                raise DataError(f"{where}: not JSON: {error}") from error
            yield _checked(value, where)


def _checked(value: Any, where: str) -> dict[str, Any]:
    from pydantic import ValidationError

    hint = "traces are the step-*.jsonl files that `cahl train` writes"
    if not isinstance(value, dict) or "version" not in value:
        raise DataError(f"{where}: not a trace record: no 'version'", hint)
    if value["version"] != VERSION:
        raise DataError(
            f"{where}: trace version {value['version']!r}, this program reads {VERSION}",
            "read it with the program that wrote it",
        )
    try:
        _validator()(value)
    except ValidationError as error:
        first = next(islice(error.errors(), 1))
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{where}: not a trace record: {place}: {first['msg']}", hint) from error
    return value


@lru_cache(maxsize=1)
def _validator() -> Callable[[Any], Any]:
    from pydantic import TypeAdapter

    adapter = TypeAdapter(TraceRecord)
    return lambda value: adapter.validate_python(value, strict=True)
