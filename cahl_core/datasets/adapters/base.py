"""What adapters share: the reader's type, and readers made from one function per record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cahl_core.datasets.raw import PATTERNS, RawRecord, read_raw

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ReadLimits:
    """Sizes an adapter keeps to: characters of one recorded result, of one whole record."""

    result_chars: int = 320
    record_chars: int = 200_000


Reader = Callable[[Path, str, ReadLimits], Iterator[Record]]
Convert = Callable[[Any, str, str], Record | Iterable[Record]]


def malformed(source: str, record_id: str, reason: str, rule: str = "malformed") -> Record:
    """The stand-in for a record that cannot be read as a task."""
    return {"id": record_id, "source": source, "malformed": reason, "rule": rule}


def per_record(convert: Convert, patterns: tuple[str, ...] = PATTERNS) -> Reader:
    """A reader that calls ``convert(value, source, record_id)`` for every value of every file.

    ``record_id`` is ``<source>-<number>``, numbered from 0 over the source; ``convert`` may take another
    id from the value. Its KeyError, TypeError, ValueError, AttributeError and IndexError mean that the
    value does not have the format: the record is then malformed, with the error as reason.
    """

    def read(folder: Path, source: str, limits: ReadLimits) -> Iterator[Record]:
        for number, raw in enumerate(read_raw(folder, limits.record_chars, patterns)):
            yield from _converted(convert, raw, source, f"{source}-{number}")

    return read


def _converted(convert: Convert, raw: RawRecord, source: str, record_id: str) -> Iterator[Record]:
    if raw.problem is not None:
        rule, detail = raw.problem
        yield malformed(source, record_id, f"{raw.where}: {detail}", rule)
        return
    try:
        found = convert(raw.value, source, record_id)
        yield from [found] if isinstance(found, dict) else list(found)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        reason = f"{raw.where}: {type(error).__name__}: {error}"
        yield malformed(source, record_id, reason)
