"""What adapters share: the reader's type, and readers made from one function per record."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.datasets.adapters.build import complete
from cahl_core.datasets.raw import PATTERNS, RawRecord, read_raw

Record = dict[str, Any]
EXCERPT = 160


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Sizes an adapter keeps to: characters of one recorded result, of one whole record."""

    result_chars: int = 320
    record_chars: int = 200_000


Reader = Callable[[Path, str, ReadLimits], Iterator[Record]]
Convert = Callable[[Any, str, str], Record | Iterable[Record]]
# (file name, index in the file) -> the id a source's own scheme gives, None where it gives none
Identify = Callable[[str, int], str | None]
FAULTS = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


def malformed(
    source: str, record_id: str, reason: str, rule: str = "malformed", excerpt: str = ""
) -> Record:
    """The stand-in for a record that cannot be read as a task; ``excerpt`` is how the record begins."""
    return {
        "id": record_id,
        "source": source,
        "malformed": reason,
        "rule": rule,
        "excerpt": excerpt,
    }


def per_record(
    convert: Convert, patterns: tuple[str, ...] = PATTERNS, identify: Identify | None = None
) -> Reader:
    """A reader that calls ``convert(value, source, record_id)`` for every value of every file.

    ``record_id`` is what ``identify`` gives for file and index, else ``<source>-<number>``, numbered
    from 0 over the source; ``convert`` may take another id from the value. Its KeyError, TypeError,
    ValueError, AttributeError, IndexError and RecursionError mean that the value does not have the
    format: the record is then malformed, with the error as reason. What follows from the gold calls
    is added to ``meta`` (`build.complete`).
    """

    def read(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
        file, index = "", -1
        for number, raw in enumerate(read_raw(folder, limits.record_chars, patterns)):
            place = raw.where.split(":")[0].split("[")[0]
            file, index = place, (index + 1 if place == file else 0)
            own = identify(Path(place).name, index) if identify is not None else None
            yield from converted(convert, raw, source, own or f"{source}-{number}", limits)

    return read


def converted(
    convert: Convert, raw: RawRecord, source: str, record_id: str, limits: ReadLimits
) -> Iterator[Record]:
    """The records of one raw value, or the one malformed record that says why there is none."""
    if raw.problem is not None:
        rule, detail = raw.problem
        yield malformed(source, record_id, f"{raw.where}: {detail}", rule, raw.excerpt)
        return
    try:
        found = convert(raw.value, source, record_id)
        records = [found] if isinstance(found, dict) else list(found)
        done = [r if "malformed" in r else complete(r, limits.result_chars) for r in records]
    except FAULTS as error:
        reason = f"{raw.where}: {type(error).__name__}: {error}"
        own = raw.value.get("id") if isinstance(raw.value, dict) else None
        done = [malformed(source, own if isinstance(own, str) else record_id, reason)]
    for record in done:
        if "malformed" in record and not record.get("excerpt"):
            record["excerpt"] = json.dumps(raw.value, ensure_ascii=False)[:EXCERPT]
        yield record
