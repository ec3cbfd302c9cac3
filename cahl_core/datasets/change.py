"""Augmentation of original records: tools of other records beside their own, and new names.

What is drawn depends on the seed and the record's id only.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cahl_core.config import PrepareSettings
from cahl_core.datasets.adapters import Record
from cahl_core.datasets.augment import add_distractors, rename
from cahl_core.errors import DataError
from cahl_core.records import ToolSpec, ToolTask

POOL_RECORDS = 5_000  # of each source whose tools can become distractors


@dataclass(frozen=True, slots=True)
class Changed:
    """An augmented task and the names, before renaming, of the tools that were added to it."""

    task: ToolTask
    added: tuple[str, ...]


def augmented(
    task: ToolTask, settings: PrepareSettings, pool: Sequence[ToolSpec]
) -> Changed | None:
    """The task with up to ``distractors`` tools of the pool and, for ``rename_share``, new names.

    ``None`` where the draw leaves it as it is.
    """
    generator = random.Random(f"{settings.seed} augment {task.id}")
    renamed = generator.random() < settings.rename_share
    extra = generator.randint(0, settings.distractors)
    if not task.tools or not (renamed or extra):
        return None
    own = {tool.name for tool in task.tools}
    more = add_distractors(task, pool, extra, generator) if extra and pool else task
    added = tuple(tool.name for tool in more.tools if tool.name not in own)
    return Changed(rename(more, generator) if renamed else more, added)


def read_pool(sources: Iterable[Iterator[Record]]) -> list[ToolSpec]:
    """One tool of each name that the first `POOL_RECORDS` records of each source offer, by name."""
    found: dict[str, ToolSpec] = {}
    for records in sources:
        for record in itertools.islice(records, POOL_RECORDS):
            tools = record.get("tools")
            for tool in tools if isinstance(tools, list) else ():
                spec = _spec(tool)
                if spec is not None:
                    found.setdefault(spec.name, spec)
    return [found[name] for name in sorted(found)]


def _spec(tool: object) -> ToolSpec | None:
    """The tool, if it is one; what is not one is set aside with its record later."""
    try:
        return ToolSpec.from_json(tool)
    except DataError:
        return None
