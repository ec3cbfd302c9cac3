"""A user's file of tasks with gold calls, in any format of one record per line, as what can be scored.

A record that nobody could score, because its gold calls do not fit its own tools or results, is set
aside by rule and place; one that has a flaw but can be scored is kept and noted (`task_records`).
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import CONVERTERS
from cahl_core.datasets.contamination import normalise
from cahl_core.datasets.raw import RawRecord, read_file
from cahl_core.datasets.validation import TELLING
from cahl_core.datasets.validity import plain
from cahl_core.errors import ConfigError, DataError
from cahl_core.evaluation.file_form import readable_form, require_file
from cahl_core.evaluation.task_records import (
    FIXES,
    Finding,
    converted_records,
    judged,
    meaning,
)
from cahl_core.files import digest, sha256
from cahl_core.records import ToolTask


@dataclass(frozen=True, slots=True)
class TaskFile:
    """What a file holds: every record is in ``tasks`` or in ``aside``.

    Attributes:
        records: values in the file; a dialogue gives several tasks.
        aside: records that cannot be scored.
        flaws: of records that are scored all the same.
    """

    path: Path
    format: str
    sha256: str
    records: int
    tasks: tuple[ToolTask, ...]
    aside: tuple[Finding, ...]
    flaws: tuple[Finding, ...]

    def notes(self) -> list[str]:
        """Sentences for the report: what was read, what was set aside, what is flawed."""
        count = f"{self.path.name}: {_number(self.records, 'record')} ({self.format}), "
        lines = [count + f"{_number(len(self.tasks), 'task')} scored, {len(self.aside)} set aside"]
        return [*lines, *findings_notes(self.aside, self.flaws)]


def findings_notes(aside: Sequence[Finding], flaws: Sequence[Finding]) -> list[str]:
    """A sentence per rule, with the first places."""
    return [
        f"{title}: {len(found)} {rule} ({meaning(rule)}): {_places(found)}"
        for title, findings in (("set aside", aside), ("scored, but", flaws))
        for rule, found in _by_rule(findings)
    ]


def read_tasks(
    path: Path, settings: PrepareSettings, *, format: str | None = None, strict: bool = False
) -> TaskFile:
    """The tasks of a file of JSON Lines, JSON or Parquet, also gzipped, told apart by content.

    Args:
        format: one of `CONVERTERS`; ``None`` recognises it from the first record's keys.
        strict: a record that would be set aside is an error.

    Raises:
        ConfigError: no such file, a folder, an unknown format, or none that can be recognised.
        DataError: nothing in it can be scored, an id is given twice, or ``strict`` and a fault.
    """
    require_file(path)
    if format is not None and format not in CONVERTERS:
        raise ConfigError(
            f"format '{format}' is not one of a file of tasks", f"formats: {', '.join(CONVERTERS)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        readable = readable_form(path, Path(folder))
        raw = list(read_file(readable, path.name, settings.max_text_chars))
    if not raw:
        raise DataError(f"{path}: holds no record", "write one JSON record per line")
    format = format or _recognised(path, raw)
    tasks, aside, flaws = judged(converted_records(raw, stem(path), format, settings), settings)
    file = TaskFile(path, format, sha256(path), len(raw), tuple(t for t, _ in tasks), tuple(aside),
                    (*flaws, *_repeated(tasks)))  # fmt: skip
    _require_unique(path, tasks)
    if not file.tasks or (aside and strict):
        raise DataError(_refusal(file, strict), _first_fix(aside))
    return file


def _recognised(path: Path, raw: Sequence[RawRecord]) -> str:
    first = next((r.value for r in raw if isinstance(r.value, dict)), None)
    if first is None:
        reasons = "; ".join(f"{r.where}: {r.problem[1]}" for r in raw[:3] if r.problem)
        kinds = sorted({type(r.value).__name__ for r in raw if r.problem is None})
        raise DataError(
            f"{path}: none of its {_number(len(raw), 'record')} is a JSON object"
            + (f" ({reasons})" if reasons else f" (they are {', '.join(kinds)})"),
            "write one JSON object per line; docs/data.md has an example",
        )
    for key, beside, format in TELLING:
        if key in first and (not beside or beside in first):
            return format
    inside = next(
        (k for k, v in first.items() if isinstance(v, list) and v and isinstance(v[0], dict)), ""
    )
    wrapped = (
        f"if the records are the list under '{plain(inside)}', write that list alone; "
        if len(raw) == 1 and inside
        else ""
    )
    raise ConfigError(
        f"{path}: the format cannot be told from the keys of its first record: "
        f"{', '.join(sorted(map(plain, first)))}",
        wrapped
        + "expected: messages and tools, with answers (our form) or with tool_calls in the messages "
        f"(OpenAI); else give the format, one of {', '.join(CONVERTERS)}",
    )


def stem(path: Path) -> str:
    """The name without its endings: what records without an id are named after."""
    return path.name.split(".")[0] or path.name


# --- the file as a whole -------------------------------------------------------------------------


def _repeated(tasks: Sequence[tuple[ToolTask, str]]) -> Iterator[Finding]:
    first: dict[str, str] = {}
    for task, where in tasks:
        key = digest([[m.role, *normalise(m.content)] for m in task.messages])
        if key in first:
            yield Finding(where, plain(task.id), "duplicate", f"same request as {first[key]}")
        first.setdefault(key, plain(task.id))


def _require_unique(path: Path, tasks: Sequence[tuple[ToolTask, str]]) -> None:
    places: dict[str, list[str]] = {}
    for task, where in tasks:
        places.setdefault(task.id, []).append(where)
    twice = {i: where for i, where in places.items() if len(where) > 1}
    if not twice:
        return
    shown = [f"'{plain(i)}' at {' and '.join(w[:3])}" for i, w in list(twice.items())[:3]]
    raise DataError(
        f"{path}: {_number(len(twice), 'id')} given more than once: {'; '.join(shown)}",
        "give every record an id of its own; scores are kept and compared by id",
    )


def _refusal(file: TaskFile, strict: bool) -> str:
    what = f"{len(file.aside)} of {_number(len(file.aside) + len(file.tasks), 'task')} cannot be scored"
    what = f"{file.path}: {what}{' (--strict)' if strict and file.tasks else ''}"
    lines = [what]
    for rule, found in _by_rule(file.aside):
        lines.append(f"{len(found)} {rule}: {meaning(rule)}")
        lines += [f"  {finding}" for finding in found[:3]]
        lines += [f"  … and {len(found) - 3} more"] if len(found) > 3 else []
    return "\n".join(lines)


def _first_fix(aside: Sequence[Finding]) -> str:
    fixes = [
        f"{rule}: {FIXES.get(rule, 'docs/data.md explains the rule')}"
        for rule, _ in _by_rule(aside)
    ]
    return "\n  → ".join(fixes)


def _by_rule(findings: Sequence[Finding]) -> list[tuple[str, list[Finding]]]:
    counts = Counter(f.rule for f in findings)
    return [(rule, [f for f in findings if f.rule == rule]) for rule, _ in counts.most_common()]


def _places(findings: Sequence[Finding]) -> str:
    shown = [f"{f.where} ({f.id}: {f.detail})" for f in findings[:3]]
    more = f", and {len(findings) - 3} more" if len(findings) > 3 else ""
    return "; ".join(shown) + more


def _number(count: int, noun: str) -> str:
    """
    >>> _number(1, "record"), _number(2, "record")
    ('1 record', '2 records')
    """
    return f"{count} {noun}" + ("" if count == 1 else "s")
